import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import tiny_unet
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMPipeline,
    PNDMScheduler,
)

import fcs_lab
from fcs_lab import zoo


@pytest.fixture
def saved(tmp_path):
    """A tiny pipeline saved as anyone would."""
    DDPMPipeline(tiny_unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2")).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_bundled_model():
    model = fcs_lab.load("mnist", device="cpu")
    assert isinstance(model, fcs_lab.Denoiser)
    assert (model.shape, model.dtype) == ((1, 32, 32), torch.float32)
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    size = sum(path.stat().st_size for path in (zoo.WEIGHTS / "mnist").rglob("*"))
    assert size <= 12e6


def test_a_folder_in_diffusers_layout(saved):
    model = fcs_lab.load(saved, device="cpu", torch_dtype=torch.float64)
    assert model.dtype == torch.float64
    assert isinstance(model.scheduler, DDIMScheduler)
    assert torch.equal(model.scheduler.alphas_cumprod, DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod)
    assert fcs_lab.sample(model, num_inference_steps=2, progress=False).images.shape == (1, 1, 8, 8)


def test_a_multistep_scheduler_is_replaced_and_said(tmp_path):
    scheduler = PNDMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    PNDMPipeline(tiny_unet(), scheduler).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="PNDMScheduler; sampling here uses DDIM"):
        model = fcs_lab.load(tmp_path)
    assert torch.equal(model.scheduler.alphas_cumprod, scheduler.alphas_cumprod)
    assert model.prediction_type == "v_prediction"


def test_other_pipelines_are_refused_by_name(tmp_path):
    from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, num_layers=1, norm_num_groups=4, sample_size=4, num_embeds_ada_norm=4
    )
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    DiTPipeline(transformer, vae, DDIMScheduler()).save_pretrained(tmp_path / "dit")
    with pytest.raises(ValueError, match=r"DiTPipeline; supported are unconditional pixel"):
        fcs_lab.load(tmp_path / "dit")
    (tmp_path / "dit" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a None; supported are"):
        fcs_lab.load(tmp_path / "dit")


def test_a_rectified_flow_keeps_its_scheduler(tmp_path):
    DDPMPipeline(tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=2.0)).save_pretrained(tmp_path)
    model = fcs_lab.load(tmp_path, device="cpu")
    assert (model.prediction_type, model.scheduler.config.shift) == ("flow", 2.0)


def test_schedulers_without_a_noise_schedule_are_refused():
    with pytest.raises(
        ValueError, match=r"the model has a EDMEulerScheduler; supported are schedulers with a noise schedule"
    ):
        zoo.own_schedule("the model", EDMEulerScheduler())


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_weight_file_is_named(monkeypatch, tmp_path, damage):
    shutil.copytree(zoo.WEIGHTS / "mnist", tmp_path / "mnist")
    shutil.copy(zoo.WEIGHTS / "checksums.json", tmp_path)
    weights = tmp_path / "mnist" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    weights.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors is damaged"):
        fcs_lab.load("mnist")


def test_a_truncated_file_in_a_folder_is_named(saved):
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged or truncated"):
        fcs_lab.load(saved)


def test_pickled_weights_are_refused(saved):
    unet = saved / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(tiny_unet().state_dict(), unet / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights \(diffusion_pytorch_model.bin\).*refused"):
        fcs_lab.load(saved)


def test_misspelt_names_say_what_there_is(tmp_path):
    with pytest.raises(
        OSError, match=r"no bundled model and no folder 'mnits'; expected a bundled model \('mnist', 'fashion', 'emoji'\)"
    ):
        fcs_lab.load("mnits")
    with pytest.raises(OSError, match="no bundled model and no folder"):
        fcs_lab.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"model_index.json"):
        fcs_lab.load(tmp_path)
    with pytest.raises(TypeError, match="name is 3"):
        fcs_lab.load(3)
    with pytest.raises(TypeError, match="torch_dtype is 'half'"):
        fcs_lab.load("mnist", torch_dtype="half")


def test_an_unreachable_hub_says_how_to_work_without():
    script = "import fcs_lab; fcs_lab.load('google/ddpm-celebahq-257')"
    run = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()
    assert any("OSError: could not get 'google/ddpm-celebahq-257' from the hub" in line for line in last), run.stderr
    assert any("Without a network, use a bundled model" in line for line in last)
    assert any("accept its terms on its page and to log in (hf auth login)" in line for line in last)


def test_checkpoints_load():
    folders = zoo.checkpoints("mnist")
    assert 4 <= len(folders) <= 5
    for folder in folders:
        assert fcs_lab.load(folder, device="cpu").shape == (1, 32, 32)
    with pytest.raises(ValueError, match="name is 'cifar'"):
        zoo.checkpoints("cifar")


def test_bundled_digits_are_mnists():
    images, labels = fcs_lab.load_digits()
    assert images.shape == (256, 1, 32, 32) and labels.shape == (256,)
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # MNIST's test set begins so
    assert images.min() == -1 and images.max() == 1
    assert (images[..., :2] == -1).all() and (images[:, :, -2:] == -1).all()
    with pytest.raises(ValueError, match="count is 300"):
        fcs_lab.load_digits(300)


def test_classifier_knows_the_digits():
    from fcs_lab.classifier import load_classifier
    from fcs_lab.metrics import accuracy

    images, labels = fcs_lab.load_digits()
    assert accuracy(load_classifier(), images, labels) >= 0.99
    assert accuracy(load_classifier(), images, (labels + 1) % 10) < 0.01
