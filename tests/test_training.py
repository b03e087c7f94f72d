import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file

import fcs_lab
from fcs_lab.data import read_mnist, scale
from fcs_lab.training.__main__ import main
from fcs_lab.training.diffusion import MNIST, train

TINY = replace(
    MNIST,
    unet=MNIST.unet | {"sample_size": 8, "block_out_channels": (8, 16, 16), "norm_num_groups": 4, "attention_head_dim": 8},
    steps=6,
    checkpoints=(3, 6),
    batch_size=4,
    warmup_steps=2,
)


@pytest.fixture
def images():
    return torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one(images, tmp_path):
    whole = train(TINY, images, tmp_path / "whole", progress=False)
    for _ in range(3):
        pieces = train(TINY, images, tmp_path / "pieces", max_steps=2, progress=False)
    a, b = weights(whole), weights(pieces)
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (load_file(tmp_path / run / "state.safetensors") for run in ("whole", "pieces"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupted_run_loses_nothing(images, tmp_path, monkeypatch):
    recipe = replace(TINY, checkpoints=())
    whole = train(recipe, images, tmp_path / "whole", progress=False)
    randn, calls = torch.randn, []

    def interrupted(*arguments, **options):
        calls.append(0)
        if len(calls) == 5:  # Ctrl-C in the midst of the fifth step
            raise KeyboardInterrupt
        return randn(*arguments, **options)

    monkeypatch.setattr(torch, "randn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, images, tmp_path / "stopped", progress=False, save_every=1000)
    monkeypatch.undo()
    assert int(load_file(tmp_path / "stopped" / "state.safetensors")["adam.0.step"]) == 4
    resumed = train(recipe, images, tmp_path / "stopped", progress=False)
    a, b = weights(whole), weights(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_a_run_leaves(images, tmp_path):
    model = train(TINY, images, tmp_path, progress=False)
    assert DDPMPipeline.from_pretrained(model).unet.config.sample_size == 8
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00003", "step-00006"]
    half = weights(tmp_path / "checkpoints" / "step-00006")
    assert all(value.dtype == torch.float16 for value in half.values())
    full = weights(model)
    assert all(torch.equal(half[name], full[name].half()) for name in half)
    assert fcs_lab.load(tmp_path / "checkpoints" / "step-00003").shape == (1, 8, 8)
    assert (tmp_path / "samples" / "step-00006.png").exists()


def test_training_learns(tmp_path):
    """On images that are all alike, a short run must come to predict the noise far better than at the start."""
    recipe = replace(TINY, steps=150, checkpoints=(), batch_size=16, warmup_steps=10, learning_rate=3e-3)
    train(recipe, -torch.ones(4, 1, 8, 8), tmp_path, progress=False)
    assert load_file(tmp_path / "state.safetensors")["loss_average"] < 0.6


def write_mnist(folder, count=4, compress=False):
    images = np.arange(count * 28 * 28, dtype=np.int64).reshape(count, 28, 28).astype(np.uint8)
    labels = np.arange(count, dtype=np.uint8)
    for stem in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return images, labels


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files(tmp_path, compress):
    images, labels = write_mnist(tmp_path, compress=compress)
    read, read_labels = read_mnist(tmp_path, "test")
    assert np.array_equal(read[:, 2:-2, 2:-2].numpy(), images)
    assert not read[:, :2].any() and not read[:, :, -2:].any()
    assert np.array_equal(read_labels.numpy(), labels)
    scaled = scale(read)
    assert scaled.shape == (4, 1, 32, 32) and scaled.min() == -1 and scaled.max() == 1


def test_broken_idx_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        read_mnist(tmp_path)
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="truncated"):
        read_mnist(tmp_path)
    path.write_bytes(b"PNG, not idx")
    with pytest.raises(ValueError, match="not an idx file"):
        read_mnist(tmp_path)


@pytest.mark.parametrize("what", ["mnist", "classifier"])
def test_the_command_takes_two_steps(tmp_path, what, capsys):
    write_mnist(tmp_path)
    code = main([what, "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--max-steps", "2", "--no-progress"])
    assert code == 0
    assert str(tmp_path / "run") in capsys.readouterr().out
    assert list((tmp_path / "run").rglob("*.safetensors"))
