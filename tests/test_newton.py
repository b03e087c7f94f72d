import numpy as np
import pytest
import torch
from conftest import tiny_denoiser

import fcs_lab
from fcs_lab.probes import JacobianOperator, forcing_bound, measure_convergence, measure_forcing_term

F64 = torch.float64
T = 300


def point(denoiser, seed=0):
    return torch.randn(1, *denoiser.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture
def linear():
    """One Gaussian, so that x̂_0 is affine in x_t and J = diag(μ) is known: variances 0 (a null direction) to 5."""
    variances = torch.diag(torch.arange(0.0, 6)).to(F64)[None]
    denoiser = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 2, 3, dtype=F64), variances)
    return denoiser, denoiser.jacobian(point(denoiser), T)[0].diagonal()


@pytest.mark.parametrize("denoiser", ["mixture", "network"])
def test_forcing_terms_are_those_of_the_dense_jacobian(denoiser, mixture):
    denoiser = mixture if denoiser == "mixture" else tiny_denoiser()
    x_t, e = point(denoiser), point(denoiser, 1)
    J = torch.func.jacrev(lambda x: denoiser(x[None], T)[0])(x_t[0]).reshape(e.numel(), -1).numpy()
    v = e.flatten().numpy()
    found = measure_forcing_term(denoiser, x_t, T, e, step_sizes=[0, 0.3, 2], regularization=0.5, max_iterations=500)
    rho = 0.5 * np.linalg.norm(J @ v) / np.linalg.norm(v)
    steps = {"newton": J @ v, "gradient": J.T @ v, "exact": np.linalg.solve(J.T @ J + rho**2 * np.eye(len(v)), J.T @ v)}
    for name, d in steps.items():
        truth = [np.linalg.norm(v - size * J @ d) / np.linalg.norm(v) for size in (0, 0.3, 2)]
        assert np.allclose(found.forcing[name], truth, rtol=1e-6), name
        assert found.forcing[name][0] == 1, "no step leaves all of e"
        assert found.norm_inf[name] == pytest.approx(np.abs(d).max(), rel=1e-6)
        assert found.of_algorithm_1(name, 0.5) == pytest.approx(0.5 / np.abs(d).max(), rel=1e-6)
        best = found.best_step_size[name]
        near = [np.linalg.norm(v - size * J @ d) / np.linalg.norm(v) for size in (best, 0.99 * best, 1.01 * best)]
        if best > 0:
            assert found.best_forcing[name] == pytest.approx(near[0], rel=1e-6) and near[0] <= min(near[1:])
        else:
            assert found.best_forcing[name] == 1
    assert found.best_forcing["exact"] < found.best_forcing["gradient"]


def test_along_an_eigenvector_the_forcing_term_is_the_papers_factor(linear):
    denoiser, mu = linear
    step_sizes = np.array([0.5, 1.5, 3.0]) / mu.max().item() ** 2
    for i in range(1, 6):
        e = torch.zeros(6, dtype=F64).index_fill(0, torch.tensor(i), 0.7).reshape(1, 1, 2, 3)
        found = measure_forcing_term(denoiser, point(denoiser), T, e, step_sizes=step_sizes)
        assert np.allclose(found.forcing["newton"], np.abs(1 - step_sizes * mu[i].item() ** 2), atol=1e-12)
        assert np.allclose(found.forcing["newton"], found.forcing["gradient"], atol=1e-12), "J is symmetric"


def test_for_a_symmetric_j_the_bound_is_the_norm_and_a_null_direction_keeps_its_part(linear):
    denoiser, mu = linear
    J = JacobianOperator(denoiser, point(denoiser), T).dense(progress=False)
    step_sizes = np.array([0.0, 1.0, 2.0, 2.5]) / mu.max().item() ** 2
    found = forcing_bound(J, step_sizes)
    assert np.allclose(found.norm, found.bound, atol=1e-9) and np.allclose(found.bound, [1, 1, 1, 1.5], atol=1e-9)
    assert found.condition == pytest.approx(1, abs=1e-9)
    assert (
        np.allclose(np.sort(found.eigenvalues.real), np.sort(mu.numpy())) and np.abs(found.eigenvalues[0]) == mu.max().item()
    )
    assert np.abs(found.worst[3]).argmax() == mu.argmax(), "the largest eigenvector overshoots"
    e = torch.ones(1, 1, 2, 3, dtype=F64)
    left = measure_forcing_term(denoiser, point(denoiser), T, e, step_sizes=[1 / mu.max().item() ** 2])
    assert left.forcing["newton"][0] >= 1 / np.sqrt(6) - 1e-12, "a sixth of ‖e‖² is along the null direction"


def test_a_symmetric_j_of_low_rank_has_orthogonal_eigenvectors():
    factors = np.random.default_rng(0).standard_normal((40, 5))
    found = forcing_bound(factors @ factors.T, [1e-3])
    assert found.condition == pytest.approx(1, abs=1e-9) and found.norm == pytest.approx(found.bound)


def test_a_non_normal_j_breaks_the_bound_within_its_condition():
    J = np.array([[1.0, 5.0], [0.0, 0.5]])
    found = forcing_bound(J, [1.0, 2.0])
    assert np.allclose(found.bound, [0.75, 1.0])
    residual = np.eye(2) - J @ J
    assert found.norm[0] == pytest.approx(np.linalg.norm(residual, 2)) and found.norm[0] > 5
    assert np.linalg.norm(residual @ found.worst[0]) == pytest.approx(found.norm[0])
    assert np.linalg.norm(found.worst, axis=1) == pytest.approx(1)
    assert (found.norm <= found.condition * found.bound + 1e-9).all()


def test_a_rotation_makes_newtons_step_useless_and_the_gradients_perfect():
    """J² = −I: every step along J e makes e grow. J Jᵀ = I: one step along Jᵀ e removes it."""

    class Rotation:
        scheduler = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 2)).scheduler
        shape, device, dtype = (1, 1, 2), torch.device("cpu"), F64

        def __call__(self, x_t, t):
            return torch.stack([-x_t[..., 1], x_t[..., 0]], dim=-1)

    found = measure_forcing_term(
        Rotation(), torch.ones(1, 1, 1, 2, dtype=F64), T, torch.ones(1, 1, 1, 2, dtype=F64), step_sizes=[1]
    )
    assert found.forcing["newton"][0] == pytest.approx(2) and found.best_step_size["newton"] < 0
    assert found.best_forcing["newton"] == 1 and found.best_forcing["gradient"] == pytest.approx(0, abs=1e-12)
    assert forcing_bound(np.array([[0.0, -1.0], [1.0, 0.0]]), [1.0]).bound[0] == pytest.approx(2)


def test_within_counts_only_what_the_task_asks_for(mixture):
    x_t, e = point(mixture), point(mixture, 1)
    known = torch.tensor([1.0, 0.0, 1.0])  # broadcast over the rows
    e = e * known
    found = measure_forcing_term(mixture, x_t, T, e, step_sizes=[0.7], within=known, regularization=None)
    J, v, w = mixture.jacobian(x_t, T)[0].numpy(), e.flatten().numpy(), np.tile([1.0, 0, 1], 2)
    assert set(found.forcing) == {"newton", "gradient"}
    assert found.forcing["newton"][0] == pytest.approx(np.linalg.norm(w * (v - 0.7 * J @ J @ v)) / np.linalg.norm(v))


def identity_task(y):
    return fcs_lab.LinearConstraint(lambda x: x, lambda y: y, y)


@pytest.mark.parametrize("factor", [0.5, 1.5, 3.0])
def test_on_a_linear_denoiser_the_error_shrinks_or_grows_by_the_factor(linear, factor):
    """|1 − λμ²| = factor for the largest μ, at every step, along its eigenvector; the null direction stays."""
    denoiser, mu = linear
    x_t = point(denoiser)
    step_size = (1 - factor if factor < 1 else 1 + factor) / mu[5].item() ** 2
    for i, expected in ((5, factor), (2, abs(1 - step_size * mu[2].item() ** 2)), (0, 1.0)):
        e = torch.zeros(6, dtype=F64).index_fill(0, torch.tensor(i), 1.0).reshape(1, 1, 2, 3)
        task = identity_task(denoiser(x_t, T) + e)
        found = measure_convergence(denoiser, x_t, T, task, steps=6, step_size=step_size, rule="fixed")
        assert np.allclose(found.error_norm, expected ** np.arange(7), rtol=1e-4, atol=1e-9)
        assert np.allclose(found.step_size, step_size)


def test_the_infinity_rule_takes_steps_of_its_own_length_and_so_hovers(linear):
    denoiser, mu = linear
    x_t = point(denoiser)
    e = torch.zeros(6, dtype=F64).index_fill(0, torch.tensor(5), 1.0).reshape(1, 1, 2, 3)
    task = identity_task(denoiser(x_t, T) + e)
    found = measure_convergence(denoiser, x_t, T, task, steps=40, step_size=0.3)
    # x̂_0 moves by 0.3 μ at each step, whatever is left of e, and so comes to hop over the answer.
    assert np.allclose(np.abs(np.diff(found.error_norm))[:2], 0.3 * mu[5].item(), rtol=1e-3)
    assert found.error_norm[-10:].max() <= 0.3 * mu[5].item() + 1e-6 and found.error_norm[-10:].max() > 1e-3
    assert torch.allclose(found.x0, denoiser(found.x_t, T))
    falling = measure_convergence(denoiser, x_t, T, task, steps=40, step_size=np.geomspace(0.3, 1e-4, 40))
    assert falling.error_norm[-1] < 0.1 * found.error_norm[-10:].max()


def test_newton_and_gradient_of_a_network_converge_on_a_small_error():
    denoiser = tiny_denoiser()
    x_t = point(denoiser)
    with torch.no_grad():
        x0 = denoiser(x_t, T)
    J = JacobianOperator(denoiser, x_t, T).dense(progress=False)
    size = 1 / np.linalg.norm(J, 2) ** 2
    task = identity_task(x0 + 1e-3 * point(denoiser, 1))
    for direction in ("newton", "gradient"):
        found = measure_convergence(denoiser, x_t, T, task, steps=5, step_size=size, rule="fixed", direction=direction)
        # To first order the error after k steps is that of the linear iteration.
        M = np.eye(64) - size * (J @ J if direction == "newton" else J @ J.T)
        e = task.error(x0).flatten().numpy()
        linear = [np.linalg.norm(np.linalg.matrix_power(M, k) @ e) for k in range(6)]
        assert np.allclose(found.error_norm, linear, rtol=1e-2)


def test_a_diverging_run_ends_in_nan(mixture):
    task = identity_task(torch.ones(1, 1, 2, 3, dtype=F64))
    found = measure_convergence(mixture, point(mixture), T, task, steps=3, step_size=1e308, rule="fixed")
    assert np.isfinite(found.error_norm[0]) and np.isnan(found.error_norm[-1])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"e": torch.zeros(1, 1, 2, 3)}, ValueError, "e is zero"),
        ({"step_sizes": [0.1, -1]}, ValueError, "step_sizes has -1"),
        ({"regularization": -1}, ValueError, "regularization is -1"),
        ({"within": torch.ones(5)}, ValueError, "broadcasts"),
        ({"within": torch.zeros(3)}, ValueError, "nothing of e"),
        ({"t": 1000}, ValueError, "0 to 999"),
    ],
)
def test_bad_arguments_are_named(mixture, arguments, error, words):
    good = {"denoiser": mixture, "x_t": point(mixture), "t": T, "e": point(mixture, 1)}
    with pytest.raises(error, match=words):
        measure_forcing_term(**(good | arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"step_size": [0.1]}, "step_size has 1 entries"),
        ({"rule": "none"}, "rule is 'none'"),
        ({"direction": "exact"}, "direction is 'exact'"),
    ],
)
def test_bad_settings_of_the_convergence_are_named(mixture, arguments, words):
    with pytest.raises(ValueError, match=words):
        measure_convergence(mixture, point(mixture), T, identity_task(torch.ones(1, 1, 2, 3, dtype=F64)), **arguments)


def test_no_direction_no_bound(mixture):
    certain = fcs_lab.IdealDenoiser(torch.ones(1, 1, 2, 3, dtype=F64))
    with pytest.raises(ValueError, match="J e = 0"):
        measure_forcing_term(certain, point(certain), T, point(certain, 1))
    with pytest.raises(ValueError, match="square"):
        forcing_bound(np.ones((2, 3)), [1.0])
