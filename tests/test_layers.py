import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import generators, tiny_denoiser
from PIL import Image

import fcs_lab
from fcs_lab.baselines.clustering import cluster_layers
from fcs_lab.composites import make_composites, supports
from fcs_lab.layered import LayeredComposite
from fcs_lab.layers import infer_masks
from fcs_lab.metrics import layer_psnr, mask_iou, psnr

F64 = torch.float64
SHORT = {"num_inference_steps": 3, "inner_steps": 2, "progress": False}


@pytest.fixture
def pair():
    """Two 8×8 images that are the whole data set of an exact denoiser, the mask of the first, and their composite."""
    generator = torch.Generator().manual_seed(3)
    images = 1.6 * (torch.rand(2, 1, 8, 8, generator=generator) < 0.5).to(F64) - 0.8
    mask = torch.zeros(8, 8, dtype=F64)
    mask[:, :4] = 1
    composite = mask * images[:1] + (1 - mask) * images[1:]
    return images, torch.stack([mask, 1 - mask]), composite, fcs_lab.IdealDenoiser(images)


def composites(count, K=2, seed=5):
    return make_composites(*fcs_lab.load_digits(64), count, K, kind="stroke", seed=seed)


@pytest.mark.parametrize("direction", ["newton", "gradient"])
def test_two_known_images_come_apart_exactly(pair, direction):
    """From most noises: x_T alone breaks the tie between the layers, and may fail to."""
    images, masks, composite, model = pair
    result = fcs_lab.infer_layers(
        model,
        composite.expand(8, -1, -1, -1),
        direction=direction,
        temperature=(0.03, 0.02),
        generator=generators(*range(8)),
        progress=False,
    )
    exact = layer_psnr(result.layers, images.expand(8, -1, -1, -1, -1)) > 60
    assert exact.sum() >= 6
    found = mask_iou(result.masks, masks.expand(8, -1, -1, -1), images.expand(8, -1, -1, -1, -1))
    assert bool((found[exact] == 1).all())
    assert torch.allclose(result.masks.sum(1), torch.ones(8, 8, 8, dtype=F64))
    assert result.completed and len(result.mask_trace) == 10


def test_one_layer_is_the_composite(mnist, digits):
    result = fcs_lab.infer_layers(mnist, digits[:1], 1, num_inference_steps=4, inner_steps=5, progress=False)
    assert (result.layers - digits[:1]).square().mean() < 0.02
    assert bool((result.masks == 1).all())


def test_with_fixed_true_masks_the_layers_meet_the_composite(mnist):
    made = composites(1)
    result = fcs_lab.infer_layers(
        mnist,
        made.images,
        masks=made.masks,
        generator=generators(0)[0],
        num_inference_steps=5,
        inner_steps=5,
        progress=False,
    )
    assert torch.equal(result.masks, made.masks[0])
    seen = made.masks[0, :, None]
    assert (seen * (result.layers - made.layers[0])).square().sum() / seen.sum() < 0.02
    assert all(torch.equal(masks, made.masks[0]) for masks in result.mask_trace)


def test_fixed_soft_masks_blend():
    """e is the gradient of ½‖y − Σ m x‖², by autograd; of inferred masks it is that of ½ Σ m (y − x)²."""
    generator = torch.Generator().manual_seed(0)
    y, x = (torch.randn(2, *shape, generator=generator, dtype=F64) for shape in ((3, 4, 4), (3, 3, 4, 4)))
    masks = torch.rand(2, 3, 4, 4, generator=generator, dtype=F64).softmax(1)
    known = {1: x[:, 1]}
    sampled = x[:, [0, 2]].flatten(0, 1).requires_grad_()
    layers = torch.stack([sampled[0::2], x[:, 1], sampled[1::2]], 1)
    weights = masks[:, :, None]
    blend = (y - (weights * layers).sum(1)).square().sum() / 2
    doubt = (weights * (y[:, None] - layers).square())[:, [0, 2]].sum() / 2
    for fixed, cost in ((True, blend), (False, doubt)):
        task = LayeredComposite(y, masks, known, fixed=fixed)
        found, error = task.cost_and_error(sampled.detach())
        (gradient,) = torch.autograd.grad(cost, sampled)
        assert torch.allclose(error, -gradient)
        assert math.isclose(found.sum().item() / (2 if fixed else 1), cost.item())


def test_the_masks_minimise_their_free_energy():
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, 4, 4, generator=generator, dtype=F64)
    layers = torch.rand(1, 3, 1, 4, 4, generator=generator, dtype=F64)
    tau = 0.05

    def energy(m):
        return (m * ((y[:, None] - layers).square()[:, :, 0] / 2 + tau * m.log())).sum()

    best = infer_masks(y, layers, tau)
    assert torch.allclose(best.sum(1), torch.ones(1, 4, 4, dtype=F64))
    for seed in range(5):
        other = (best.log() + 0.1 * torch.randn(best.shape, generator=generators(seed)[0], dtype=F64)).softmax(1)
        assert energy(best) < energy(other)


def test_scribbles_are_obeyed_and_heard_next_door():
    y, layers = torch.zeros(1, 1, 9, 9), torch.zeros(1, 2, 1, 9, 9)
    scribbles = torch.full((1, 9, 9), -1)
    scribbles[0, 4, 4] = 1
    masks = infer_masks(y, layers, 0.1, 1.0, scribbles)
    assert masks[0, 1, 4, 4] == 1 and masks[0, 0, 4, 4] == 0
    assert masks[0, 1, 4, 5] > 0.6
    assert abs(masks[0, 1, 0, 0] - 0.5) < 0.01


def test_scribbles_say_which_layer_is_which(pair):
    images, _, composite, model = pair
    for first in (0, 1):
        scribbles = np.full((8, 8), -1)
        scribbles[1:7, 1], scribbles[1:7, 6] = first, 1 - first
        result = fcs_lab.infer_layers(model, composite, scribbles=scribbles, generator=generators(0)[0], progress=False)
        assert psnr(result.layers[[first, 1 - first]], images).min() > 60
        for found in result.mask_trace:
            assert bool((found[first, 1:7, 1] == 1).all()) and bool((found[1 - first, 1:7, 6] == 1).all())


def test_of_several_starts_the_one_that_explains_best_is_kept(pair):
    composite, model = pair[2:]
    both = torch.cat([composite, composite.flip(0)])
    seeds = [torch.randint(2**62, (3,), generator=one).tolist() for one in generators(5, 6)]
    alone = [
        [fcs_lab.infer_layers(model, y[None], generator=torch.Generator().manual_seed(seed), **SHORT) for seed in row]
        for y, row in zip(both, seeds, strict=True)
    ]
    result = fcs_lab.infer_layers(model, both, starts=3, generator=generators(5, 6), **SHORT)
    assert result.costs.shape == (2, 3) and result.nfe == 3 * alone[0][0].nfe
    for b, row in enumerate(alone):
        assert torch.allclose(result.costs[b], torch.stack([one.costs[0, 0] for one in row]), rtol=1e-6)
        best = min(row, key=lambda one: one.costs.item())
        assert torch.allclose(result.layers[b], best.layers) and torch.allclose(result.masks[b], best.masks)
        assert torch.allclose(result.mask_trace[-1][b], best.mask_trace[-1])
        # The cost is what is left of y, by its definition.
        left = (best.masks[:, None] * (both[b] - best.layers).square()).sum() / 2
        assert best.costs.item() == pytest.approx(left.item())
    single = fcs_lab.infer_layers(model, both[:1], starts=3, generator=generators(5)[0], **SHORT)
    assert single.layers.shape == (2, 1, 8, 8) and torch.allclose(single.layers, result.layers[0])
    with pytest.raises(ValueError, match="starts is 0"):
        fcs_lab.infer_layers(model, composite, starts=0, **SHORT)


def test_a_known_layer_is_kept_and_the_other_found(pair):
    images, masks, composite, model = pair
    result = fcs_lab.infer_layers(model, composite, known_layers={1: images[:1]}, generator=generators(0)[0], progress=False)
    assert torch.equal(result.layers[1], images[0])
    assert psnr(result.layers[:1], images[1:]) > 60
    assert len(result.trace[0].cost) == 1  # only the other was sampled
    assert mask_iou(result.masks[None], masks[None], images[None]) == 1


@pytest.mark.parametrize("direction", ["newton", "gradient", "identity"])
def test_a_composite_does_not_depend_on_its_neighbours(direction):
    model = tiny_denoiser()
    y = torch.rand(3, *model.shape, generator=generators(0)[0], dtype=F64) * 1.6 - 0.8
    together = fcs_lab.infer_layers(model, y, direction=direction, generator=generators(0, 1, 2), **SHORT)
    assert together.layers.shape == (3, 2, 1, 8, 8) and together.masks.shape == (3, 2, 8, 8)
    for i in (0, 2):
        alone = fcs_lab.infer_layers(model, y[i : i + 1], direction=direction, generator=generators(i)[0], **SHORT)
        assert torch.allclose(alone.layers, together.layers[i], atol=1e-6, rtol=0)
        assert torch.allclose(alone.masks, together.masks[i], atol=1e-6, rtol=0)


def test_evaluations_are_those_of_the_sampler(pair):
    _, _, composite, model = pair
    for direction, nfe, backward in (("newton", 15, 0), ("gradient", 9, 6), ("identity", 9, 0)):
        result = fcs_lab.infer_layers(model, composite, 3, direction=direction, **SHORT)
        assert (result.nfe, result.n_backward) == (nfe, backward)


def test_a_callback_sees_the_layers_and_may_end_the_run(pair):
    _, _, composite, model = pair
    seen = []

    def callback(state, step, t, tensors):
        seen.append(tensors)
        state.interrupt = step == 1

    result = fcs_lab.infer_layers(model, composite, callback_on_step_end=callback, **SHORT)
    assert not result.completed and len(seen) == len(result.mask_trace) == 2
    assert seen[0]["layers"].shape == (2, 1, 8, 8) and seen[0]["masks"].shape == (2, 8, 8)
    assert torch.equal(seen[1]["masks"], result.mask_trace[1])


def test_recomposing(pair):
    images, masks, composite, model = pair
    result = fcs_lab.infer_layers(model, composite, masks=masks, known_layers={0: images[:1]}, **SHORT)
    result.layers[1] = images[1]
    assert torch.allclose(result.compose(), composite[0], atol=0.01)
    for k in (0, 1):
        assert torch.allclose(result.compose(visible=[k]), images[k])
    moved = result.compose(shifts={0: (0, 2)})
    assert torch.allclose(moved[:, :, 6:], images[1][:, :, 6:], atol=0.01)  # the second layer, where the first is not
    assert torch.allclose(moved[:, :, :2], images[1][:, :, :2], atol=0.01)  # and where it was
    with pytest.raises(ValueError, match="visible"):
        result.compose(visible=[2])
    with pytest.raises(ValueError, match="shifts"):
        result.compose(shifts={0: (0.5, 0)})


def bad(**arguments):
    return arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(num_layers=0), ValueError, "num_layers is 0"),
        (bad(num_layers=1.5), ValueError, "num_layers"),
        (bad(num_layers=65), ValueError, "num_layers is 65; expected a whole number, 1 to the composite's 64 pixels"),
        (bad(composite=torch.rand(1, 3, 8, 8)), ValueError, "composite is in colour"),
        (bad(composite=torch.full((1, 1, 8, 8), math.nan)), ValueError, "composite has NaN"),
        (bad(composite=torch.zeros(1, 1, 8, 6)), ValueError, "8×6"),
        (bad(masks=torch.full((2, 8, 8), 0.6)), ValueError, "masks sum to between 1.2"),
        (bad(masks=torch.full((3, 8, 8), 1 / 3)), ValueError, "masks has shape"),
        (bad(masks=torch.stack([torch.full((8, 8), 1.5), torch.full((8, 8), -0.5)])), ValueError, "masks has values"),
        (bad(masks=torch.full((2, 8, 8), 0.5), scribbles=torch.zeros(8, 8).long()), ValueError, "masks and scribbles"),
        (bad(scribbles=torch.zeros(8, 8)), TypeError, "scribbles is of torch.float32"),
        (bad(scribbles=torch.full((8, 8), 2)), ValueError, "scribbles has values"),
        (bad(scribbles=torch.zeros(4, 4).long()), ValueError, "scribbles has shape"),
        (bad(known_layers={2: torch.zeros(1, 1, 8, 8)}), ValueError, "known_layers has layer 2"),
        (bad(known_layers={0: torch.zeros(1, 1, 4, 8)}), ValueError, r"known_layers\[0\] has shape"),
        (bad(known_layers=dict.fromkeys((0, 1), torch.zeros(1, 1, 8, 8))), ValueError, "all 2 layers"),
        (bad(known_layers=[torch.zeros(1, 1, 8, 8)]), TypeError, "known_layers is a list"),
        (bad(prompts=["a", "b"]), ValueError, "prompts is .* unconditional"),
        (bad(guidance_scale=2.0), ValueError, "guidance_scale is 2.0"),
        (bad(temperature=0.1), ValueError, "temperature is 0.1"),
        (bad(temperature=(0.1, 0.0)), ValueError, "temperature"),
        (bad(smoothness=-1), ValueError, "smoothness is -1"),
        (bad(generator=generators(0, 1)), ValueError, "generator is .* each of 1 composites"),
        (bad(direction="newtom"), ValueError, "direction is 'newtom'"),
        (bad(model="mnist"), TypeError, "fcs_lab.load"),
    ],
)  # fmt: skip
def test_bad_input(pair, arguments, error, message):
    _, _, composite, model = pair
    with pytest.raises(error, match=message):
        fcs_lab.infer_layers(**{"model": model, "composite": composite, **SHORT} | arguments)


def test_composites_of_a_colour_model():
    """Grey will do, and transparency lies on white; a prompt too many or too few and an unknown word are told."""
    model, settings = fcs_lab.load("emoji", device="cpu"), {"num_inference_steps": 1, "inner_steps": 0, "progress": False}
    clear = Image.new("RGBA", (64, 64), (200, 30, 30, 0))
    on_white = fcs_lab.infer_layers(model, Image.new("L", (64, 64), 255), generator=generators(0)[0], **settings)
    assert torch.equal(fcs_lab.infer_layers(model, clear, generator=generators(0)[0], **settings).layers, on_white.layers)
    for prompts in (["red apple, noto"], ["red apple, noto", "banana, noto", "star, noto"]):
        with pytest.raises(ValueError, match=f"prompts holds {len(prompts)} prompts; expected one for each of 2 layers"):
            fcs_lab.infer_layers(model, clear, prompts=prompts, **settings)
    with pytest.warns(UserWarning, match="never saw 'quux'"):
        fcs_lab.infer_layers(model, clear, prompts=["quux, noto", "star, noto"], **settings)
    with pytest.raises(ValueError, match="composite has 4 channels"):
        fcs_lab.infer_layers(model, torch.zeros(1, 4, 64, 64), **settings)


def test_a_latent_model_takes_a_prompt_for_each_layer():
    model = fcs_lab.load("fashion", device="cpu")
    made = make_composites(*fcs_lab.load_garments(64), 2, 2, kind="silhouette", seed=1)
    words = [["a photo of a sneaker", "a photo of a coat"], ["a photo of a bag", "a photo of trousers"]]
    settings = {"num_inference_steps": 2, "inner_steps": 1, "guidance_scale": 2.0, "progress": False}
    result = fcs_lab.infer_layers(model, made.images, prompts=words, generator=generators(0, 1), **settings)
    assert result.layers.shape == (2, 2, 1, 32, 32) and result.masks.shape == (2, 2, 32, 32)
    assert (result.nfe, result.n_backward) == (6, 0)
    alone = fcs_lab.infer_layers(model, made.images[1:], prompts=words[1], generator=generators(1)[0], **settings)
    assert torch.allclose(alone.layers, result.layers[1], atol=5e-3)
    assert model.prompt == ""  # the caller's model is left as it was
    with pytest.raises(ValueError, match="prompts holds 3 prompts; expected one for each of 2 layers"):
        fcs_lab.infer_layers(model, made.images, prompts=["a", "b", "c"], progress=False)
    with pytest.raises(ValueError, match="prompts holds 1 lists; expected one for each of 2 composites"):
        fcs_lab.infer_layers(model, made.images, prompts=[["a", "b"]], progress=False)
    with pytest.raises(TypeError, match="prompts is 'a photo'"):
        fcs_lab.infer_layers(model, made.images, prompts="a photo", progress=False)
    with pytest.raises(ValueError, match="nearest is 32×32"):
        fcs_lab.infer_layers(model, torch.zeros(1, 1, 31, 32), progress=False)


def test_the_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    path = Path(__file__).parents[1] / "figures" / "tab03_layers.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    monkeypatch.setattr("sys.argv", [str(path)])
    settings = {"num_inference_steps": 2, "inner_steps": [0, 1]}
    for name, value in {"MODELS": {"digits": "mnist"}, "LAYERS": (2,), "COMPOSITES": 3, "BATCH": 2}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "SETTINGS", settings)
    done = tmp_path / "runs" / "done.jsonl"
    study.main(tmp_path, done)
    first, lines = (tmp_path / "tab03_layers.json").read_text(), done.read_text().splitlines()
    assert len(lines) == 1 + 2 * 4
    done.write_text("\n".join(lines[:3]) + "\n")
    study.main(tmp_path, done)
    again = json.loads((tmp_path / "tab03_layers.json").read_text())
    assert again["numbers"] == json.loads(first)["numbers"]
    assert again["numbers"]["digits"]["2"]["newton"]["nfe"] == 4
    assert len(done.read_text().splitlines()) == 1 + 2 * 4
    monkeypatch.setitem(settings, "num_inference_steps", 3)
    with pytest.raises(ValueError, match="made with other settings"):
        study.main(tmp_path, done)


def test_clustering_cuts_two_squares_apart():
    pytest.importorskip("sklearn")
    layers = torch.full((1, 2, 1, 16, 16), -1.0)
    layers[0, 0, 0, 2:6, 2:6], layers[0, 1, 0, 10:14, 9:14] = 0.5, 1.0
    found, masks = cluster_layers(layers.amax(1), 2)
    assert torch.equal(masks.sum(1), torch.ones(1, 16, 16))
    assert layer_psnr(found, layers) == math.inf


def test_composites_are_what_they_say():
    for K in (2, 3):
        made = composites(4, K)
        assert torch.equal((made.masks[:, :, None] * made.layers).sum(1), made.images)
        assert torch.equal(made.masks.sum(1), torch.ones(4, 32, 32)) and set(made.masks.unique().tolist()) == {0, 1}
        ink = made.layers.amax(2) > -0.9
        visible = (ink & (made.masks > 0)).sum((2, 3)) / ink.sum((2, 3))
        assert visible.min() >= 0.4
        assert bool(((ink & (made.masks == 0)).sum((2, 3))[:, 1:] > 0).all())  # the lower ones are partly hidden
        assert all(len(set(labels)) == K for labels in made.labels.tolist())
    assert torch.equal(composites(2).images, composites(4).images[:2])
    with pytest.raises(ValueError, match="min_visible"):
        make_composites(*fcs_lab.load_digits(4), 1, 4, kind="stroke", max_shift=0, min_visible=0.99)


def test_supports():
    ring = torch.full((1, 1, 9, 9), -1.0)
    ring[0, 0, 2:7, 2:7], ring[0, 0, 3:6, 3:6] = 1.0, -1.0
    assert supports(ring, "stroke").sum() == 7 * 7 - 1 and supports(ring, "silhouette").sum() == 25


def test_scores_do_not_depend_on_the_order_of_the_layers():
    made = composites(3, 3)
    order = [2, 0, 1]
    assert mask_iou(made.masks[:, order], made.masks, made.layers).tolist() == [1, 1, 1]
    noisy = made.layers + 0.02 * torch.randn(made.layers.shape, generator=generators(0)[0])
    assert torch.allclose(layer_psnr(noisy[:, order], made.layers), torch.full((3,), 10 * math.log10(4 / 0.0004)), atol=0.2)
    assert math.isclose(psnr(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item(), 10 * math.log10(4), rel_tol=1e-6)
    everything = torch.zeros_like(made.masks)
    everything[:, 0] = 1
    counted = ((made.layers.amax(1) - made.layers.amin(1)).amax(1) > 0.1)[:, None]
    largest = (made.masks * counted).sum((2, 3)).amax(1) / counted.sum((1, 2, 3))
    assert torch.allclose(mask_iou(everything, made.masks, made.layers), (largest / 3).double())
