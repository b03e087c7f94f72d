"""`diagnose`: each fault, planted, is found by its name; and the bundled models at their defaults have none that is bad."""

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DDIMScheduler

import fcs_lab
from fcs_lab.directions import CountedDenoiser
from fcs_lab.exact import GaussianMixtureDenoiser
from fcs_lab.latent_space import LatentInpainting
from fcs_lab.study.tasks import pose

DATA = {"mnist": fcs_lab.load_digits, "fashion": fcs_lab.load_garments, "emoji": fcs_lab.load_emoji}
CHECKS = ["fd_step", "symmetry", "step_size", "invertibility", "distribution", "leakage", "range", "cost"]


def half(images):
    return pose("right-half", images, range(len(images))).constraint


@pytest.fixture(scope="module")
def digit():
    return fcs_lab.load_digits(1)[0]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("task", ["right-half", "sr4", "deblur"])
def test_nothing_is_bad_at_the_defaults_of_the_bundled_models(name, task):
    images = DATA[name](3)[0][2:]  # not those that the limits were read off
    found = fcs_lab.diagnose(fcs_lab.load(name, device="cpu"), pose(task, images, [0]).constraint)
    expected = [check for check in CHECKS if check != "leakage" or (name != "mnist" and task == "right-half")]
    assert [finding.check for finding in found] == expected
    assert not [finding for finding in found if finding.verdict == "bad"]


def test_the_faults_of_settings_are_named(mnist, digit):
    for settings, check in (
        ({"fd_step": 50.0}, "fd_step"),
        ({"step_size": 20.0}, "step_size"),
        ({"step_size": 1e-4}, "step_size"),
    ):
        found = fcs_lab.diagnose(mnist, half(digit), **settings)
        fault = "doubtful" if settings.get("step_size") == 1e-4 else "bad"
        assert found[check].verdict == fault and found[check].advice, settings
        others = {finding.check for finding in found if finding.verdict == "bad"} - {check}
        assert others <= ({"invertibility"} if settings.get("step_size") == 20.0 else set())


def test_a_small_h_in_half_precision():
    garment = fcs_lab.load_garments(1)[0]
    model = fcs_lab.load("fashion", device="cpu", torch_dtype=torch.bfloat16)
    found = fcs_lab.diagnose(model, half(garment), fd_step=0.001)
    assert found["fd_step"].verdict == "bad" and "drown in rounding" in found["fd_step"].advice
    assert fcs_lab.diagnose(model, half(garment))["fd_step"].verdict != "bad"


def test_images_that_are_none_of_the_models(mnist, digit):
    images = fcs_lab.load_digits(8)[0]
    inverted = [fcs_lab.diagnose(mnist, half(-image[None]))["distribution"] for image in images[:4]]
    assert [finding.verdict for finding in inverted] == ["bad"] * 4
    both = fcs_lab.diagnose(mnist, half(torch.cat([digit, -digit])))["distribution"]
    assert both.verdict == "bad", "the worst of a batch"


class Bytes(fcs_lab.CostConstraint):
    """Inpainting of a user's own, who forgot to scale the image."""

    def __init__(self, image, known):
        self.y, self.known = image, known
        super().__init__(lambda x0: ((known * (x0 - image)) ** 2).flatten(1).sum(1) / 2)

    def A(self, x):
        return self.known * x

    def pinv(self, v):
        return v


def test_values_of_another_range(mnist, digit):
    known = torch.ones_like(digit)
    known[..., 16:] = 0
    assert fcs_lab.diagnose(mnist, Bytes(127.5 * digit + 127.5, known))["range"].verdict == "bad"
    unit = fcs_lab.diagnose(mnist, Bytes(digit / 2 + 0.5, known))["range"]
    assert unit.verdict == "doubtful" and "[0, 1]" in unit.advice
    assert fcs_lab.diagnose(mnist, Bytes(digit, known))["range"].verdict == "ok"


def test_an_encoder_that_mixes_all_pixels_leaks():
    model, garment = fcs_lab.load("fashion", device="cpu"), fcs_lab.load_garments(1)[0]
    encode = model.encode
    model.encode = lambda images: encode(images) + 5 * images.mean((1, 2, 3), keepdim=True)
    assert fcs_lab.diagnose(model, half(garment))["leakage"].verdict == "bad"
    model.encode = lambda images: torch.nn.functional.avg_pool2d(images, 4).expand(-1, 4, -1, -1) / 2  # each cell by itself
    found = fcs_lab.diagnose(model, half(garment))["leakage"]
    assert found.values["change"] == 0 and found.verdict == "ok"


def test_against_a_denoiser_whose_jacobian_is_known():
    """Of x_0 ~ N(0, c² I) J is a multiple of the identity: symmetric, linear everywhere, and calibrated."""
    c, scheduler = 0.5, DDIMScheduler(clip_sample=False)
    shape = (1, 8, 8)
    model = GaussianMixtureDenoiser(torch.zeros(1, *shape), c**2, scheduler=scheduler)
    images = c * torch.randn(64, *shape, generator=torch.Generator().manual_seed(0)).clamp(-1.9, 1.9)
    known = torch.ones(1, 1, 8, 8)
    known[..., 4:] = 0
    task = Bytes(images, known)
    task.batch_size = 64
    found = fcs_lab.diagnose(model, task, step_size=0.01)
    assert found["symmetry"].values["cosine"] == pytest.approx(1, abs=1e-4)
    assert found["fd_step"].values["cosine"] == pytest.approx(1, abs=1e-4)
    assert found["invertibility"].values["radius"] == float("inf")
    scheduler.set_timesteps(6)
    gains = [float(model(torch.ones(1, *shape), t).mean()) for t in scheduler.timesteps[2:4]]
    assert min(gains) * 0.999 <= found["step_size"].values["mu_max"] <= max(gains) * 1.001
    # What comes out is an image of the model's; of six times its contrast it is none.
    task = Bytes(6 * images, known)
    task.batch_size = 64
    wide = fcs_lab.diagnose(model, task, step_size=0.01)
    assert found["distribution"].values["ratio"] < 3 < wide["distribution"].values["ratio"]


def test_evaluations_are_counted(mnist, digit, monkeypatch):
    seen, call = [0], CountedDenoiser.__call__

    def counted(self, x_t, t):
        seen[0] += 1
        return call(self, x_t, t)

    monkeypatch.setattr(CountedDenoiser, "__call__", counted)
    found = fcs_lab.diagnose(mnist, half(digit))
    # Two products by forward mode, each two; two backward passes, whose own evaluations are among those seen.
    assert found.evaluations == seen[0] + 2 * 2 + 2 and found.evaluations < 60
    assert len(found) == 7 and found["cost"].values["evaluations"] == 220
    with pytest.raises(KeyError, match="'costs'; made were 'fd_step', "):
        found["costs"]


def test_through_a_pipeline():
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    photograph = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 32, 48, dtype=torch.bool)
    mask[..., 24:] = True
    asked = {"prompt": "a red house", "height": 32, "width": 48, "inner_steps": 3, "num_inference_steps": 10}
    found = fcs_lab.diagnose(pipe, fcs_lab.Inpainting(photograph, mask), **asked)
    assert [finding.check for finding in found] == [check for check in CHECKS if check != "symmetry"]
    assert found.evaluations == 40 and found["cost"].values["evaluations"] == 10 * 7
    assert "by h/2" in found["fd_step"].told
    assert (
        fcs_lab.diagnose(pipe, fcs_lab.Inpainting(photograph, mask), **asked, step_size=500.0)["step_size"].verdict == "bad"
    )


def test_the_report_and_the_figure(mnist, digit):
    found = fcs_lab.diagnose(mnist, half(digit), step_size=20.0)
    report = str(found)
    assert all(finding.told in report and finding.advice in report for finding in found)
    drawn = [text.get_text() for text in found.plot().axes[0].texts]
    assert [text.strip() for text in drawn].count("bad") == 2 and "step_size" in drawn


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"task": None}, "task is None; expected a constraint"),
        ({"task": 3}, "task is 3; expected a constraint"),
        ({"prompt": "a"}, "prompt is given; with a denoiser"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"direction": "down"}, "direction is 'down'"),
        ({"step_size": float("nan")}, "step_size is nan|step_size gives nan"),
        ({"seed": -1}, "seed is -1"),
        ({"inner_steps": -1}, "inner_steps is -1"),
    ],
)
def test_what_is_refused_before_any_work(mnist, digit, change, error, monkeypatch):
    monkeypatch.setattr(CountedDenoiser, "__call__", lambda *_: pytest.fail("evaluated"))
    with pytest.raises((TypeError, ValueError), match=error):
        fcs_lab.diagnose(mnist, **{"task": half(digit)} | change)


def test_a_denoiser_without_derivatives(mnist, digit):
    class Compiled:
        scheduler, shape, device, dtype = mnist.scheduler, mnist.shape, mnist.device, mnist.dtype

        @torch.inference_mode()
        def __call__(self, x_t, t):
            return mnist(x_t, t)

    found = fcs_lab.diagnose(Compiled(), half(digit))
    assert "symmetry" not in [finding.check for finding in found] and "by h/2" in found["fd_step"].told


def test_a_latent_mask_keeps_its_image():
    """`leakage` looks at what the task was made from."""
    model, garment = fcs_lab.load("fashion", device="cpu"), fcs_lab.load_garments(1)[0]
    task = LatentInpainting(garment, half(garment).mask, model)
    assert "leakage" in [finding.check for finding in fcs_lab.diagnose(model, task)]
