import math

import numpy as np
import pytest
import torch
from conftest import Opaque, tiny_denoiser
from scipy.optimize import brentq

import fcs_lab
from fcs_lab.probes import JacobianOperator, find_displacement, measure_invertibility, measure_linear_reach

F64 = torch.float64
A = 0.8


def two_points(dtype=F64):
    """Point masses ±a in one dimension: x̂_0 = a·tanh(κ x_t), κ = √ᾱ a/(1−ᾱ), takes every value in (−a, a) once."""
    return fcs_lab.IdealDenoiser(torch.tensor([A, -A], dtype=dtype).reshape(2, 1, 1, 1))


def kappa(denoiser, t):
    alpha_bar = denoiser.scheduler.alphas_cumprod[t].double().item()
    return math.sqrt(alpha_bar) * A / (1 - alpha_bar)


def number(value, dtype=F64):
    return torch.full((1, 1, 1, 1), value, dtype=dtype)


def point(denoiser, seed=0):
    return torch.randn(1, *denoiser.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("t", [300, 700])
@pytest.mark.parametrize("x", [0.0, 0.3, -1.0])
def test_the_radius_of_two_point_masses(x, t):
    denoiser = two_points()
    x0 = A * math.tanh(kappa(denoiser, t) * x)
    found = measure_invertibility(
        denoiser, number(x), t, n_random=0, bisections=7, radii=np.geomspace(0.01, 4, 5), progress=False
    )
    assert found.radius == pytest.approx(A - abs(x0), rel=0.02)
    assert not found.limited
    for reach in found.directions.values():
        assert any(reach.radius <= truth * 1.002 and truth * 0.998 <= reach.no_solution_at for truth in (A - x0, A + x0))
        assert reach.no_solution_at <= reach.radius * 1.02
    # dx̂_0/dx_t falls with |x_t|, so no stretch exceeds that at 0.
    assert 0 < found.stretch[0] < found.stretch[1] <= A * kappa(denoiser, t) * (1 + 1e-9)
    assert found.condition_number == 1
    assert found.singular_values[0] == pytest.approx(A * kappa(denoiser, t) * (1 - (x0 / A) ** 2))


def test_a_single_solve_of_two_point_masses():
    denoiser, t = two_points(), 300
    solve = find_displacement(denoiser, number(0.2), t, number(0.3), tolerance=1e-8)
    truth = math.atanh(math.tanh(kappa(denoiser, t) * 0.2) + 0.3 / A) / kappa(denoiser, t) - 0.2
    assert solve.outcome == "solved" and solve.residual <= 1e-8 and solve.disagreement < 1e-6
    assert solve.delta.item() == pytest.approx(truth, rel=1e-6)
    assert solve.stretch == pytest.approx(0.3 / truth, rel=1e-6)


def test_no_solution_and_no_convergence_are_told_apart():
    denoiser = two_points()
    beyond = find_displacement(denoiser, number(0.0), 300, number(2 * A))
    assert beyond.outcome == "no solution" and beyond.removable < 0.05
    assert beyond.residual == pytest.approx(0.5, abs=0.01)  # it got to a and can get no further
    # Within reach, but not in one iteration.
    hasty = find_displacement(denoiser, number(0.0), 300, number(0.9 * A), max_iterations=1, starts=1)
    assert hasty.outcome == "not converged" and hasty.removable > 0.05
    assert find_displacement(denoiser, number(0.0), 300, number(0.9 * A), starts=1).outcome == "solved"


def test_a_full_rank_mixture_is_invertible_as_far_as_one_looks(mixture):
    """x̂_0 is the gradient of a strictly convex function and onto: one solution, whatever the target."""
    x_t, e = point(mixture), point(mixture, seed=1)
    found = measure_invertibility(mixture, x_t, 500, e, progress=False)
    assert found.limited and found.radius == 16
    assert set(found.directions) == {
        "e", "random 1", "random 2", "+leading 1", "−leading 1", "+trailing 1", "−trailing 1"
    }  # fmt: skip
    for reach in found.directions.values():
        assert reach.no_solution_at == math.inf and reach.solves[16].outcome == "solved"
        assert reach.solves[16].disagreement < 0.1
    # The mean value theorem: a symmetric positive J stretches between its extreme eigenvalues along the way.
    assert 0 < found.stretch[0] < found.stretch[1]
    eigenvalues = np.linalg.eigvalsh(mixture.jacobian(x_t, 500)[0].numpy())
    assert np.allclose(found.singular_values, eigenvalues[::-1])
    assert found.condition_number == pytest.approx(eigenvalues[-1] / eigenvalues[0])


def test_a_single_gaussian_is_linear():
    """x̂_0 is affine: δ = J⁻¹ r g at any r, and the linear step is never off."""
    variances = torch.tensor([1.0, 0.3, 0.1], dtype=F64)
    denoiser = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 3, dtype=F64), torch.diag(variances)[None])
    x_t, move, t = point(denoiser), point(denoiser, seed=1), 400
    solve = find_displacement(denoiser, x_t, t, move, tolerance=1e-9)
    J = denoiser.jacobian(x_t, t)[0]
    assert torch.allclose(solve.delta.flatten(), torch.linalg.solve(J, move.flatten()), rtol=1e-6)
    linear = measure_linear_reach(denoiser, x_t, t, move)
    assert linear.limited and linear.step_size == 10 and linear.errors.max() < 1e-6
    d = J @ move.flatten()
    assert linear.moved == pytest.approx(10 * (J @ (d / d.abs().max())).norm().item(), rel=1e-6)


def test_a_rank_deficient_denoiser_has_no_ball():
    """Three images in six pixels: x̂_0 stays in their plane, so a move out of it has no solution, however small."""
    generator = torch.Generator().manual_seed(3)
    denoiser = fcs_lab.IdealDenoiser(torch.rand(3, 1, 2, 3, generator=generator, dtype=F64))
    x_t, t = 0.5 * denoiser.data.mean(0).reshape(1, 1, 2, 3), 700
    found = measure_invertibility(denoiser, x_t, t, n_random=1, progress=False)
    assert found.condition_number == math.inf and found.radius == 0
    first = next(iter(found.directions["random 1"].solves.values()))
    assert first.outcome == "no solution"
    assert found.directions["+leading 1"].radius > 0.1  # in the plane there is room


def test_the_linear_reach_of_two_point_masses():
    """tanh(κ s) = 0.9 κ s is where the tangent at 0 is off by a tenth of itself."""
    denoiser, t = two_points(), 300
    truth = brentq(lambda u: math.tanh(u) - 0.9 * u, 0.1, 2) / kappa(denoiser, t)
    for dtype in (F64, torch.float32):
        linear = measure_linear_reach(two_points(dtype), number(0.0, dtype), t, number(1.0, dtype))
        assert not linear.limited and linear.step_size == pytest.approx(truth, rel=0.02)
        assert linear.moved == pytest.approx(A * kappa(denoiser, t) * truth, rel=0.02)
    at_once = measure_linear_reach(denoiser, number(0.0), t, number(1.0), step_sizes=[5.0, 9.0])
    assert at_once.step_size == 0 and not at_once.limited


def test_a_network_is_solved_to_its_true_inverse():
    """Where a small U-Net is solved, x̂_0 is where it was asked to be; to first order, δ = J⁻¹ r g."""
    denoiser = tiny_denoiser()
    x_t, e, t = point(denoiser), point(denoiser, seed=1), 300
    J = JacobianOperator(denoiser, x_t, t).dense(progress=False)
    e = e / e.norm()
    found = measure_invertibility(denoiser, x_t, t, e, J=J, n_random=0, n_singular=1, bisections=0,
                                  radii=[1e-4, 1e-2], tolerance=1e-6, progress=False)  # fmt: skip
    assert found.radius >= 1e-4
    delta = found.directions["e"].solves[1e-4].delta
    with torch.no_grad():
        moved = denoiser(x_t + delta, t) - denoiser(x_t, t)
    assert torch.allclose(moved, 1e-4 * e, atol=1e-9)
    assert np.allclose(delta.flatten().numpy(), np.linalg.solve(J, 1e-4 * e.flatten().numpy()), atol=2e-2 * delta.norm())
    assert found.singular_values[-1] * 0.9 <= found.stretch[0] and found.stretch[1] <= found.singular_values[0] * 1.1


def test_float32_is_solved_with_its_own_difference_step():
    """SciPy's default step would be noise here; ours solves as in float64."""
    denoiser = tiny_denoiser(torch.float32)
    x_t = point(denoiser).float()
    move = 0.5 * point(denoiser, seed=1).float() / 8
    solve = find_displacement(denoiser, x_t, 300, move)
    assert solve.outcome == "solved" and solve.residual <= 0.01


def test_without_derivatives_solutions_are_found_but_their_absence_is_not_claimed():
    denoiser = Opaque(two_points())
    found = measure_invertibility(denoiser, number(0.0), 300, n_random=0, progress=False)
    assert found.radius == pytest.approx(A, rel=0.1) and found.condition_number == 1
    assert {solve.outcome for reach in found.directions.values() for solve in reach.solves.values()} == {
        "solved", "not converged"
    }  # fmt: skip
    assert found.directions["+leading 1"].no_solution_at == math.inf and found.n_backward == 0


def test_same_seed_same_numbers(mixture):
    runs = [measure_invertibility(mixture, point(mixture), 500, n_random=1, progress=False) for _ in range(2)]
    assert str(runs[0]) == str(runs[1]) and runs[0].nfe == runs[1].nfe > 0
    assert "random 1" in str(runs[0]) and "the search limit" in str(runs[0])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"e": torch.zeros(1, 1, 2, 3)}, ValueError, "e is zero"),
        ({"e": torch.ones(1, 1, 3, 2)}, ValueError, r"e has shape \(1, 1, 3, 2\)"),
        ({"e": torch.full((1, 1, 2, 3), torch.nan)}, ValueError, "e has NaN"),
        ({"e": [1.0]}, TypeError, "e is"),
        ({"J": np.eye(6, dtype=np.float32)}, ValueError, "float32; expected the dense Jacobian .* in float64"),
        ({"J": np.eye(5)}, ValueError, r"shape \(5, 5\)"),
        ({"radii": [1.0, 0.5]}, ValueError, "radii is .* increasing"),
        ({"radii": []}, ValueError, "radii is"),
        ({"radii": [0.0, 1.0]}, ValueError, "positive"),
        ({"starts": 0}, ValueError, "starts is 0"),
        ({"bisections": -1}, ValueError, "bisections is -1"),
        ({"n_random": 1.5}, ValueError, "n_random is 1.5"),
        ({"tolerance": 0}, ValueError, "tolerance is 0"),
        ({"max_krylov": 0}, ValueError, "max_krylov is 0"),
        ({"t": 1000}, ValueError, "0 to 999"),
        ({"x_t": torch.zeros(2, 1, 2, 3)}, ValueError, "expected one sample"),
    ],
)
def test_bad_arguments_are_named(mixture, arguments, error, words):
    with pytest.raises(error, match=words):
        measure_invertibility(**({"denoiser": mixture, "x_t": point(mixture), "t": 300} | arguments))


def test_directions_that_lead_nowhere_are_refused(mixture):
    x_t = point(mixture)
    with pytest.raises(ValueError, match="move is zero"):
        find_displacement(mixture, x_t, 300, torch.zeros_like(x_t))
    with pytest.raises(ValueError, match=r"inverse has shape \(2, 2\)"):
        find_displacement(mixture, x_t, 300, x_t, inverse=np.eye(2))
    for arguments, words in (({"error": 0}, "error is 0"), ({"step_sizes": [2.0, 1.0]}, "step_sizes is")):
        with pytest.raises(ValueError, match=words):
            measure_linear_reach(mixture, x_t, 300, x_t, **arguments)


def test_where_nothing_moves_x0_that_is_said():
    """A single image: x̂_0 is constant, J = 0."""
    denoiser = fcs_lab.IdealDenoiser(torch.ones(1, 1, 2, 3, dtype=F64))
    found = measure_invertibility(
        denoiser, point(denoiser), 300, point(denoiser, 1), n_random=0, n_singular=0, progress=False
    )
    assert math.isnan(found.linear.step_size) and found.linear.moved == 0 and not found.linear.limited
    assert found.radius == 0 and found.directions["e"].no_solution_at == 4**-5
    assert found.condition_number == math.inf and all(map(math.isnan, found.stretch))
