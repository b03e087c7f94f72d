import pytest
import torch
from conftest import tiny_denoiser
from diffusers import DDIMScheduler

from fcs_lab.directions import CountedDenoiser, exact, gradient, identity, newton, newton_jvp

F64 = torch.float64
T = 300


class Linear:
    """x̂_0 = M x_t with an M that is not symmetric, so that J, Jᵀ and J⁻¹ are known and differ."""

    scheduler, shape, device, dtype = DDIMScheduler(), (1, 2, 3), torch.device("cpu"), F64

    def __init__(self):
        self.M = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=F64) + 3 * torch.eye(6, dtype=F64)

    def __call__(self, x_t, t):
        return (x_t.flatten(1) @ self.M.T).reshape(x_t.shape)


def apply(M, v):
    return (v.flatten(1) @ M.mT).reshape(v.shape)


@pytest.fixture
def point():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 1, 2, 3, generator=generator, dtype=F64), torch.randn(3, 1, 2, 3, generator=generator, dtype=F64)


def evaluate(function, denoiser, x_t, e, **options):
    f = CountedDenoiser(denoiser, keep_graph=function is gradient)
    x0 = f(x_t, T)
    return f.run(function(x_t, T, x0, e, **options)), f


def test_each_direction_is_its_matrix(point):
    x_t, e = point
    M = Linear().M
    for function, options, matrix in (
        (newton, {"fd_step": 0.01}, M),
        (newton_jvp, {}, M),
        (gradient, {}, M.T),
        (exact, {"regularization": 0.0}, torch.linalg.inv(M)),
        (identity, {}, torch.eye(6, dtype=F64)),
    ):
        d, _ = evaluate(function, Linear(), x_t, e, **options)
        assert torch.allclose(d, apply(matrix, e), atol=1e-7), function


def test_exact_is_tikhonov_regularised(point):
    x_t, e = point
    M = Linear().M
    d, _ = evaluate(exact, Linear(), x_t, e, regularization=0.5)
    for i in range(3):
        rho = 0.5 * (M @ e[i].flatten()).norm() / e[i].norm()
        expected = torch.linalg.solve(M.T @ M + rho**2 * torch.eye(6, dtype=F64), M.T @ e[i].flatten())
        assert torch.allclose(d[i].flatten(), expected, atol=1e-7)


def test_directions_on_the_mixture(mixture, point):
    x_t, e = point
    J = mixture.jacobian(x_t, T)
    expected = torch.einsum("bij,bj->bi", J, e.flatten(1)).reshape(e.shape)
    assert torch.allclose(evaluate(newton_jvp, mixture, x_t, e)[0], expected, atol=1e-10)
    assert torch.allclose(evaluate(gradient, mixture, x_t, e)[0], expected, atol=1e-10)  # J is symmetric
    inverse = torch.linalg.solve(J, e.flatten(1)[..., None])[..., 0].reshape(e.shape)
    assert torch.allclose(evaluate(exact, mixture, x_t, e, regularization=0.0)[0], inverse, rtol=1e-6)


@pytest.mark.parametrize("make", [lambda mixture: mixture, lambda mixture: tiny_denoiser()])
def test_the_forward_difference_is_of_first_order(mixture, make):
    denoiser = make(mixture)
    generator = torch.Generator().manual_seed(2)
    x_t, e = (torch.randn(2, *denoiser.shape, generator=generator, dtype=F64) for _ in range(2))
    truth = evaluate(newton_jvp, denoiser, x_t, e)[0]
    errors = [(evaluate(newton, denoiser, x_t, e, fd_step=h)[0] - truth).norm() / truth.norm() for h in (1e-2, 1e-3, 1e-4)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


def test_forward_and_reverse_products_agree_on_a_network():
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩."""
    denoiser = tiny_denoiser()
    generator = torch.Generator().manual_seed(2)
    x_t, u, v = (torch.randn(1, *denoiser.shape, generator=generator, dtype=F64) for _ in range(3))
    Jv, JTu = evaluate(newton_jvp, denoiser, x_t, v)[0], evaluate(gradient, denoiser, x_t, u)[0]
    assert (u * Jv).sum().item() == pytest.approx((JTu * v).sum().item(), rel=1e-10)


@pytest.mark.parametrize("function", [newton, newton_jvp, gradient, exact, identity])
def test_no_error_no_direction_and_no_nan(mixture, point, function):
    x_t, e = point
    e = e.clone()
    e[1] = 0
    options = {newton: {"fd_step": 0.01}, exact: {"regularization": 0.1}}.get(function, {})
    d, _ = evaluate(function, mixture, x_t, e, **options)
    assert d.isfinite().all()
    assert not d[1].any()
    assert d[0].any() and d[2].any()


def test_the_size_of_e_does_not_spoil_the_difference(mixture, point):
    x_t, e = point
    truth = evaluate(newton_jvp, mixture, x_t, e)[0]
    for scale in (1e-30, 1e30):
        d, _ = evaluate(newton, mixture, x_t, e * scale, fd_step=1e-4)
        assert torch.allclose(d / scale, truth, rtol=1e-2, atol=1e-4)


def test_evaluations_are_counted_by_image(mixture, point):
    x_t, e = point
    assert evaluate(newton, mixture, x_t, e, fd_step=0.1)[1].forward == 6
    f = evaluate(gradient, mixture, x_t, e)[1]
    assert (f.forward, f.backward) == (3, 3)
