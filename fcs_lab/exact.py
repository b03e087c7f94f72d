"""Exact denoisers: of data whose distribution is known, x̂_0 = E[x_0 | x_t] and J in closed form.

What the lab's tests hold everything else to. They meet `Denoiser`, as a network does; none of them is learned.
"""

from __future__ import annotations

import math

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from fcs_lab.checks import check_tensor, typed
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import alpha_bar_at, check_shape

__all__ = ["GaussianMixtureDenoiser", "IdealDenoiser"]


class GaussianMixtureDenoiser:
    """The exact denoiser of data x_0 ~ Σ_k w_k N(μ_k, Σ_k): x̂_0 = E[x_0 | x_t], with J in closed form.

    Given component k, x_t is Gaussian with covariance S_k = ᾱ Σ_k + (1−ᾱ) I, and E[x_0 | x_t, k] is linear in x_t;
    the components are weighted by their posterior probabilities. J = (√ᾱ_t / (1−ᾱ_t)) Cov[x_0 | x_t] is symmetric
    and positive semi-definite (paper, the step from Tweedie's formula).

    Args:
        means: μ_k (K, C, H, W); gives dtype and device.
        covariances: Σ_k as (K, D, D) with D = C·H·W, as K variances (K,), or as one variance (number).
        weights: w_k (K,), positive; normalised to sum to 1. None: equal.
        scheduler: The noise schedule. None: `DDIMScheduler(clip_sample=False)`, linear β, 1000 timesteps.

    Raises:
        ValueError: Shapes that do not agree, covariances that are not positive semi-definite, weights not positive.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.eye(2)[None])
        >>> x0 = model(torch.ones(1, 1, 1, 2), 500)  # of a standard Gaussian, x̂_0 is √ᾱ_t x_t
        >>> f"{(x0**2).mean().item():.4f}", f"{model.scheduler.alphas_cumprod[500].item():.4f}"
        ('0.0778', '0.0778')
    """

    @ordinary()
    @typed
    def __init__(
        self,
        means: Tensor,
        covariances: Tensor | float = 0.0,
        weights: Tensor | None = None,
        scheduler: SchedulerMixin | None = None,
    ):
        if means.ndim < 2 or not means.is_floating_point():
            raise ValueError(f"means has shape {tuple(means.shape)} and dtype {means.dtype}; expected floating (K, C, H, W)")
        check_tensor("means", means, *means.shape)
        self.shape, self.device, self.dtype = tuple(means.shape[1:]), means.device, means.dtype
        self.scheduler = scheduler if scheduler is not None else DDIMScheduler(clip_sample=False)
        self.means = means.flatten(1)
        K, D = self.means.shape
        if isinstance(covariances, Tensor):
            check_tensor("covariances", covariances, *covariances.shape)
        elif not math.isfinite(covariances):
            raise ValueError(f"covariances is {covariances}; expected a finite number")
        covariances = torch.as_tensor(covariances, device=self.device, dtype=self.dtype)
        if covariances.ndim == 3 and covariances.shape == (K, D, D):
            # Σ_k = U diag(s) Uᵀ, once; S_k and its inverse then cost a rotation at every t.
            self.spectrum, self.basis = torch.linalg.eigh(covariances)
        elif covariances.shape in ((), (K,)):
            self.spectrum, self.basis = covariances.expand(K).reshape(K, 1).expand(K, D), None
        else:
            raise ValueError(f"covariances has shape {tuple(covariances.shape)}; expected (), ({K},) or ({K}, {D}, {D})")
        if self.spectrum.min() < -1e-9 * self.spectrum.abs().max():
            raise ValueError(f"covariances has a negative eigenvalue ({self.spectrum.min():.3g}); expected none")
        weights = self.means.new_ones(K) if weights is None else weights
        if weights.shape != (K,) or not bool((weights > 0).all()):
            raise ValueError(f"weights is {weights}; expected {K} positive numbers")
        self.log_weights = (weights / weights.sum()).log().to(self.means)

    @ordinary()
    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        check_shape(self, x_t)
        probabilities, component_means, _ = self._posterior(x_t, t)
        return torch.einsum("bk,bkd->bd", probabilities, component_means).reshape(x_t.shape)

    @ordinary()
    def covariance(self, x_t: Tensor, t: int) -> Tensor:
        """Cov[x_0 | x_t], (B, D, D): within the components plus between them."""
        check_shape(self, x_t)
        probabilities, component_means, spectrum = self._posterior(x_t, t)
        within = torch.diag_embed(spectrum[0])
        if self.basis is not None:
            within = self.basis @ within @ self.basis.mT
        centred = component_means - torch.einsum("bk,bkd->bd", probabilities, component_means)[:, None]
        between = torch.einsum("bk,bki,bkj->bij", probabilities, centred, centred)
        return torch.einsum("bk,kij->bij", probabilities, within) + between

    def jacobian(self, x_t: Tensor, t: int) -> Tensor:
        """J = ∂x̂_0/∂x_t, (B, D, D), in closed form: (√ᾱ_t/(1−ᾱ_t)) Cov[x_0 | x_t]."""
        alpha_bar = alpha_bar_at(self, t, x_t)
        return alpha_bar.sqrt() / (1 - alpha_bar) * self.covariance(x_t, t)

    def _posterior(self, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p(k | x_t) (B, K), E[x_0 | x_t, k] (B, K, D), and the eigenvalues of Cov[x_0 | x_t, k] (B or 1, K, D)."""
        alpha_bar = alpha_bar_at(self, t, x_t).reshape(-1, 1, 1)
        centred = x_t.flatten(1)[:, None] - alpha_bar.sqrt() * self.means  # (B, K, D)
        if self.basis is not None:
            centred = torch.einsum("kij,bki->bkj", self.basis, centred)  # to the eigenbasis
        total = alpha_bar * self.spectrum + (1 - alpha_bar)  # eigenvalues of S_k
        log_likelihood = -0.5 * (centred.square() / total + total.log()).sum(-1)
        probabilities = torch.softmax(self.log_weights + log_likelihood, dim=-1)
        shift = alpha_bar.sqrt() * self.spectrum / total * centred
        if self.basis is not None:
            shift = torch.einsum("kij,bkj->bki", self.basis, shift)
        return probabilities, self.means + shift, self.spectrum * (1 - alpha_bar) / total


class IdealDenoiser:
    """The exact denoiser of a finite data set: x̂_0 = E[x_0 | x_t] when x_0 is one of `data`, all equally likely.

    It is what a network trained without error on exactly these images would be, with
    J = (√ᾱ_t / (1−ᾱ_t)) Cov[x_0 | x_t]. It can only reproduce its data.

    Args:
        data: (N, C, H, W) in [-1, 1]; gives dtype and device.
        scheduler: As for `GaussianMixtureDenoiser`.

    Example:
        >>> digits = fcs_lab.load_digits(4)[0]
        >>> x0 = fcs_lab.IdealDenoiser(digits)(digits[:1], 1)  # nearly without noise: the digit itself
        >>> f"{(x0 - digits[:1]).abs().max().item():.2f}"
        '0.00'
    """

    @ordinary()
    @typed
    def __init__(self, data: Tensor, scheduler: SchedulerMixin | None = None):
        if data.ndim < 2 or len(data) == 0 or not data.is_floating_point():
            raise ValueError(f"data has shape {tuple(data.shape)} and dtype {data.dtype}; expected floating (N, C, H, W)")
        check_tensor("data", data, *data.shape)
        self.shape, self.device, self.dtype = tuple(data.shape[1:]), data.device, data.dtype
        self.scheduler = scheduler if scheduler is not None else DDIMScheduler(clip_sample=False)
        self.data = data.flatten(1)

    @ordinary()
    def probabilities(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """p(x_0 = data_i | x_t), (B, N)."""
        alpha_bar = alpha_bar_at(self, t, x_t).reshape(-1, 1)
        # −‖x_t − √ᾱ x_0‖² / (2 (1−ᾱ)) without the part that all images share.
        fit = alpha_bar.sqrt() * (x_t.flatten(1) @ self.data.T) - alpha_bar / 2 * self.data.square().sum(1)
        return torch.softmax(fit / (1 - alpha_bar), dim=-1)

    @ordinary()
    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        check_shape(self, x_t)
        return (self.probabilities(x_t, t) @ self.data).reshape(x_t.shape)

    @ordinary()
    def covariance(self, x_t: Tensor, t: int) -> Tensor:
        """Cov[x_0 | x_t], (B, D, D)."""
        check_shape(self, x_t)
        probabilities = self.probabilities(x_t, t)
        weighted = probabilities.sqrt()[..., None] * (self.data - (probabilities @ self.data)[:, None])  # (B, N, D)
        return weighted.mT @ weighted

    def jacobian(self, x_t: Tensor, t: int) -> Tensor:
        """J = ∂x̂_0/∂x_t, (B, D, D), in closed form: (√ᾱ_t/(1−ᾱ_t)) Cov[x_0 | x_t]."""
        alpha_bar = alpha_bar_at(self, t, x_t)
        return alpha_bar.sqrt() / (1 - alpha_bar) * self.covariance(x_t, t)
