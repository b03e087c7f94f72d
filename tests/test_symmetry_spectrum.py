import math

import numpy as np
import pytest
import torch
from conftest import tiny_denoiser
from diffusers import DDIMScheduler
from scipy.sparse.linalg import aslinearoperator

import fcs_lab
from fcs_lab.probes import JacobianOperator, compare_directions, measure_spectrum, measure_symmetry
from fcs_lab.widgets import JacobianLab

F64 = torch.float64
T = 300


def point(denoiser, seed=0, dtype=F64):
    return torch.randn(1, *denoiser.shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def matrix(D=40, seed=0, skew=0.3):
    """A symmetric matrix plus `skew` times a skew one of the same norm: relative skew norm `skew`."""
    M = np.random.default_rng(seed).standard_normal((2, D, D))
    S, A = M[0] + M[0].T, M[1] - M[1].T
    return S / np.linalg.norm(S) + skew * A / np.linalg.norm(A)


@pytest.fixture
def ideal(digits):
    """The exact denoiser of 64 digits of 8×8 pixels, in float64."""
    images = torch.nn.functional.avg_pool2d(fcs_lab.load_digits(64)[0].to(F64), 4)
    return fcs_lab.IdealDenoiser(images)


@pytest.fixture
def unet():
    """A network, untrained, whose J is anything but symmetric, with its dense J by torch's own `jacrev`."""
    denoiser = tiny_denoiser()
    x_t = point(denoiser)
    return denoiser, x_t, torch.func.jacrev(lambda x: denoiser(x[None], T)[0])(x_t[0]).reshape(64, 64).numpy()


# Symmetry


def between(denoiser, t):
    """The noisy point halfway between the two closest means or images: there the posterior is not sure, at any t."""
    x = denoiser.means if isinstance(denoiser, fcs_lab.GaussianMixtureDenoiser) else denoiser.data
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
    pair = x[list(divmod(int(distances.argmin()), len(x)))]
    return denoiser.scheduler.alphas_cumprod[t].double().sqrt() * pair.mean(0).reshape(1, *denoiser.shape)


@pytest.mark.parametrize("t", [0, 100, 500, 999])
def test_an_exact_denoiser_has_no_skew_part(mixture, ideal, t):
    for denoiser in (mixture, ideal):
        x_t, e = between(denoiser, t), point(denoiser, 1)
        J = JacobianOperator(denoiser, x_t, t)
        for measured in (measure_symmetry(J.dense(progress=False), e), measure_symmetry(J, e, probes=4)):
            assert measured.undefined is None and measured.norm > 1e-3
            assert measured.relative_skew < 1e-10 and measured.interval[1] < 1e-10
            assert measured.cosine == pytest.approx(1, abs=1e-10)


def test_a_matrix_is_measured_exactly(unet):
    e = np.random.default_rng(3).standard_normal(64)
    for J in (matrix(64, skew=0.3), unet[2]):
        truth = np.linalg.norm(J - J.T) / np.linalg.norm(J + J.T)
        cosine = (J @ e) @ (J.T @ e) / np.linalg.norm(J @ e) / np.linalg.norm(J.T @ e)
        for form in (J, aslinearoperator(J)):
            measured = measure_symmetry(form, e, probes=2)
            assert measured.relative_skew == pytest.approx(truth, rel=1e-12) and measured.probes == 0
            assert measured.interval == (measured.relative_skew,) * 2
            assert measured.norm == pytest.approx(np.linalg.norm(J))
            assert measured.cosine == pytest.approx(cosine, rel=1e-12)
    assert measure_symmetry(matrix(skew=0.3)).relative_skew == pytest.approx(0.3)
    # As many probes as dimensions are the unit vectors, also of an operator.
    operator = measure_symmetry((unet[0], unet[1], T), probes=64)
    assert operator.probes == 0 and operator.relative_skew == pytest.approx(truth, rel=1e-9)


def hidden(J):
    """A matrix as an operator that can only be multiplied with."""
    return aslinearoperator(J) + aslinearoperator(np.zeros_like(J))


@pytest.mark.parametrize("low_rank", [False, True])
def test_the_interval_covers_the_truth_as_often_as_it_says(low_rank):
    D = 60
    J = matrix(D)
    if low_rank:  # what the J of a denoiser is like: a few large eigenvalues, a small skew part
        u = np.random.default_rng(1).standard_normal((D, 3))
        J = 2 * u @ u.T / D + 0.1 * J
    truth = np.linalg.norm(J - J.T) / np.linalg.norm(J + J.T)
    runs = [measure_symmetry(hidden(J), probes=24, seed=seed) for seed in range(300)]
    covered = np.mean([low <= truth <= high for low, high in (run.interval for run in runs)])
    assert 0.88 <= covered <= 0.99, "of intervals with confidence 0.95"
    half = [measure_symmetry(hidden(J), probes=24, seed=seed, confidence=0.5).interval for seed in range(300)]
    assert 0.4 <= np.mean([low <= truth <= high for low, high in half]) <= 0.6
    assert np.mean([run.relative_skew for run in runs]) == pytest.approx(truth, rel=0.05)
    assert np.sqrt(np.mean([run.norm**2 for run in runs])) == pytest.approx(np.linalg.norm(J), rel=0.02)


def test_probing_a_network_agrees_with_its_dense_jacobian(unet):
    denoiser, x_t, J = unet
    truth = np.linalg.norm(J - J.T) / np.linalg.norm(J + J.T)
    measured = measure_symmetry((denoiser, x_t, T), probes=48, confidence=0.999)
    assert measured.interval[0] <= truth <= measured.interval[1] and measured.interval[1] < 2 * measured.interval[0]
    assert truth > 0.1, "an untrained network is not symmetric, so this could have failed"


def test_extremes():
    rotation = np.array([[0.0, -1.0], [1.0, 0.0]])
    assert measure_symmetry(rotation).relative_skew == math.inf
    assert measure_symmetry(rotation, np.array([1.0, 2.0])).cosine == pytest.approx(-1)
    assert measure_symmetry(np.eye(50), probes=4).relative_skew == 0
    nilpotent = measure_symmetry(np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([1.0, 0.0]))
    assert nilpotent.relative_skew == pytest.approx(1) and math.isnan(nilpotent.cosine) and "no angle" in nilpotent.undefined


def test_where_J_vanishes_it_is_undefined_and_says_so():
    """Two images far apart, almost no noise: the posterior is sure, and J is 0 but for rounding."""
    sure = fcs_lab.IdealDenoiser(torch.tensor([[[[1.0, 1.0]]], [[[-1.0, -1.0]]]], dtype=F64))
    x_t = torch.ones(1, 1, 1, 2, dtype=F64)
    measured = measure_symmetry((sure, x_t, 0), x_t)
    assert math.isnan(measured.relative_skew) and math.isnan(measured.cosine) and all(map(math.isnan, measured.interval))
    assert "rounding" in measured.undefined
    noise = 1e-12 * matrix()
    assert measure_symmetry(noise).undefined is not None and measure_symmetry(1e6 * noise).undefined is None


# Spectrum


def sorted_magnitudes(values):
    return np.sort(np.abs(values))[::-1]


def test_the_spectrum_of_a_matrix_is_the_dense_one():
    J = matrix(30)
    spectrum = measure_spectrum(J)
    assert spectrum.exact and len(spectrum.eigenvalues) == 30
    assert np.allclose(np.abs(spectrum.eigenvalues), sorted_magnitudes(np.linalg.eigvals(J)))
    symmetric = np.linalg.eigvalsh((J + J.T) / 2)
    assert np.allclose(np.sort(spectrum.symmetric), symmetric)
    assert np.allclose(spectrum.skew, sorted_magnitudes(np.linalg.eigvals((J - J.T) / 2)), atol=1e-7)
    assert np.allclose(spectrum.singular_values, np.linalg.svd(J, compute_uv=False))
    assert spectrum.negative_fraction == (symmetric < 0).mean()
    assert spectrum.radii["J"] == pytest.approx(np.abs(np.linalg.eigvals(J)).max())


@pytest.mark.parametrize("t", [100, 500, 900])
def test_an_exact_denoiser_is_positive_semi_definite(mixture, ideal, t):
    for denoiser in (mixture, ideal):
        x_t = between(denoiser, t)
        truth = np.linalg.eigvalsh(denoiser.jacobian(x_t, t)[0].numpy())[::-1]
        J = JacobianOperator(denoiser, x_t, t)
        spectrum = measure_spectrum(J.dense(progress=False))
        assert np.allclose(spectrum.symmetric, truth, atol=1e-8 * truth[0])
        assert np.allclose(np.sort(spectrum.eigenvalues.real), truth[::-1], atol=1e-8 * truth[0])
        assert spectrum.skew[0] < 1e-10 * truth[0]
        assert spectrum.negative_fraction == 0 or denoiser is ideal, "the mixture's J has full rank"
        assert spectrum.symmetric.min() > -1e-10 * truth[0], "J's own rounding, which depends on the processor"
        arnoldi = measure_spectrum(J, k=4, tol=1e-8)
        assert arnoldi.exact == (denoiser is mixture), "six dimensions are few"
        assert np.allclose(arnoldi.symmetric[:4], truth[:4], rtol=1e-6, atol=1e-8 * truth[0])
        assert np.allclose(arnoldi.singular_values[:4], truth[:4], rtol=1e-4, atol=1e-6 * truth[0])
        assert arnoldi.skew[0] < 1e-8 * truth[0]


@pytest.mark.parametrize("method", ["jvp", "fd"])
def test_arnoldi_on_a_network_agrees_with_its_dense_jacobian(unet, method):
    denoiser, x_t, J = unet
    spectrum = measure_spectrum(JacobianOperator(denoiser, x_t, T, method), k=4, probes=100)
    truth = measure_spectrum(J)
    assert not spectrum.exact and spectrum.negative_fraction is None
    for name in ("eigenvalues", "symmetric", "skew", "singular_values"):
        measured, dense = np.abs(getattr(spectrum, name)), np.abs(getattr(truth, name))[:4]
        assert np.allclose(measured, dense, rtol=0.01), name
    assert spectrum.effective_rank == pytest.approx(truth.effective_rank, rel=0.1)


def test_arnoldi_on_the_bundled_model(mnist, digits):
    """Against the dense float32 J: the largest eigenvalues to 1 %."""
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    x_t = mnist.scheduler.add_noise(digits[:1], noise, torch.tensor([700]))
    J = JacobianOperator(mnist, x_t, 700, batch_size=64).dense(progress=False)
    truth, operator = measure_spectrum(J), JacobianOperator(mnist, x_t, 700, "fd")
    measured = measure_spectrum(operator, k=2)
    for name, radius in measured.radii.items():
        assert radius == pytest.approx(truth.radii[name], rel=0.01), name
    assert measured.singular_values[0] == pytest.approx(truth.singular_values[0], rel=0.01)
    assert measured.effective_rank == pytest.approx(truth.effective_rank, rel=0.1)
    low, high = measure_symmetry(operator, probes=32, confidence=0.999).interval
    assert low <= measure_symmetry(J).relative_skew <= high < 3 * low


def test_effective_rank_counts_equal_singular_values():
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((100, 100)))
    R, _ = np.linalg.qr(rng.standard_normal((100, 100)))
    J = Q[:, :10] @ R[:10]
    assert measure_spectrum(J).effective_rank == pytest.approx(10)
    assert measure_spectrum(hidden(J), k=12, tol=1e-8).effective_rank == pytest.approx(10, rel=1e-6)
    assert measure_spectrum(hidden(J), k=5, probes=400).effective_rank == pytest.approx(10, rel=0.1)
    assert measure_spectrum(np.eye(100)).effective_rank == pytest.approx(100)


def test_a_vanishing_jacobian_has_a_spectrum_of_zeros():
    for J in (np.zeros((50, 50)), hidden(np.zeros((50, 50)))):
        spectrum = measure_spectrum(J, k=3)
        assert spectrum.radii == {"J": 0, "symmetric": 0, "skew": 0} and spectrum.effective_rank == 0


class Opaque:
    """A denoiser that torch cannot differentiate."""

    scheduler, shape, device, dtype = DDIMScheduler(), (1, 8, 8), torch.device("cpu"), F64

    def __call__(self, x_t, t):
        return torch.from_numpy(np.tanh(x_t.detach().numpy()))


@pytest.mark.parametrize("measure", [measure_symmetry, measure_spectrum])
def test_bad_jacobians_are_named(measure):
    with pytest.raises(TypeError, match="J is a str; expected a matrix"):
        measure("J")
    with pytest.raises(ValueError, match=r"J has shape \(2, 3\); expected a square one"):
        measure(np.ones((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        measure(np.full((2, 2), np.nan))
    with pytest.raises(TypeError, match="int64"):
        measure(np.ones((2, 2), int))
    with pytest.raises(TypeError, match="not differentiable"):
        measure(JacobianOperator(Opaque(), torch.zeros(1, 1, 8, 8, dtype=F64), T, "fd"))


@pytest.mark.parametrize(
    ("measure", "arguments", "error", "words"),
    [
        (measure_symmetry, {"e": np.zeros(40)}, ValueError, "e is zero"),
        (measure_symmetry, {"e": np.ones(39)}, ValueError, r"e has shape \(39,\); expected 40 entries"),
        (measure_symmetry, {"e": torch.full((40,), torch.inf)}, ValueError, "e has NaN or infinite"),
        (measure_symmetry, {"e": 3}, TypeError, "e is 3"),
        (measure_symmetry, {"probes": 1}, ValueError, "probes is 1"),
        (measure_symmetry, {"confidence": 95}, ValueError, "confidence is 95"),
        (measure_spectrum, {"k": 0}, ValueError, "k is 0"),
        (measure_spectrum, {"k": 20}, ValueError, "vectors is 30; expected a whole number of at least 42"),
        (measure_spectrum, {"tol": -1}, ValueError, "tol is -1"),
        (measure_spectrum, {"probes": 0.5}, ValueError, "probes is 0.5"),
    ],
)
def test_bad_arguments_are_named(measure, arguments, error, words):
    with pytest.raises(error, match=words):
        measure(matrix(), **arguments)


def test_the_same_seed_gives_the_same_numbers(unet):
    denoiser, x_t, _ = unet
    first, second, other = (measure_symmetry((denoiser, x_t, T), probes=8, seed=seed) for seed in (0, 0, 1))
    assert first == second and first.relative_skew != other.relative_skew
    one, two = (measure_spectrum(JacobianOperator(denoiser, x_t, T, "fd"), k=3) for _ in range(2))
    assert np.array_equal(one.eigenvalues, two.eigenvalues) and one.effective_rank == two.effective_rank


# The laboratory


def test_the_compared_directions_are_the_closed_form(mixture):
    x_t, e = point(mixture), point(mixture, 1)
    J = mixture.jacobian(x_t, T)[0]
    compared = compare_directions(mixture, x_t, T, e, fd_step=1e-6, regularization=0, step_size=1e-4, max_iterations=200)
    truth = {"e": e.flatten(), "J e": J @ e.flatten(), "Jᵀ e": J.T @ e.flatten()}
    truth["J⁻¹ e"] = torch.linalg.solve(J, e.flatten())
    for name, d in truth.items():
        one = compared[name]
        assert torch.allclose(one.d.flatten(), d, rtol=1e-4, atol=1e-5), name
        step = 1e-4 * d / d.abs().max()
        assert torch.allclose(one.change.flatten(), J @ step, rtol=1e-2, atol=1e-7), name
        assert one.left == pytest.approx(((e.flatten() - J @ step).norm() / e.norm()).item(), abs=1e-6)
        assert one.cosine == pytest.approx(torch.cosine_similarity(d, J @ e.flatten(), 0).item(), abs=1e-4)
    with pytest.raises(ValueError, match="e is zero"):
        compare_directions(mixture, x_t, T, 0 * e)
    with pytest.raises(ValueError, match="step_size is 0"):
        compare_directions(mixture, x_t, T, e, step_size=0)
    with pytest.raises(ValueError, match=r"e has shape \(1, 1, 2\)"):
        compare_directions(mixture, x_t, T, e[..., 0])
    with pytest.raises(TypeError, match="not differentiable"):
        compare_directions(Opaque(), torch.zeros(1, 1, 8, 8, dtype=F64), T, torch.ones(1, 1, 8, 8, dtype=F64))


def test_the_laboratory_follows_its_controls(ideal):
    images = ideal.data.reshape(-1, 1, 8, 8)
    lab = JacobianLab(ideal, images)
    assert lab.message.value == "" and bytes(lab.picture.value[:4]) == b"\x89PNG" and lab.figure is not None
    before = lab.compared["J e"].d
    lab.timestep.value = 700
    lab.picker.row, lab.picker.column = 2, 5
    assert lab.compared["e"].d[0, 0, 2, 5].abs() == 1 and lab.compared["e"].d.abs().sum() == 1
    J = ideal.jacobian(lab.x_t, 700)[0]
    column = J[:, 2 * 8 + 5].reshape(1, 1, 8, 8) * lab.compared["e"].d.sum()
    assert torch.allclose(lab.compared["Jᵀ e"].d, column) and not torch.equal(before, lab.compared["J e"].d)
    assert lab.compared["J e"].cosine > 0.999 and lab.compared["Jᵀ e"].cosine > 0.999999
    lab.kind.value = "the left half"
    assert not lab.compared["e"].d[..., 4:].any() and lab.compared["e"].d[..., :4].any()
    drawn = bytes(lab.picture.value)
    lab.seed.value = 3
    assert bytes(lab.picture.value) != drawn
    with pytest.raises(ValueError, match="images has shape"):
        JacobianLab(ideal, images[..., 1:])
