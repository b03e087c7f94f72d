import gzip
import io
import pickle
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_denoiser
from diffusers import DDPMPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

import fcs_lab
from fcs_lab.data import read_cifar10, read_mnist, scale
from fcs_lab.denoisers import InpaintingDenoiser
from fcs_lab.images import to_pil
from fcs_lab.training import diffusion, fid
from fcs_lab.training.__main__ import main
from fcs_lab.training.diffusion import CIFAR10, MNIST, MNIST_INPAINTING, train
from fcs_lab.training.masks import draw_masks

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


def test_a_tuned_network_begins_as_the_model_that_it_is_tuned_from():
    base = fcs_lab.load("mnist", device="cpu")
    unet = UNet2DModel(**MNIST_INPAINTING.unet)
    diffusion._begin_as(unet, base.unet)
    model = InpaintingDenoiser(unet, base.scheduler)
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    known = (torch.arange(32) < 16).float().expand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model.given(known, torch.ones_like(x))(x, 400), base(x, 400), atol=1e-4)


def test_masks_are_of_all_kinds_and_drawn_alike():
    masks = draw_masks(600, 32, torch.Generator().manual_seed(0))
    assert masks.shape == (600, 1, 32, 32) and set(masks.unique().tolist()) == {0.0, 1.0}
    share = masks.mean((1, 2, 3))
    assert 0.1 < (share == 1).float().mean() < 0.25 and 0.3 < share.mean() < 0.7
    for column in (0, 31):  # each border is sometimes hidden and sometimes known
        assert 0.2 < masks[..., column].mean() < 0.9
    assert torch.equal(masks, draw_masks(600, 32, torch.Generator().manual_seed(0)))


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


@pytest.mark.parametrize("what", ["mnist", "mnist-inpainting", "classifier"])
def test_the_command_takes_two_steps(tmp_path, what, capsys):
    write_mnist(tmp_path)
    code = main([what, "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--max-steps", "2", "--no-progress"])
    assert code == 0
    assert str(tmp_path / "run") in capsys.readouterr().out
    assert list((tmp_path / "run").rglob("*.safetensors"))


def photographs(count=5, size=32):
    """Smooth colour images (count, 3, size, size), uint8."""
    rough = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(rough, size, mode="bilinear") * 255).to(torch.uint8)


def write_npz(path, images):
    files = []
    for image in to_pil(images.float() / 127.5 - 1):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(path, jpeg=np.concatenate(files), offset=np.cumsum([0, *map(len, files)]), label=np.zeros(len(files), np.uint8))


def test_cifar10_comes_in_four_forms(tmp_path):
    images = photographs()
    wanted = images.float() / 127.5 - 1
    write_npz(tmp_path / "files.npz", images)
    np.savez(tmp_path / "pixels.npz", x=images.permute(0, 2, 3, 1).numpy(), y=np.zeros(5, np.int64))
    (tmp_path / "binary").mkdir()
    for name, part in (("data_batch_1.bin", images[:2]), ("data_batch_2.bin", images[2:]), ("test_batch.bin", images[:1])):
        records = np.concatenate([np.full((len(part), 1), 7, np.uint8), part.reshape(len(part), -1).numpy()], axis=1)
        records.tofile(tmp_path / "binary" / name)
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    for i, image in enumerate(to_pil(wanted)):
        image.save(tmp_path / "folder" / "deeper" / f"{i}.png")
    for name in ("files.npz", "pixels.npz", "binary", "folder"):
        read = read_cifar10(tmp_path / name)
        assert read.dtype == torch.float32 and torch.equal(read, wanted), name
    assert torch.equal(read_cifar10(tmp_path / "binary" / "test_batch.bin"), wanted[:1])


def test_a_folder_of_photographs_is_cropped_to_squares(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255  # the middle square
    Image.fromarray(picture).save(tmp_path / "wide.png")
    read = read_cifar10(tmp_path, size=16)
    assert read.shape == (1, 3, 16, 16)
    assert (read[..., 1:-1] == 1).all() and read.min() > 0.5  # the filter looks one pixel beyond the crop


def test_what_is_not_cifar10_is_refused(tmp_path):
    with pytest.raises(ValueError, match="path is ''"):
        read_cifar10("")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_cifar10(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no images"):
        read_cifar10(tmp_path)
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}))
    with pytest.raises(ValueError, match=r"pickles.*binary version"):
        read_cifar10(tmp_path / "batches")
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3000))
    with pytest.raises(ValueError, match="3000 bytes; expected records of 3073"):
        read_cifar10(tmp_path / "data_batch_1.bin")
    np.savez(tmp_path / "grey.npz", x=np.zeros((4, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="no arrays jpeg and offset"):
        read_cifar10(tmp_path / "grey.npz")
    write_npz(tmp_path / "large.npz", photographs(size=48))
    with pytest.raises(ValueError, match=r"image 0 of .*48×48; expected 32×32"):
        read_cifar10(tmp_path / "large.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_cifar10(tmp_path / "objects.npz")


def test_the_cifar10_recipe_fits_its_limit():
    with torch.device("meta"):
        unet = UNet2DModel(**CIFAR10.unet)
        assert unet(torch.empty(1, 3, 32, 32), 0).sample.shape == (1, 3, 32, 32)
    assert 15e6 < sum(parameter.numel() for parameter in unet.parameters()) <= 20e6  # 40 MB in half precision
    assert CIFAR10.flip


def test_the_cifar10_command_takes_two_steps(tmp_path, monkeypatch):
    small = CIFAR10.unet | {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "attention_head_dim": 8}
    monkeypatch.setattr(diffusion, "CIFAR10", replace(CIFAR10, unet=small, batch_size=2))
    monkeypatch.setattr(diffusion, "_write_samples", lambda *_: None)  # 50 steps of 16 images
    write_npz(tmp_path / "train.npz", photographs())
    arguments = ["cifar10", "--data", str(tmp_path / "train.npz"), "--out", str(tmp_path / "run"), "--no-progress"]
    for _ in range(2):
        assert main([*arguments, "--max-steps", "1"]) == 0
    assert int(load_file(tmp_path / "run" / "state.safetensors")["adam.0.step"]) == 2
    assert fcs_lab.load(tmp_path / "run" / "model").shape == (3, 32, 32)


class Means:
    """A metric that keeps the mean level of what it is shown."""

    def __init__(self):
        self.levels = {True: [], False: []}

    def update(self, images, real):
        assert images.dtype == torch.uint8
        self.levels[real].append(images.double().flatten(1).mean(1))

    def compute(self):
        return tuple(torch.cat(self.levels[real]).mean() for real in (True, False))


def test_fid_shows_the_metrics_what_they_are_to_compare():
    model, truth = tiny_denoiser(torch.float32, in_channels=3, out_channels=3), torch.ones(7, 3, 8, 8)
    settings = {"num_inference_steps": 2, "batch_size": 4, "progress": False}
    metric = Means()
    (real, made) = fid.measure(model, truth, {"means": metric}, count=6, **settings)["means"]
    assert real == 255 and 0 < made < 255
    assert [len(part) for part in metric.levels[False]] == [4, 2]
    again = fid.measure(model, truth, {"means": Means()}, count=6, **settings)["means"]
    assert again == [real, made]
    with pytest.raises(ValueError, match="1 channels"):
        fid.measure(tiny_denoiser(torch.float32), truth, {}, count=2)
    with pytest.raises(ValueError, match=r"truth has shape \(7, 3, 8, 8\)"):
        fid.measure(tiny_denoiser(torch.float32, in_channels=3, out_channels=3, size=16), truth, {}, count=2)


def test_fid_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"fcs-lab\[fid\]"):
        fid.inception_metrics(torch.device("cpu"), 10)
