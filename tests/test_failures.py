"""The cases that go wrong: what is planted is there; and the posterior that is known is one."""

import pytest
import torch

import fcs_lab
from fcs_lab.exact import IdealDenoiser
from fcs_lab.failures import CASES, completed_modes, run_case, shared_half


def test_what_is_planted_is_there():
    """The truth itself fits y, but for the noise, the operator or the image that the case says is wrong."""
    truth = fcs_lab.load_digits(16)[0]
    for section in ("noise in y", "a wrong operator"):
        for name, case in CASES[section].items():
            r = case.pose(truth).y - case.pose(truth).A(truth)
            assert bool((r.abs().max() < 1e-5) == (case.what == "nothing")), name
    noisy = CASES["noise in y"]["σ_y = 0.3"].pose(torch.zeros(8, 1, 32, 32))
    seen = noisy.y[noisy.known.bool().expand_as(noisy.y)]
    assert seen.std().item() == pytest.approx(0.3, abs=0.01)
    alone = CASES["noise in y"]["σ_y = 0.3"].pose(torch.zeros(3, 1, 32, 32)).y
    assert torch.equal(alone, noisy.y[:3]), "an image's noise is its own"


def test_a_case_is_sample_itself():
    case = CASES["noise in y"]["no noise"]
    model = fcs_lab.load("mnist", device="cpu")
    found = run_case(case, 2, seed=5, model=model)
    truth = fcs_lab.load_digits(2)[0]
    generators = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    again = fcs_lab.sample(
        model, case.pose(truth), generator=generators, num_inference_steps=10, inner_steps=3, progress=False
    )
    assert torch.equal(found.result.images, again.images)
    hidden = (again.images - truth)[..., 16:].square().mean((1, 2, 3))
    assert torch.allclose(found.values["hidden"], hidden)
    with pytest.raises(ValueError, match="n is 0"):
        run_case(case, 0)


def test_the_posterior_is_that_of_bayes():
    """The exact denoiser's own probabilities, at almost no noise on the known half and none known of the other."""
    posterior = shared_half(fcs_lab.load_digits(64)[0], (1, 2, 3))
    data, known = posterior.data.double(), ~posterior.task.mask
    fits = (((data - posterior.task.y) * known) ** 2).flatten(1).sum(1) < 1e-9
    matches = (data[:, None] - posterior.modes.double()[None]).flatten(2).abs().amax(2) < 1e-9
    bayes = (fits[:, None] & matches).double().sum(0) / fits.sum()
    assert fits.sum() == 6 and torch.allclose(bayes, posterior.probabilities)


def test_draws_without_a_task_follow_the_prior():
    """The counting is right: what the exact denoiser draws freely comes as often as it is in the data."""
    posterior = shared_half(fcs_lab.load_digits(64)[0], (1, 3), others=1)
    model = IdealDenoiser(posterior.data)
    generators = [torch.Generator().manual_seed(i) for i in range(200)]
    free = fcs_lab.sample(model, None, batch_size=200, generator=generators, num_inference_steps=50, progress=False).images
    nearest = (free[:, None] - posterior.modes[None]).flatten(2).square().sum(2).argmin(1)
    other = (free - posterior.data[-1:]).flatten(1).square().sum(1) < 1
    share = (nearest[~other] == 1).double().mean().item()
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / int((~other).sum())) ** 0.5)


def test_modes_are_counted():
    posterior = shared_half(fcs_lab.load_digits(64)[0], (1, 2))
    counts, distance = completed_modes(posterior, 6, method="identity", num_inference_steps=10, inner_steps=3)
    assert counts.sum() == 6 and distance.shape == (6,)
    again, _ = completed_modes(posterior, 6, method="identity", num_inference_steps=10, inner_steps=3)
    assert torch.equal(counts, again)
    with pytest.raises(ValueError, match="images has 4; expected 2 for the modes and 24 others"):
        shared_half(fcs_lab.load_digits(4)[0], (1, 2))
