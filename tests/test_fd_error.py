import numpy as np
import pytest
import torch
from conftest import Opaque, tiny_denoiser

import fcs_lab
from fcs_lab.probes import FdError, measure_fd_error, suggest_fd_step
from fcs_lab.probes.fd_error import in_precision

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
T = 300


def point(denoiser, seed=0, dtype=F64):
    return torch.randn(1, *denoiser.shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def masked(mnist, t=500, digit=0):
    """The bundled model's (x_t, e) half-way: a noised digit, and its error on the left half."""
    truth = fcs_lab.load_digits(digit + 1)[0][digit:]
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(digit))
    x_t = mnist.scheduler.add_noise(truth, noise, torch.tensor([t]))
    known = torch.ones_like(truth)
    known[..., 16:] = 0
    with torch.no_grad():
        return x_t, known * (truth - mnist(x_t, t))


@pytest.fixture
def linear():
    """One Gaussian: x̂_0 is affine in x_t, so that a difference has no truncation at all."""
    return fcs_lab.GaussianMixtureDenoiser(torch.ones(1, 1, 2, 3, dtype=F64), torch.diag(torch.arange(1.0, 7)).to(F64)[None])


def test_the_truth_is_the_closed_form(mixture):
    x_t, e = point(mixture), point(mixture, 1)
    found = measure_fd_error(mixture, x_t, T, e, dtypes=[F64], h=[1e-6])
    assert torch.allclose(found.Je.flatten(), mixture.jacobian(x_t, T)[0] @ e.flatten(), rtol=1e-10)
    assert found.forward_mode[F64][0] < 1e-12
    curve = found.curves[F64, "forward"]
    # By hand: the difference itself against the closed-form product.
    step = 1e-6 / e.abs().max()
    d = (mixture(x_t + step * e, T) - mixture(x_t, T)) / step
    truth = (mixture.jacobian(x_t, T)[0] @ e.flatten()).reshape(x_t.shape)
    assert curve.error[0] == pytest.approx(((d - truth).norm() / truth.norm()).item(), rel=1e-2)
    assert curve.cosine[0] == pytest.approx(1)


@pytest.mark.parametrize(("scheme", "order", "evaluations"), [("forward", 1, 1), ("central", 2, 2), ("fourth-order", 4, 4)])
def test_truncation_falls_with_the_order_of_the_scheme(mixture, scheme, order, evaluations):
    h = [0.02, 0.01]
    found = measure_fd_error(mixture, point(mixture), T, point(mixture, 1), h=h, dtypes=[F64], schemes=[scheme])
    curve = found.curves[F64, scheme]
    assert np.log2(curve.truncation[0] / curve.truncation[1]) == pytest.approx(order, abs=0.1)
    assert np.array_equal(curve.error, curve.truncation) and np.isnan(curve.rounding).all()
    assert curve.evaluations == evaluations


def test_rounding_is_all_the_error_of_a_linear_denoiser_and_goes_as_one_over_h(linear):
    h = np.geomspace(1e-5, 1, 6)
    found = measure_fd_error(linear, point(linear), T, point(linear, 1), h=h, dtypes=[F32], schemes=["forward"])
    curve = found.curves[F32, "forward"]
    assert (curve.truncation < 1e-9).all()
    assert np.allclose(curve.error, curve.rounding, rtol=1e-3)
    slope = np.polyfit(np.log(h), np.log(curve.rounding), 1)[0]
    assert slope == pytest.approx(-1, abs=0.25)
    assert 1e-8 < (curve.rounding * h).mean() < 1e-5, "float32 has 7 digits"
    assert curve.best == len(h) - 1


def test_a_network_in_float64_is_a_reference_and_left_as_it_was():
    denoiser = tiny_denoiser(F32)
    before = {name: value.clone() for name, value in denoiser.unet.state_dict().items()}
    x_t, e = point(denoiser, dtype=F32), point(denoiser, 1, F32)
    found = measure_fd_error(denoiser, x_t, T, e, h=[1e-6, 1e-4, 1e-2], dtypes=[F64, F32, BF16], schemes=["forward"])
    exact = found.curves[F64, "forward"].error
    assert exact[0] < 1e-5 and np.allclose(exact[1:] / exact[:-1], 100, rtol=0.5), "falls with h"
    double = tiny_denoiser(F64)
    J = torch.func.jacrev(lambda x: double(x[None], T)[0])(x_t[0].double()).reshape(64, 64)  # by reverse mode
    assert torch.allclose(found.Je.flatten(), J @ e.double().flatten(), rtol=1e-6)
    assert found.curves[F32, "forward"].error[0] > 100 * exact[0]
    # What no step can reach in bfloat16, forward mode does: all that is left is the rounding of weights and activations.
    assert found.forward_mode[BF16][0] < found.curves[BF16, "forward"].error.min()
    assert denoiser.dtype == F32
    assert all(torch.equal(value, before[name]) for name, value in denoiser.unet.state_dict().items())


def test_a_copy_that_is_float64_only_by_name_is_refused():
    class Single(type(tiny_denoiser())):
        """Up-casts on the way, as some attention processors do."""

        def __call__(self, x_t, t):
            return super().__call__(x_t, t).float().to(x_t.dtype)

    denoiser = tiny_denoiser(F32)
    denoiser.__class__ = Single
    with pytest.raises(ValueError, match="no reference"):
        measure_fd_error(denoiser, point(denoiser, dtype=F32), T, point(denoiser, 1, F32))


def test_one_batch_and_mixed_precision_are_other_roundings_of_the_same_truth():
    denoiser = tiny_denoiser(F32)
    x_t, e = point(denoiser, dtype=F32), point(denoiser, 1, F32)
    settings = {"h": [0.01, 0.3], "dtypes": [BF16], "schemes": ["central"]}
    plain = measure_fd_error(denoiser, x_t, T, e, **settings)
    for change in ({"one_batch": True}, {"autocast": True}):
        other = measure_fd_error(denoiser, x_t, T, e, **settings, **change)
        assert torch.equal(other.Je, plain.Je)
        mine, theirs = plain.curves[BF16, "central"], other.curves[BF16, "central"]
        assert np.allclose(mine.truncation, theirs.truncation, rtol=1e-6)
        assert (theirs.rounding[0] > 1e-3) and (theirs.error <= theirs.truncation + theirs.rounding + 1e-12).all()
    assert not other.forward_mode, "forward mode does not work under autocast"


@pytest.mark.parametrize("dtype", [F64, F32])
def test_the_suggested_step_is_nearly_the_best_there_is(mixture, dtype):
    x_t, e = point(mixture), point(mixture, 1)
    h = suggest_fd_step(mixture, x_t, T, dtype, e)
    steps = [*(torch.finfo(dtype).eps ** 0.5 * np.geomspace(0.01, 1000, 41)), h]
    errors = (
        measure_fd_error(mixture, x_t, T, e, h=steps, dtypes=[dtype], schemes=["forward"]).curves[dtype, "forward"].error
    )
    # Rounding is erratic, and some step is always lucky: the median of its neighbours is what to compare with.
    smooth = np.median(np.stack([errors[:-3], errors[1:-2], errors[2:-1]]), axis=0)
    assert errors[-1] < 5 * smooth.min()


def test_half_precision_on_the_bundled_model(mnist):
    """The paper's h drowns in rounding there; the suggested one does not, though it does not know e."""
    papers, suggested = [], []
    for digit in (0, 2):
        x_t, e = masked(mnist, digit=digit)
        h = suggest_fd_step(mnist, x_t, 500, F16)
        found = measure_fd_error(mnist, x_t, 500, e, h=[0.005, h], dtypes=[F16], schemes=["forward"], forward_mode=False)
        for values, value in zip((papers, suggested), found.curves[F16, "forward"].cosine, strict=True):
            values.append(value)
    assert np.mean(papers) < 0.6
    assert min(suggested) >= 0.99


def test_bfloat16_on_the_bundled_model(mnist):
    x_t, e = masked(mnist)
    h = {scheme: suggest_fd_step(mnist, x_t, 500, BF16, e, scheme) for scheme in ("forward", "central")}
    found = measure_fd_error(mnist, x_t, 500, e, h=[0.005, *h.values()], dtypes=[BF16], schemes=list(h))
    forward, central = (found.curves[BF16, scheme].cosine for scheme in h)
    assert forward[0] < 0.4 and 0.9 < forward[1] < central[2]
    assert found.forward_mode[BF16][1] > 0.999


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"e": torch.zeros(1, 1, 2, 3)}, ValueError, "e is zero"),
        ({"e": torch.zeros(1, 6)}, ValueError, r"e has shape \(1, 6\)"),
        ({"e": torch.ones(1, 1, 2, 3, dtype=torch.int64)}, TypeError, "int64"),
        ({"h": [0.1, 0]}, ValueError, "h has 0"),
        ({"schemes": ["backward"]}, ValueError, "'backward'"),
        ({"dtypes": [torch.int32]}, TypeError, "int32"),
        ({"dtypes": [F16]}, ValueError, "does not run on cpu"),  # an einsum of two precisions
        ({"t": 1000}, ValueError, "0 to 999"),
        ({"x_t": torch.full((1, 1, 2, 3), torch.nan)}, ValueError, "NaN"),
    ],
)
def test_bad_arguments_are_named(mixture, arguments, error, words):
    good = {"denoiser": mixture, "x_t": point(mixture), "t": T, "e": point(mixture, 1)}
    with pytest.raises(error, match=words):
        measure_fd_error(**(good | arguments))


def test_where_x0_does_not_move_there_is_no_relative_error():
    certain = fcs_lab.IdealDenoiser(torch.ones(1, 1, 2, 3, dtype=F64))  # one image: x̂_0 is it, whatever x_t
    with pytest.raises(ValueError, match="J e = 0"):
        measure_fd_error(certain, point(certain), T, point(certain, 1))
    with pytest.raises(ValueError, match="J e = 0"):
        suggest_fd_step(certain, point(certain), T)


def test_suggest_names_its_arguments(mixture):
    with pytest.raises(ValueError, match="scheme is 'sideways'"):
        suggest_fd_step(mixture, point(mixture), T, scheme="sideways")
    with pytest.raises(TypeError, match="dtype is 16"):
        suggest_fd_step(mixture, point(mixture), T, 16)


def test_a_copy_in_another_precision(mixture):
    single = in_precision(mixture, F32)
    assert single.dtype == single.means.dtype == F32 and mixture.means.dtype == F64
    x_t = point(mixture)
    assert torch.allclose(single(x_t.float(), T).double(), mixture(x_t, T), atol=1e-5)
    assert isinstance(measure_fd_error(mixture, x_t, T, x_t, dtypes=[F32], h=[0.1]), FdError)


def test_what_a_wrapper_wraps_is_converted_and_without_forward_mode_there_is_no_truth(mixture):
    single = in_precision(Opaque(mixture), F32)
    assert single.dtype == single.denoiser.dtype == F32 and mixture.dtype == F64
    with pytest.raises(ValueError, match="no forward mode"):
        measure_fd_error(Opaque(mixture), point(mixture), T, point(mixture, 1))
