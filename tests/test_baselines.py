"""The peers, on exact denoisers whose posterior is known, and what all of them have in common."""

import sys

import pytest
import tiny_pipelines as tiny
import torch
from conftest import generators, tiny_denoiser, tiny_unet, two_pixels
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline, UNet2DConditionModel

import fcs_lab
from fcs_lab import baselines
from fcs_lab.baselines import PEERS as PEERS_BY_NAME
from fcs_lab.baselines.repaint import repaint_peer
from fcs_lab.metrics import masked_mse
from fcs_lab.zoo import WEIGHTS

F64 = torch.float64
PEERS = [name for name in PEERS_BY_NAME if name != "psld"]  # which takes latent models
BACKWARD = ("dps", "lgd_mc", "pigdm", "freedom")


def peer(name):
    return getattr(baselines, name)


@pytest.mark.parametrize("name", PEERS)
def test_where_the_data_are_one_image_all_find_it(name):
    """x̂_0 is that image wherever x_t is, and its known half fits: a fixed point of every update."""
    image = torch.rand(1, 1, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64) * 2 - 1
    model = fcs_lab.IdealDenoiser(image)
    mask = (torch.arange(4) >= 2).expand(2, 4)
    options = {"learning_rate": 0.05} if name == "red_diff" else {}
    task, run = fcs_lab.Inpainting(image, mask), {"num_inference_steps": 100, "generator": generators(0), "progress": False}
    result = peer(name)(model, task, **run, **options)
    assert (result.x0 - image).abs().max() < (0.05 if name == "red_diff" else 2e-2)
    evaluations = len(PEERS_BY_NAME[name]().plan(100))
    assert result.nfe == evaluations and result.n_backward == evaluations * (name in BACKWARD)
    assert result.completed and len(result.trace) == (65 if name == "guess_and_guide" else 100)


# Two pixels with a correlation of 0.8 and a standard deviation of 0.3; the first is 0.3. The second one's posterior has mean
# 0.24 and standard deviation 0.18. Who samples it, and who is biased: (mean, how far it may be in standard errors), likewise
# of the standard deviation; None: it is not held to the posterior there, and by how much it is off stands beside.
POSTERIOR = {
    "repaint": ({"resamplings": 10, "num_inference_steps": 100}, True, False),  # its deviation is too small: 0.14
    "flowchef": ({"num_inference_steps": 200}, True, True),
    "mpgd": ({"num_inference_steps": 200}, True, True),
    "ddnm": ({"num_inference_steps": 200}, False, False),  # 0.20 and 0.13: all noise is fresh, what was found is lost
    "ddrm": ({"num_inference_steps": 200}, False, False),  # as DDNM
    "daps": ({"num_inference_steps": 200, "noise_floor": 0.02}, False, True),  # 0.21: to it pixels vary by themselves
    "lanpaint": ({"num_inference_steps": 100, "langevin_steps": 10}, True, False),  # 0.15
    "guess_and_guide": ({"num_inference_steps": 200}, False, False),  # 0.20 and 0.13, as DDNM
    "freedom": ({"num_inference_steps": 200}, False, False),  # 0.28 and 0.16
    "diffpir": ({"num_inference_steps": 200}, False, False),  # as DDNM
    "pigdm": ({"num_inference_steps": 200}, False, False),  # 0.27 and 0.16
    "lgd_mc": ({"num_inference_steps": 200, "step_size": 0.1}, True, True),
    "red_diff": ({"num_inference_steps": 200}, False, True),  # 0.21: pulled towards the prior's mean
    "dps": ({"num_inference_steps": 200, "step_size": 0.1}, False, True),  # 0.26: a step of one length, however small r is
}


@pytest.mark.parametrize("name", PEERS)
def test_against_a_known_posterior(name):
    options, mean_holds, deviation_holds = POSTERIOR[name]
    n = 1000
    model, task = two_pixels(n)
    found = peer(name)(model, task, generator=torch.Generator().manual_seed(0), progress=False, **options).x0[:, 0, 0]
    mean, deviation = found[:, 1].mean().item(), found[:, 1].std().item()
    within = 3.5 * deviation / n**0.5
    assert (found[:, 0] - 0.3).abs().mean() < 0.06
    assert (abs(mean - 0.24) < within) == mean_holds, mean
    assert (abs(deviation - 0.18) < within) == deviation_holds, deviation
    assert abs(mean - 0.24) < 0.06 and abs(deviation - 0.18) < 0.06


def test_resampling_is_what_makes_repaints_halves_agree():
    """Its paper's point: without it the hidden half hardly hears of the known one."""
    model, task = two_pixels(1000)
    means = []
    for resamplings in (1, 10):
        result = baselines.repaint(
            model, task, num_inference_steps=50, resamplings=resamplings, generator=generators(0)[0], progress=False
        )
        means.append(result.x0[:, 0, 0, 1].mean().item())
    assert means[0] < 0.18 < 0.21 < means[1]


@pytest.mark.parametrize("name", PEERS)
def test_an_image_comes_out_as_it_would_alone(name):
    model, pair = tiny_denoiser(torch.float32), torch.rand(2, 1, 8, 8, generator=generators(5)[0]) * 2 - 1
    mask = (torch.arange(8) >= 4).expand(8, 8)

    def call(images, *seeds):
        return peer(name)(
            model, fcs_lab.Inpainting(images, mask), num_inference_steps=6, generator=generators(*seeds), progress=False
        ).images

    both = call(pair, 0, 1)
    for i in (0, 1):
        assert (both[i] - call(pair[i : i + 1], i)[0]).abs().max() < 1e-3


@pytest.mark.parametrize("name", PEERS)
def test_on_digits(name, mnist, digits, right_half):
    """Better than without the constraint (0.34 on the known half, 0.4 on the hidden one), at 20 evaluations or so."""
    options = baselines.budget(name, 21) | ({"learning_rate": 0.3} if name == "red_diff" else {})
    task = fcs_lab.Inpainting(digits, right_half)
    result = peer(name)(mnist, task, generator=generators(*range(len(digits))), progress=False, **options)
    assert masked_mse(result.images, digits, ~right_half).mean() < 0.15
    assert masked_mse(result.images, digits, right_half).mean() < 0.45
    assert result.images.abs().max() <= 1


@pytest.mark.parametrize("name", ["ddnm", "diffpir", "mpgd", "red_diff", "flowchef"])
def test_other_linear_tasks(name, mnist, digits):
    small = fcs_lab.downsample(digits, 2)
    task = fcs_lab.SuperResolution(small, 2)
    options = {"num_inference_steps": 20, "generator": generators(*range(len(digits))), "progress": False}
    options |= {"noise_floor": 1e-4} if name == "diffpir" else {}
    result = peer(name)(mnist, task, **options)
    if name in ("ddnm", "diffpir"):  # which meet the measurements
        assert (task.A(result.x0) - small).abs().max() < 0.05


def test_the_pseudo_inverse_and_the_proximal_step_are_those_of_the_matrix():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 6, 6, generator=generator, dtype=F64) * 2 - 1
    kernel = torch.rand(3, 3, generator=generator, dtype=F64)
    kernel = kernel / kernel.sum()
    matrix = torch.randn(4, 36, generator=generator, dtype=F64)
    tasks = [
        fcs_lab.Inpainting(image, (torch.arange(6) >= 3).expand(6, 6)),
        fcs_lab.SuperResolution(fcs_lab.downsample(image, 2, "box"), 2, "box"),
        fcs_lab.SuperResolution(fcs_lab.downsample(image, 3), 3),
        fcs_lab.Blur(fcs_lab.blur(image, kernel), kernel),
        fcs_lab.LinearConstraint(
            lambda x: x.flatten(1) @ matrix.T, lambda y: (y @ matrix).reshape(-1, 1, 6, 6), (image.flatten(1) @ matrix.T)
        ),
    ]
    basis = torch.eye(36, dtype=F64).reshape(36, 1, 6, 6)
    x = torch.randn(1, 1, 6, 6, generator=generator, dtype=F64)
    for task in tasks:
        A = task.A(basis).flatten(1).T  # (m, 36)
        v = A @ torch.randn(36, generator=generator, dtype=F64)  # in A's range
        expected = torch.linalg.pinv(A, rtol=1e-10) @ v
        assert torch.allclose(task.pinv(v.reshape(1, *task.y.shape[1:])).flatten(), expected, atol=1e-5), type(task)
        for weight in (1e-2, 3.0):
            expected = torch.linalg.solve(
                A.T @ A + weight * torch.eye(36, dtype=F64), A.T @ task.y.flatten() + weight * x.flatten()
            )
            assert torch.allclose(task.prox(x, weight).flatten(), expected, atol=1e-8), type(task)


def test_what_a_method_cannot_do_is_said_before_any_evaluation(mnist, digits, right_half):
    cost = fcs_lab.CostConstraint(lambda x: x.square().flatten(1).sum(1))
    for name, missing in {
        "ddnm": "no A, no A⁺",
        "ddrm": "no singular vectors, no A⁺",
        "diffpir": "no proximal step",
        "repaint": "no known part",
    }.items():
        with pytest.raises(TypeError, match=f"task is a CostConstraint, which has {missing}"):
            peer(name)(mnist, cost, progress=False)
    task = fcs_lab.Inpainting(digits, right_half)
    for name, options, words in (
        ("ddnm", {"eta": 2}, "eta is 2; expected a number from 0 to 1"),
        ("diffpir", {"zeta": -1}, "zeta is -1"),
        ("diffpir", {"noise_floor": 0}, "noise_floor is 0"),
        ("repaint", {"resamplings": 0}, "resamplings is 0"),
        ("ddrm", {"eta_b": 2}, "eta_b is 2"),
        ("daps", {"ode_steps": 0}, "ode_steps is 0"),
        ("lanpaint", {"friction": -1}, "friction is -1"),
        ("guess_and_guide", {"start": 1.5}, "start is 1.5"),
        ("freedom", {"travels": 0}, "travels is 0"),
        ("mpgd", {"step_size": "large"}, "step_size is 'large'"),
        ("dps", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("red_diff", {"learning_rate": float("nan")}, "learning_rate is nan"),
    ):
        with pytest.raises(ValueError, match=words):
            peer(name)(mnist, task, progress=False, **options)
    with pytest.raises(TypeError, match="task is None; expected a constraint"):
        baselines.ddnm(mnist, None, progress=False)
    with pytest.raises(TypeError, match="ddnm has no argument resamplings; besides its own it takes scheduler"):
        baselines.ddnm(mnist, task, resamplings=3)


FORWARD_ONLY = [name for name, make in PEERS_BY_NAME.items() if not make().differentiates]


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_a_pipelines_own_loop_drives_it_as_well(name):
    """The bundled garments' pipeline, guided: the same latents as with the denoiser, the network's calls counted."""
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "fashion")
    pipe.set_progress_bar_config(disable=True)
    mask = (torch.arange(32) >= 16).expand(32, 32)
    task, steps = fcs_lab.Inpainting(fcs_lab.load_garments(2)[0], mask), 4
    counted = []
    pipe.unet.register_forward_hook(lambda *_: counted.append(1))
    with fcs_lab.constrained(pipe, task, method=name) as run:
        pipe(
            ["a coat", "a dress"],
            num_inference_steps=steps,
            guidance_scale=2.0,
            generator=generators(0, 1),
            output_type="pt",
        )
    evaluations = len(PEERS_BY_NAME[name]().plan(steps))
    assert run.result.nfe == len(counted) == evaluations and run.result.completed
    assert len(run.result.trace) == (3 if name == "guess_and_guide" else steps)
    model = fcs_lab.load("fashion", device="cpu").with_prompt(["a coat", "a dress"], guidance_scale=2.0)
    direct = peer(name)(model, task, num_inference_steps=steps, generator=generators(0, 1), progress=False)
    assert (run.result.x0 - direct.x0).abs().max() < 1e-3
    assert (run.result.images - direct.images).abs().max() < 1e-3


def test_a_pipeline_and_a_peers_own_settings():
    pipe = tiny.sd()
    task = fcs_lab.Inpainting(torch.zeros(1, 3, 32, 32), (torch.arange(32) >= 16).expand(32, 32))
    for method, settings in ((repaint_peer(resamplings=5), {}), ("repaint", {"resamplings": 5, "eta": 0.5})):
        with fcs_lab.constrained(pipe, task, method=method, **settings) as run:
            pipe("a dress", num_inference_steps=3, generator=generators(0), output_type="latent")
        assert run.result.nfe == 15
    for method, settings, words in (
        ("repaint", {"zeta": 1}, "zeta is given, which method 'repaint' has not; it has resamplings, eta"),
        ("ddnm", {"step_size": 0.5}, "step_size is given, which method 'ddnm' has not; it has eta"),
        ("ddnm", {"num_inference_steps": 9}, "it has eta; the timesteps are those of the pipeline's call"),
        ("newton", {"resamplings": 5}, "resamplings is given, which method 'newton' has not; it has inner_steps"),
        ("ddmn", {}, "method is 'ddmn'; expected 'newton', 'identity', 'repaint', 'ddnm'"),
        (
            repaint_peer(),
            {"resamplings": 5},
            "resamplings is given, but method is 'repaint', which has its settings already",
        ),
    ):
        with pytest.raises(ValueError, match=words), fcs_lab.constrained(pipe, task, method=method, **settings):
            pass
    with (
        pytest.raises(ValueError, match="method is 'dps', which takes derivatives"),
        fcs_lab.constrained(pipe, task, method="dps"),
    ):
        pass
    with pytest.raises(TypeError, match="task is None; method 'ddnm' takes a constraint"):  # noqa: SIM117
        with fcs_lab.constrained(pipe, method="ddnm"):
            pass
    through_the_decoder = fcs_lab.Colorization(torch.zeros(1, 1, 32, 32))
    counted = []
    pipe.unet.register_forward_hook(lambda *_: counted.append(1))
    with (
        fcs_lab.constrained(pipe, through_the_decoder, method="ddnm"),
        pytest.raises(TypeError, match=r"task is a Decoded, which has no A, no A⁺, .*in latent space inpainting only"),
    ):
        pipe("a dress", num_inference_steps=3)
    assert not counted


def test_a_method_of_ones_own_in_a_pipeline():
    """The plainest: the known part put in, all noise fresh. It is DDNM, and comes out so."""
    pipe = tiny.sd()
    task = fcs_lab.Inpainting(torch.zeros(1, 3, 32, 32), (torch.arange(32) >= 16).expand(32, 32))

    def mine(x, watch):
        for i, t in enumerate(watch.schedule.timesteps):
            x0 = yield x, t
            moved = torch.where(watch.task.known > 0, watch.task.y, x0)
            x = watch.step(i, x, x0, moved=moved, sigma=watch.schedule.levels[i + 1][1])
        return x

    def twice(x, watch):
        for i, t in enumerate(watch.schedule.timesteps):
            yield x, t
            x = watch.step(i, x, (yield x, t))
        return x

    found = []
    for method in (mine, "ddnm"):
        with fcs_lab.constrained(pipe, task, method=method) as run:
            pipe("a dress", num_inference_steps=4, generator=generators(0), output_type="latent")
        found.append(run.result.x0)
    assert torch.allclose(*found, rtol=1e-3, atol=1e-3)
    with (
        fcs_lab.constrained(pipe, task, method=twice),
        pytest.raises(ValueError, match=r"came to t = 751 after 1 evaluations, where its plan has t = 501: give it as"),
    ):
        pipe("a dress", num_inference_steps=4, generator=generators(0), output_type="latent")
    with fcs_lab.constrained(pipe, task, method=baselines.Peer("twice", twice, plan=baselines.repeated(2))) as run:
        pipe("a dress", num_inference_steps=4, generator=generators(0), output_type="latent")
    assert run.result.nfe == 8 and run.result.completed
    with pytest.raises(TypeError, match="expected a function of 2 arguments"):  # noqa: SIM117
        with fcs_lab.constrained(pipe, task, method=lambda x: x):
            pass


@pytest.mark.parametrize("evaluations", [60, 220])
def test_a_budget_is_what_a_method_spends(evaluations):
    for name, make in PEERS_BY_NAME.items():
        settings = baselines.budget(name, evaluations)
        spent = len(
            make(**{k: v for k, v in settings.items() if k != "num_inference_steps"}).plan(settings["num_inference_steps"])
        )
        assert 0.95 * evaluations <= spent <= evaluations, (name, spent)
    for name, each in {"newton": 2, "identity": 1, "gradient": 1}.items():
        settings = baselines.budget(name, evaluations)
        assert 0.9 * evaluations <= settings["num_inference_steps"] * (1 + each * settings["inner_steps"]) <= evaluations
    with pytest.raises(ValueError, match="method is 'ddmn'; expected one of 'repaint', 'ddnm'"):
        baselines.budget("ddmn", 60)
    with pytest.raises(ValueError, match=r"evaluations \(of 'lanpaint'\) is 2; expected a whole number of at least 3"):
        baselines.budget("lanpaint", 2)


def test_the_singular_vectors_are_those_of_the_matrix():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 6, 6, generator=generator, dtype=F64) * 2 - 1
    kernel = torch.rand(3, 3, generator=generator, dtype=F64)
    matrix = torch.randn(4, 36, generator=generator, dtype=F64)
    tasks = [
        fcs_lab.Inpainting(image, (torch.arange(6) >= 3).expand(6, 6)),
        fcs_lab.SuperResolution(fcs_lab.downsample(image, 3), 3),
        fcs_lab.Blur(fcs_lab.blur(image, kernel / kernel.sum()), kernel / kernel.sum()),  # no separable one
        fcs_lab.Colorization(image.clone()),
        fcs_lab.LinearConstraint(
            lambda x: x.flatten(1) @ matrix.T, lambda y: (y @ matrix).reshape(-1, 1, 6, 6), (image.flatten(1) @ matrix.T)
        ),
    ]
    for task in tasks:
        system, n = task.singular(), 36 * task.shape[0]
        V = system.images(torch.eye(n, dtype=F64).reshape(n, *task.shape))
        assert torch.allclose(V.flatten(1) @ V.flatten(1).T, torch.eye(n, dtype=F64), atol=1e-6)
        AV = task.A(V).flatten(1)
        assert torch.allclose(AV @ AV.T, torch.diag(system.values.flatten() ** 2), atol=1e-6), type(task)
        x = torch.randn(2, *task.shape, generator=generator, dtype=F64)
        assert torch.allclose(system.images(system.coefficients(x)), x, atol=1e-6)
    large = torch.zeros(1, 1, 66, 66)
    with pytest.raises(ValueError, match="have 4356 numbers each; the singular vectors of an operator of one's own"):
        fcs_lab.LinearConstraint(lambda x: 2 * x, lambda y: 2 * y, large).singular()


# y = 0.3 with noise of 0.2: the posterior's means are 0.208 and 0.166.
NOISY = {"ddrm": (0.217, 0.149), "diffpir": (0.212, 0.146), "daps": (0.221, 0.164)}


@pytest.mark.parametrize("name", NOISY)
def test_noise_in_the_measurements_is_heeded(name):
    model, task = two_pixels(1000, noise_std=0.2)
    generator = torch.Generator().manual_seed(0)
    found = peer(name)(model, task, num_inference_steps=200, generator=generator, progress=False).x0[:, 0, 0].mean(0)
    assert (found - torch.tensor([0.208, 0.166], dtype=F64)).abs().max() < 0.04
    with pytest.raises(ValueError, match="noise_std is -1; expected a number of at least 0"):
        two_pixels(1, noise_std=-1)


def test_langevin_steps_are_what_makes_lanpaints_halves_agree():
    model, task = two_pixels(1000)
    means = []
    for n in (0, 10):
        result = baselines.lanpaint(
            model, task, num_inference_steps=20, langevin_steps=n, generator=generators(0)[0], progress=False
        )
        assert (result.x0[:, 0, 0, 0] == 0.3).all()  # its last property: the known part is y
        means.append(result.x0[:, 0, 0, 1].mean().item())
    assert means[0] + 0.005 < means[1] < 0.245


def test_psld_in_latent_space():
    """The known half comes nearer than without the task; the autoencoder's backward passes are not the network's."""
    model = fcs_lab.load("fashion", device="cpu")
    garments = fcs_lab.load_garments(2)[0]
    hidden = (torch.arange(32) >= 16).expand(32, 32)
    result = baselines.psld(
        model, fcs_lab.Inpainting(garments, hidden), num_inference_steps=20, generator=generators(0, 1), progress=False
    )
    assert result.nfe == result.n_backward == 20
    free = fcs_lab.sample(model, num_inference_steps=20, batch_size=2, generator=generators(0, 1), progress=False)
    known = [masked_mse(x.images, garments, ~hidden).mean() for x in (result, free)]
    assert known[0] < 0.5 * known[1]
    with pytest.raises(TypeError, match="expected a latent model, such as"):
        baselines.psld(tiny_denoiser(), fcs_lab.Inpainting(garments, hidden))


def test_the_smoothest_surface_is_a_plane_where_the_known_part_is_one():
    row = torch.linspace(-0.8, 0.8, 16)
    plane = (0.5 * row[:, None] + 0.5 * row).expand(2, 1, 16, 16)
    hidden = torch.zeros(16, 16, dtype=torch.bool)
    hidden[5:11, 4:12] = True
    result = baselines.biharmonic(None, fcs_lab.Inpainting(plane, hidden), progress=False)
    assert (result.images - plane).abs().max() < 1e-3 and result.nfe == 0


def test_total_variation_mends_steps_and_classical_deblurring_sharpens(digits):
    step = torch.where(torch.arange(16) < 8, -0.5, 0.5).expand(1, 1, 16, 16)
    hidden = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    result = baselines.total_variation(None, fcs_lab.Inpainting(step, hidden), weight=0.01, progress=False)
    assert masked_mse(result.images, step, hidden).mean() < 0.01
    kernel = torch.ones(5, 5) / 25
    blurred = fcs_lab.blur(digits, kernel)
    before = (blurred - digits).square().mean()
    for method, least in ((baselines.wiener, 0.7), (baselines.richardson_lucy, 0.2)):
        assert (method(None, fcs_lab.Blur(blurred, kernel), progress=False).images - digits).square().mean() < least * before
    small = fcs_lab.downsample(digits, 4)
    large = baselines.bicubic(None, fcs_lab.SuperResolution(small, 4), progress=False).images
    assert torch.equal(large, fcs_lab.upsample(small, 4))


def test_deep_image_prior_fits_what_is_known_image_by_image(digits, right_half):
    options = {"num_inference_steps": 60, "width": 8, "progress": False}
    both = baselines.deep_image_prior(
        None, fcs_lab.Inpainting(digits[:2], right_half), generator=generators(0, 1), **options
    )
    costs = torch.stack([entry.cost for entry in both.trace])
    assert len(costs) == 60 and (costs[-1] < 0.3 * costs[0]).all() and both.nfe == both.n_backward == 0
    for i in (0, 1):
        task = fcs_lab.Inpainting(digits[i : i + 1], right_half)
        alone = baselines.deep_image_prior(None, task, generator=generators(i), **options)
        assert (alone.images[0] - both.images[i]).abs().max() < 1e-3
    with pytest.raises(ValueError, match="generator holds 1 for 2 images"):
        baselines.deep_image_prior(None, fcs_lab.Inpainting(digits[:2], right_half), generator=generators(0))


def test_methods_without_a_model_say_what_they_take(digits, right_half, monkeypatch):
    task = fcs_lab.Inpainting(digits, right_half)
    with pytest.raises(TypeError, match=r"this method takes fcs_lab\.Blur"):
        baselines.wiener(None, task)
    with pytest.raises(TypeError, match=r"this method takes fcs_lab\.SuperResolution"):
        baselines.bicubic(None, task)
    with pytest.raises(ValueError, match="weight is -1; expected a number of at least 1e-06"):
        baselines.total_variation(None, task, weight=-1)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match='the extra "study"'):
        baselines.biharmonic(None, task)


def test_a_tuned_network_sees_the_known_part_and_nothing_else(digits, right_half):
    unet = tiny_unet(3, 1, size=32)
    model = fcs_lab.denoisers.InpaintingDenoiser(unet, DDIMScheduler(clip_sample=False))
    assert model.shape == (1, 32, 32)
    task = fcs_lab.Inpainting(digits, right_half)
    other = fcs_lab.Inpainting(torch.where(right_half, -digits, digits), right_half)
    third = fcs_lab.Inpainting(-digits, right_half)
    options = {"num_inference_steps": 3, "generator": torch.Generator(), "progress": False}
    runs = [
        baselines.tuned(model, one, **options | {"generator": generators(*range(len(digits)))})
        for one in (task, other, third)
    ]
    assert torch.equal(runs[0].x0, runs[1].x0) and not torch.allclose(runs[0].x0, runs[2].x0, atol=1e-3)
    assert torch.equal(runs[0].images[..., :16], digits[..., :16]) and runs[0].nfe == 3
    with pytest.raises(TypeError, match="expected one that is tuned to inpainting"):
        baselines.tuned(tiny_denoiser(), task)
    with pytest.raises(TypeError, match=r"a tuned model takes fcs_lab\.Inpainting"):
        baselines.tuned(model, fcs_lab.SuperResolution(digits, 2))


def test_the_bundled_tuned_model(digits, right_half):
    """At 20 evaluations better than the unconditional 0.4; and told nothing, it is a denoiser like another."""
    model = fcs_lab.load("mnist-inpainting", device="cpu")
    result = baselines.tuned(
        model, fcs_lab.Inpainting(digits, right_half), generator=generators(*range(len(digits))), progress=False
    )
    assert result.nfe == 20 and masked_mse(result.images, digits, right_half).mean() < 0.3
    free = fcs_lab.sample(model, num_inference_steps=10, batch_size=2, generator=generators(0, 1), progress=False)
    assert free.images.std() > 0.3


def test_a_tuned_pipeline_of_diffusers():
    parts = tiny.sd().components | {"unet": UNet2DConditionModel.from_config(tiny.unet().config, in_channels=9)}
    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(2, 3, 32, 32, generator=generators(0)[0]) * 2 - 1
    mask = (torch.arange(32) >= 16).expand(32, 32)
    task = fcs_lab.Inpainting(image, mask)
    result = baselines.tuned(pipe, task, num_inference_steps=3, prompt=["a dress", "a coat"], generator=generators(0, 1))
    assert result.images.shape == (2, 3, 32, 32) and result.nfe == 3
    assert torch.equal(result.images[..., :16], image[..., :16])
