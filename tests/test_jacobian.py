import numpy as np
import pytest
import torch
from conftest import Opaque, tiny_denoiser
from scipy.sparse.linalg import LinearOperator, aslinearoperator, eigs, eigsh, gmres, lsmr, lsqr, svds

import fcs_lab
from fcs_lab.probes import JacobianOperator

F64 = torch.float64
T = 300


def point(denoiser, seed=0, dtype=F64):
    return torch.randn(1, *denoiser.shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def test_it_is_the_closed_form(mixture):
    x_t = point(mixture)
    truth = mixture.jacobian(x_t, T)[0].numpy()
    J = JacobianOperator(mixture, x_t, T)
    assert J.dtype == np.float64
    assert np.allclose(J.dense(progress=False), truth, atol=1e-8)
    V = np.random.default_rng(0).standard_normal((6, 5))
    assert np.allclose(J @ V, truth @ V) and np.allclose(J.T @ V, truth.T @ V)
    assert np.allclose(((J + J.T) / 2) @ V[:, 0], (truth + truth.T) / 2 @ V[:, 0])
    e = V[:, 0]
    assert np.allclose(lsmr(J, e, atol=1e-14, btol=1e-14, conlim=0, maxiter=100)[0], np.linalg.solve(truth, e), rtol=1e-6)
    assert np.allclose(gmres(J, e, rtol=1e-12)[0], np.linalg.solve(truth, e), rtol=1e-6)
    largest = np.sort(np.linalg.eigvalsh(truth))[-2:]
    assert np.allclose(np.sort(eigsh(J, k=2, return_eigenvectors=False)), largest)
    assert np.allclose(np.sort(eigs(J, k=2, return_eigenvectors=False).real), largest)
    assert np.allclose(np.sort(svds(J, k=2, return_singular_vectors=False)), largest)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_products_of_a_network_are_those_of_its_dense_jacobian(batch_size):
    """Forward mode, reverse mode and differences of one network agree, whatever the batches."""
    denoiser = tiny_denoiser()
    x_t = point(denoiser)
    truth = torch.func.jacrev(lambda x: denoiser(x[None], T)[0])(x_t[0]).reshape(64, 64).numpy()
    J = JacobianOperator(denoiser, x_t, T, batch_size=batch_size)
    V = np.random.default_rng(0).standard_normal((64, 7))
    assert np.allclose(J @ V, truth @ V, atol=1e-9)
    assert np.allclose(J.T @ V, truth.T @ V, atol=1e-9)
    assert np.allclose(J.dense(progress=False), truth, atol=1e-9)
    differences = JacobianOperator(denoiser, x_t, T, method="fd", fd_step=1e-6, batch_size=batch_size)
    assert np.allclose(differences @ V, truth @ V, rtol=1e-3, atol=1e-4)
    assert np.allclose(differences.dense(progress=False), truth, rtol=1e-3, atol=1e-4)


def test_products_on_the_bundled_model(mnist, digits):
    scheduler = mnist.scheduler
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    x_t = scheduler.add_noise(digits[:1], noise, torch.tensor([500]))
    J = JacobianOperator(mnist, x_t, 500)
    assert J.dtype == np.float32
    rows = np.eye(1024, 8, -500, dtype=np.float32)
    V = np.random.default_rng(0).standard_normal((1024, 2)).astype(np.float32)
    # 8 rows of the dense matrix by reverse mode against forward-mode products.
    by_rows, JV = (J.T @ rows).T @ V, (J @ V)[500:508]
    assert np.linalg.norm(by_rows - JV) <= 1e-4 * np.linalg.norm(JV)
    fd = JacobianOperator(mnist, x_t, 500, method="fd") @ V
    assert np.linalg.norm(fd - J @ V) <= 1e-2 * np.linalg.norm(fd)


def test_the_evaluation_is_shared(mixture):
    J = JacobianOperator(mixture, point(mixture), T, method="fd", batch_size=4)
    assert J.f.forward == 1
    J @ np.eye(6)
    assert J.f.forward == 7
    transposed = JacobianOperator(mixture, point(mixture), T)
    for _ in range(3):
        transposed.T @ np.ones(6)
    assert (transposed.f.forward, transposed.f.backward) == (1, 3)


def test_half_precision_is_cast_at_the_border():
    J = JacobianOperator(tiny_denoiser(torch.bfloat16), point(tiny_denoiser(), dtype=torch.bfloat16), T, method="fd")
    assert J.dtype == np.float32 and (J @ np.ones(64, np.float32)).dtype == np.float32


def test_without_derivatives_differences_still_work(mixture):
    x_t = point(mixture)
    J = JacobianOperator(Opaque(mixture), x_t, T, method="fd")
    assert np.allclose(J @ np.ones(6), mixture.jacobian(x_t, T)[0].numpy() @ np.ones(6), rtol=1e-3)
    with pytest.raises(TypeError, match="not differentiable"):
        J.T @ np.ones(6)
    with pytest.raises(ValueError, match="use method='fd'"):
        JacobianOperator(Opaque(mixture), x_t, T)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x_t": torch.zeros(2, 1, 2, 3)}, ValueError, "expected one sample"),
        ({"x_t": torch.zeros(1, 1, 2, 3, dtype=torch.int64)}, TypeError, "int64"),
        ({"x_t": torch.full((1, 1, 2, 3), torch.nan)}, ValueError, "NaN"),
        ({"x_t": torch.zeros(1, 1, 2, 3, device="meta")}, ValueError, "x_t is on the device 'meta'"),
        ({"t": 1000}, ValueError, "0 to 999"),
        ({"t": 0.5}, TypeError, "0.5"),
        ({"method": "guess"}, ValueError, "method is 'guess'"),
        ({"fd_step": 0}, ValueError, "fd_step is 0"),
    ],
)
def test_bad_arguments_are_named(mixture, arguments, error, words):
    with pytest.raises(error, match=words):
        JacobianOperator(**({"denoiser": mixture, "x_t": point(mixture), "t": T} | arguments))


def test_a_dense_jacobian_that_would_not_fit_says_how_large_it_is():
    huge = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 3, 512, 512), 1.0)
    J = JacobianOperator(huge, torch.zeros(1, 3, 512, 512), T)
    with pytest.raises(ValueError, match=r"786432×786432, 2304 GiB"):
        J.dense()


def test_complex_vectors(mixture):
    """J is real and acts on both parts; SciPy's solvers, on complex and real input, against the dense matrix."""
    J = JacobianOperator(mixture, point(mixture), T, batch_size=3)
    dense, D = J.dense(progress=False), J.shape[0]
    rng = np.random.default_rng(0)
    v = rng.standard_normal(D) + 1j * rng.standard_normal(D)
    V = rng.standard_normal((D, 4)) + 1j * rng.standard_normal((D, 4))
    assert J.dtype == np.float64
    assert np.allclose(J @ v, dense @ v) and np.allclose(J @ V, dense @ V)
    assert np.allclose(J @ (1j * v.real), 1j * (dense @ v.real))
    assert np.allclose(J.rmatvec(v), dense.conj().T @ v) and np.allclose(J.rmatmat(V), dense.conj().T @ V)
    assert np.allclose(J.T @ v, dense.T @ v) and np.allclose(J.H @ v, dense.conj().T @ v)
    algebra = aslinearoperator(J) * (1 + 2j) + J.T @ J
    assert np.allclose(algebra @ v, (dense * (1 + 2j) + dense.T @ dense) @ v)
    assert np.allclose(algebra.H @ v, (dense * (1 + 2j) + dense.T @ dense).conj().T @ v)
    largest = np.sort(np.abs(np.linalg.eigvals(dense)))[::-1][:3]
    assert np.allclose(np.sort(np.abs(eigs(J, k=3, return_eigenvectors=False)))[::-1], largest, rtol=1e-6)
    assert np.allclose(np.sort(svds(J, k=3, return_singular_vectors=False))[::-1], np.linalg.svd(dense)[1][:3], rtol=1e-6)
    shifted = aslinearoperator(J) + LinearOperator((D, D), lambda x: (1 + 1j) * x, dtype=complex)
    for b in (v, v.real):
        x, info = gmres(shifted, b, rtol=1e-10)
        assert info == 0 and np.allclose(dense @ x + (1 + 1j) * x, b, atol=1e-7)
        x = lsqr(shifted_real(J), b.real, atol=1e-12, btol=1e-12)[0]
        assert np.allclose(dense @ x + x, b.real, atol=1e-6)
    with pytest.raises(ValueError, match="v is of complex128"):
        J.image(v)


def shifted_real(J):
    D = J.shape[0]
    return aslinearoperator(J) + LinearOperator((D, D), lambda x: x, rmatvec=lambda x: x, dtype=float)
