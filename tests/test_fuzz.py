"""A few hundred of the fuzz's calls; `make fuzz` makes 2,000."""

import fuzz
import pytest


def test_every_public_name_has_a_place():
    names = set(fuzz.public_names())
    placed = set(fuzz.CALLS) | set(fuzz.NOT_CALLED)
    training = {name for name in names if name.startswith("training.")}
    assert names - placed == training, "give a new public function a place in tests/fuzz.py"
    assert not placed - names and not set(fuzz.CALLS) & set(fuzz.NOT_CALLED)


def test_the_valid_calls_are_valid():
    without_files = {"data.read_mnist", "data.read_fashion_mnist"}  # whose files are not here
    for name, (function, good) in fuzz.CALLS.items():
        if name not in without_files:
            function(**{argument: make() for argument, make in good.items()})


@pytest.mark.parametrize("part", range(10))
def test_a_spoilt_argument_is_named(part):
    chosen = fuzz.cases(300, seed=1)[part::10]
    faults = [f"{case}: {fault}" for case in chosen if (fault := fuzz.judge(*case)) is not None]
    assert not faults, "\n".join(faults)


def test_the_fuzz_finds_what_is_short():
    """It judges as it should: an error from inside, one that names nothing, a NaN, and one that is right."""
    import torch

    def inside(images):
        return images.no_such_attribute

    def nameless(images):
        raise ValueError("something is wrong")

    def silent(images):
        return torch.full((1,), torch.nan)

    for function, words in ((inside, "AttributeError"), (nameless, "ValueError from"), (silent, "NaN in the result")):
        fuzz.CALLS["mine"] = (function, {"images": lambda: torch.zeros(1)})
        assert words in fuzz.judge("mine", "images", "-1")
    del fuzz.CALLS["mine"]
    assert fuzz.judge("metrics.psnr", "images", "-1") is None
