import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import tiny_pipelines as tiny
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
from PIL import Image
from safetensors.torch import save_file

import fcs_lab
from fcs_lab import zoo
from fcs_lab.latent import LatentDenoiser
from fcs_lab.pipelines import FastConstrainedPipeline


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


@pytest.fixture
def sd():
    return tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))


def same(one, other):
    """Whether two pipelines' networks have the same weights."""
    for part in ("unet", "vae", "text_encoder"):
        a, b = (getattr(pipe, part).float().state_dict() for pipe in (one, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), part


@pytest.mark.parametrize("also_plain", [False, True])
def test_a_variant_is_found_and_may_be_asked_for(tmp_path, sd, also_plain):
    sd.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    same(fcs_lab.load(tmp_path, device="cpu").pipeline, sd)
    if also_plain:  # others without a variant, beside
        tiny.sd(unet=tiny.unet()).save_pretrained(tmp_path)
    same(fcs_lab.load(tmp_path, device="cpu", variant="fp16").pipeline, sd)
    assert FastConstrainedPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match=r"cannot be read.*bf16"):
        fcs_lab.load(tmp_path, variant="bf16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files(tmp_path, sd, variant):
    sd.save_pretrained(tmp_path, max_shard_size="20KB", variant=variant)
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    same(fcs_lab.load(tmp_path, device="cpu").pipeline, sd)


def original_layout(pipe):
    """The weights of a Stable Diffusion pipeline by the names that its authors gave them, which single files have."""

    def replaced(key, rules):
        for pattern, to in rules.items():
            key = re.sub(pattern, to, key)
        return key

    def index(kind, column, first):
        return lambda match: f"{kind}.{first + 2 * int(match[1]) + int(match[2])}.{column}"

    around = {
        r"^down_blocks\.(\d)\.resnets\.(\d)": index("input_blocks", 0, 1),
        r"^down_blocks\.(\d)\.attentions\.(\d)": index("input_blocks", 1, 1),
        r"^down_blocks\.(\d)\.downsamplers\.(0)\.conv": lambda match: f"input_blocks.{2 + 2 * int(match[1])}.0.op",
        r"^up_blocks\.(\d)\.resnets\.(\d)": index("output_blocks", 0, 0),
        r"^up_blocks\.(\d)\.attentions\.(\d)": index("output_blocks", 1, 0),
        r"^up_blocks\.(\d)\.upsamplers\.0\.conv": lambda match: f"output_blocks.{2 * int(match[1]) + 1}.1.conv",
        r"^conv_in": "input_blocks.0.0",
        r"^time_embedding\.linear_1": "time_embed.0",
        r"^time_embedding\.linear_2": "time_embed.2",
        r"^conv_norm_out": "out.0",
        r"^conv_out": "out.2",
        r"^mid_block\.resnets\.0": "middle_block.0",
        r"^mid_block\.attentions\.0": "middle_block.1",
        r"^mid_block\.resnets\.1": "middle_block.2",
    }
    of_blocks = {
        r"\.norm1\.": ".in_layers.0.",
        r"\.conv1\.": ".in_layers.2.",
        r"\.time_emb_proj\.": ".emb_layers.1.",
        r"\.norm2\.": ".out_layers.0.",
        r"\.conv2\.": ".out_layers.3.",
        r"\.conv_shortcut\.": ".skip_connection.",
    }
    of_vae = {
        r"^encoder\.down_blocks\.(\d)\.resnets": r"encoder.down.\1.block",
        r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.conv": r"encoder.down.\1.downsample.conv",
        r"^decoder\.up_blocks\.(\d)\.resnets": lambda match: f"decoder.up.{2 - int(match[1])}.block",
        r"^decoder\.up_blocks\.(\d)\.upsamplers\.0\.conv": lambda match: f"decoder.up.{2 - int(match[1])}.upsample.conv",
        r"mid_block\.resnets\.(\d)": lambda match: f"mid.block_{int(match[1]) + 1}",
        r"mid_block\.attentions\.0": "mid.attn_1",
        r"\.group_norm\.": ".norm.",
        r"\.to_([qkv])\.": r".\1.",
        r"\.to_out\.0\.": ".proj_out.",
        r"\.conv_norm_out\.": ".norm_out.",
        r"\.conv_shortcut\.": ".nin_shortcut.",
    }
    weights = {}
    for key, value in pipe.unet.state_dict().items():
        key = replaced(key, around)
        key = key if "transformer_blocks" in key else replaced(key, of_blocks)
        weights[f"model.diffusion_model.{key}"] = value
    weights |= {f"first_stage_model.{replaced(key, of_vae)}": value for key, value in pipe.vae.state_dict().items()}
    text = "cond_stage_model.transformer.text_model."
    weights |= {text + key.removeprefix("text_model."): value for key, value in pipe.text_encoder.state_dict().items()}
    return {key: value.contiguous() for key, value in weights.items()}


def test_a_single_file(tmp_path, sd):
    sd.save_pretrained(tmp_path / "configs")
    for weights in (tmp_path / "configs").rglob("*.safetensors"):
        weights.unlink()
    file = tmp_path / "all.safetensors"
    save_file(original_layout(sd), file)
    with pytest.raises(
        ValueError, match=r"all.safetensors is a single file, .*: pass config=, a folder in diffusers' layout"
    ):
        fcs_lab.load(file)
    with pytest.raises(OSError, match=r"config is .*there is no such folder"):
        fcs_lab.load(file, config=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config is .* is no single file"):
        fcs_lab.load(tmp_path / "configs", config=tmp_path / "configs")
    same(fcs_lab.load(file, config=tmp_path / "configs", device="cpu").pipeline, sd)
    same(FastConstrainedPipeline.from_pretrained(file, config=tmp_path / "configs"), sd)
    for name, content in {"all.ckpt": "is pickled weights, which can run code", "all.txt": "is no model"}.items():
        (tmp_path / name).write_bytes(b"0")
        with pytest.raises(ValueError, match=content):
            fcs_lab.load(tmp_path / name, config=tmp_path / "configs")


def test_pickled_weights_of_one_part_are_refused_however_it_is_loaded(tmp_path, sd):
    sd.save_pretrained(tmp_path)
    vae = tmp_path / "vae"
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(sd.vae.state_dict(), vae / "diffusion_pytorch_model.bin")
    for load in (fcs_lab.load, zoo.load_pipeline, FastConstrainedPipeline.from_pretrained):
        with pytest.raises(ValueError, match=r"pickled weights \(diffusion_pytorch_model.bin\) of its vae.*refused"):
            load(tmp_path)
    sd.vae.save_pretrained(vae)  # beside safetensors a pickle is not looked at
    same(zoo.load_pipeline(tmp_path), sd)
    for option in ({"use_safetensors": False}, {"custom_pipeline": "other/code"}, {"trust_remote_code": True}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is given; only safetensors are loaded here"):
            zoo.load_pipeline(tmp_path, **option)


def test_a_configuration_without_a_size(tmp_path, sd):
    sd.unet.register_to_config(sample_size=None)
    sd.save_pretrained(tmp_path)
    model = fcs_lab.load(tmp_path, device="cpu")
    assert model.shape == (4, 64, 64)
    task = fcs_lab.Inpainting(torch.zeros(1, 3, 32, 48), torch.arange(48).expand(32, 48) > 20)
    assert fcs_lab.sample(model, task, num_inference_steps=2, inner_steps=1, progress=False).images.shape == (1, 3, 32, 48)


def test_compiled_networks(sd):
    task = fcs_lab.Inpainting(torch.zeros(1, 3, 32, 32), torch.arange(32).expand(32, 32) > 15)
    options = {"num_inference_steps": 2, "inner_steps": 1, "progress": False}
    found = []
    for compiled in (False, True):
        if compiled:
            sd.unet, sd.vae = (torch.compile(part, backend="eager") for part in (sd.unet, sd.vae))
        model = LatentDenoiser(sd, sd.scheduler, "a dress", None, 2.0)
        found.append(fcs_lab.sample(model, task, generator=torch.Generator().manual_seed(0), **options).x0)
    assert torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("make", [tiny.flux, tiny.pixart, tiny.sana], ids=["flux", "pixart", "sana"])
def test_other_families_are_sent_to_constrained(tmp_path, make):
    pipe = make()
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"is a {type(pipe).__name__}; .* use fcs_lab.constrained"):
        fcs_lab.load(tmp_path)
    assert type(zoo.load_pipeline(tmp_path)) is type(pipe)


def test_misspelt_names_say_what_there_is(tmp_path):
    with pytest.raises(
        OSError, match=r"no folder 'mnits'; expected a bundled model \('mnist', 'fashion', 'emoji', 'mnist-inp"
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


@pytest.mark.parametrize("where", ["unet", "vae", "text_encoder"])
def test_a_truncated_file_of_any_part_is_named(tmp_path, sd, where):
    sd.save_pretrained(tmp_path)
    (weights,) = (tmp_path / where).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{where}/{weights.name} .*damaged or truncated"):
        fcs_lab.load(tmp_path)
    weights.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{where}/{weights.name} .*damaged or truncated"):
        zoo.load_pipeline(tmp_path)


def written(folder, sd, **changes):
    sd.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text()) | changes
    (folder / "model_index.json").write_text(json.dumps(index))


HOSTILE = {
    "a class of another library": ({"unet": ["os", "system"]}, r"code of its own \(unet is os.system\), which is not run"),
    "code in the folder": ({"unet": ["unet_code", "Unet"]}, r"code of its own \(unet is unet_code.Unet\)"),
    "a pipeline of its own": ({"_class_name": ["my_pipeline", "Mine"]}, "code of its own"),
    "no class of diffusers": ({"unet": ["diffusers", "NoSuchModel"]}, "unet is diffusers.NoSuchModel; expected a class"),
    "a function": ({"unet": ["transformers", "pipeline"]}, "unet is transformers.pipeline; expected a class"),
    "a path that leaves the folder": (
        {"../outside": ["diffusers", "UNet2DConditionModel"]},
        r"'../outside'; expected",
    ),
    "an absolute path": ({"/etc": ["diffusers", "UNet2DConditionModel"]}, r"'/etc'; expected names"),
    "no pipeline": ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel"),
    "a name that is none": ({"_class_name": "os.system"}, "is a os.system"),
    "an entry of another shape": ({"unet": ["diffusers"]}, r"unet is \['diffusers'\]"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_indices_are_refused_before_anything_is_loaded(tmp_path, sd, monkeypatch, case):
    changes, words = HOSTILE[case]
    written(tmp_path / "model", sd, **changes)
    (tmp_path / "model" / "unet_code.py").write_text("raise SystemExit('code was run')")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("weights were read"))
    for load in (fcs_lab.load, zoo.load_pipeline):
        with pytest.raises(ValueError, match=words):
            load(tmp_path / "model")


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "null", '{"_class_name": 3}', "\udcff"])
def test_an_index_that_is_no_index(tmp_path, sd, content):
    sd.save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    for load in (fcs_lab.load, zoo.load_pipeline):
        with pytest.raises(ValueError, match=r"model_index.json|is a 3|cannot be read"):
            load(tmp_path)


def test_loops_of_links(tmp_path, sd):
    sd.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "loop").symlink_to(tmp_path / "model", target_is_directory=True)
    same(zoo.load_pipeline(tmp_path / "model"), sd)  # beside the parts it does no harm
    shutil.rmtree(tmp_path / "model" / "unet")
    (tmp_path / "model" / "unet").symlink_to(tmp_path / "model" / "unet")
    with pytest.raises(ValueError, match=r"has no .safetensors weights of its unet"):
        fcs_lab.load(tmp_path / "model")


def test_one_of_ten_thousand_files_is_no_picture(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "00000.png")
    for i in range(1, 10_000):
        os.link(tmp_path / "00000.png", tmp_path / f"{i:05}.png")
    (tmp_path / "07777.png").unlink()
    (tmp_path / "07777.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"07777.png is not an image that can be read"):
        fcs_lab.data.read_cifar10(tmp_path)
