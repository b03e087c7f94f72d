import numpy as np
import pytest
import torch

import fcs_lab

F64 = torch.float64


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * 1.6 - 0.8


def all_constraints():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:] = True
    matrix = random(5, 64, seed=3)
    return {
        "inpainting": fcs_lab.Inpainting(random(2, 1, 8, 8), mask),
        "super-resolution": fcs_lab.SuperResolution(random(2, 1, 4, 4), 2),
        "linear": fcs_lab.LinearConstraint(
            lambda x: x.flatten(1) @ matrix.T, lambda y: (y @ matrix).reshape(-1, 1, 8, 8), random(2, 5, seed=4)
        ),
        "cost": fcs_lab.CostConstraint(lambda x: (x.sin().flatten(1).sum(1) - 1).square()),
    }


@pytest.mark.parametrize("name", all_constraints())
def test_error_is_the_negative_gradient_of_the_cost(name):
    constraint = all_constraints()[name]
    x0 = random(2, 1, 8, 8, seed=7).requires_grad_()
    gradient = torch.autograd.grad(constraint.cost(x0).sum(), x0)[0]
    assert torch.allclose(constraint.error(x0.detach()), -gradient, atol=1e-12)


def test_inpainting_pulls_known_pixels_only():
    image, mask = random(1, 1, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    e = fcs_lab.Inpainting(image, mask).error(torch.zeros_like(image))
    assert torch.equal(e[..., :4], image[..., :4])
    assert not e[..., 4:].any()


def test_what_lies_under_the_mask_has_no_influence():
    image, mask = random(1, 1, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    other = image.clone()
    other[..., 4:] = 0.3
    x0 = random(1, 1, 8, 8, seed=9)
    assert torch.equal(fcs_lab.Inpainting(image, mask).error(x0), fcs_lab.Inpainting(other, mask).error(x0))


def test_super_resolution_reduces_as_torch_does():
    x = random(2, 3, 24, 16)
    expected = torch.nn.functional.interpolate(x, size=(6, 4), mode="bicubic", antialias=True)
    constraint = fcs_lab.SuperResolution(torch.zeros(2, 3, 6, 4, dtype=F64), 4)
    assert torch.allclose(constraint.A(x), expected, atol=1e-12)
    assert constraint.shape == (3, 24, 16)


def test_to_moves_everything():
    for constraint in all_constraints().values():
        if constraint.shape is not None and not isinstance(constraint.A, type(lambda: 0)):
            moved = constraint.to(torch.device("cpu"), torch.float32)
            assert moved.error(torch.zeros(2, 1, 8, 8)).dtype == torch.float32
            assert constraint.error(torch.zeros(2, 1, 8, 8, dtype=F64)).dtype == F64


def test_one_mask_for_each_image():
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[0, :, :, 4:] = masks[1, :, 4:] = True
    e = fcs_lab.Inpainting(random(2, 1, 8, 8), masks).error(torch.zeros(2, 1, 8, 8, dtype=F64))
    assert torch.equal(e == 0, masks)


def test_a_cost_that_is_one_number_is_taken_image_by_image():
    """The square of a sum does not separate over a batch: the images must not see each other."""
    x0 = random(3, 1, 8, 8)
    single = fcs_lab.CostConstraint(lambda x: x.sum().square())
    assert torch.allclose(single.cost(x0), x0.flatten(1).sum(1).square())
    assert torch.allclose(single.error(x0), -2 * x0.flatten(1).sum(1).reshape(3, 1, 1, 1).expand_as(x0))


HALF = np.zeros((8, 8), dtype=bool)
HALF[:, 4:] = True


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fcs_lab.Inpainting(random(1, 1, 8, 8), HALF[:6]), "mask is 6×8.*image 8×8"),
        (lambda: fcs_lab.Inpainting(random(1, 1, 8, 8), HALF & False), "mask is empty"),
        (lambda: fcs_lab.Inpainting(random(1, 1, 8, 8), HALF | True), "mask is full"),
        (lambda: fcs_lab.Inpainting(random(1, 1, 8, 8), HALF * 0.4), "not binary"),
        (lambda: fcs_lab.Inpainting(random(3, 1, 8, 8), torch.from_numpy(HALF).expand(2, 1, 8, 8)), "2 masks for 3 images"),
        (lambda: fcs_lab.Inpainting(random(1, 1, 8, 8) * torch.nan, HALF), "NaN"),
        (lambda: fcs_lab.Inpainting(random(1, 1, 8, 8) * 9, HALF), "values in"),
        (lambda: fcs_lab.SuperResolution(random(1, 1, 8, 8), 1), "factor is 1"),
        (lambda: fcs_lab.SuperResolution(random(1, 1, 8, 8), 1.5), "factor is 1.5"),
        (lambda: fcs_lab.LinearConstraint(lambda x: x, lambda y: 2 * y, random(1, 1, 8, 8)), "not the transpose"),
        (lambda: fcs_lab.LinearConstraint(lambda x: x[..., :4], lambda y: y, random(1, 1, 8, 8)), "A yields shape"),
        (lambda: fcs_lab.LinearConstraint(lambda x: x, lambda y: y, random(1, 4) / 0), "y has NaN or infinite"),
        (lambda: fcs_lab.CostConstraint(lambda x: x.sum(1)).error(random(2, 1, 8, 8)), "costs of 2 images"),
        (lambda: fcs_lab.CostConstraint(lambda x: x.detach().flatten(1).sum(1)).error(random(2, 1, 8, 8)), "differentiably"),
    ],
)
def test_wrong_values_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="fn is 3"):
        fcs_lab.CostConstraint(3)
    with pytest.raises(TypeError, match="y is"):
        fcs_lab.LinearConstraint(lambda x: x, lambda y: y, [1.0])
