"""The GPU's script, on a CPU: a tiny geometry through the same code; what only CUDA can tell (memory) through its parts."""

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

FIGURES = Path(__file__).parents[1] / "figures"


@pytest.fixture
def gpu01(monkeypatch):
    monkeypatch.syspath_prepend(FIGURES)
    monkeypatch.setattr("sys.argv", ["figures/gpu01_speed.py", "--quick"])
    spec = importlib.util.spec_from_file_location("gpu01_speed", FIGURES / "gpu01_speed.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu01_speed", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "REPEATS", 1)
    monkeypatch.setattr(module, "QUICK", replace(module.QUICK, steps=1, bundled=()))
    return module


def test_a_run_measures_and_a_second_goes_on(gpu01, tmp_path, monkeypatch, capsys):
    path = tmp_path / "gpu01_speed_quick.json"
    assert gpu01.main(tmp_path, quick=True, only="floor", device="cpu") == 0
    assert list(json.loads(path.read_text())["timings"]["measured"]) == ["floor"]
    # One loop stands for all; a measurement that is there is not made again.
    monkeypatch.setattr(gpu01, "measure_floor", lambda *_: pytest.fail("measured twice"))
    assert gpu01.main(tmp_path, quick=True, only="time | float32", device="cpu") == 0
    record = json.loads(path.read_text())
    measured = record["timings"]["measured"]
    assert list(measured) == ["floor", "time | float32, TF32 off | batch 1", "time | float32, torch's defaults | batch 1"]
    for found in list(measured.values())[1:]:
        assert found["evaluations"] == 3 and found["finite"] and found["seconds_an_image"] > 0
    assert record["settings"]["hardware"] == "CPU" and record["model"]["name"] == "tiny with random weights"
    assert "| float32, TF32 off |" in (tmp_path / "gpu01_speed_quick.md").read_text()
    assert Image.open(tmp_path / "gpu01_speed_quick.png").width > 1000
    assert gpu01.main(tmp_path, quick=True, minutes=0, device="cpu") == 0
    assert "measurements are left: run again" in capsys.readouterr().out


def test_a_failure_is_told_and_tried_again(gpu01, tmp_path, monkeypatch, capsys):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu01, "measure_floor", out_of_memory)
    assert gpu01.main(tmp_path, quick=True, only="floor", device="cpu") == 1
    assert "CUDA out of memory" in capsys.readouterr().err
    monkeypatch.setattr(gpu01, "measure_floor", lambda *_: {"seconds_an_image": 1.0})
    monkeypatch.setattr(gpu01, "as_markdown", lambda _: "")
    assert gpu01.main(tmp_path, quick=True, only="floor", device="cpu") == 0


def test_another_machine_does_not_mix_its_numbers_in(gpu01, tmp_path):
    path = tmp_path / "gpu01_speed_quick.json"
    path.write_text(json.dumps({"settings": {"geometry": "tiny", "hardware": "H200"}, "timings": {"measured": {}}}))
    with pytest.raises(SystemExit, match="measurements of tiny on H200"):
        gpu01.main(tmp_path, quick=True, device="cpu")
    with pytest.raises(SystemExit, match="there is none"):
        gpu01.main(tmp_path, device="cpu")


@pytest.mark.parametrize("truth", [0, 1, 7, 100, 777, 5000])
def test_the_largest_batch_is_found_to_a_twentieth(gpu01, truth):
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= truth

    found = gpu01.largest_batch(fits, limit=2048)
    assert found == 2048 if truth > 2048 else truth * 0.95 - 1 <= found <= truth
    assert len(tried) <= 20 and len(tried) == len(set(tried))


def test_it_is_stable_diffusions_geometry(gpu01):
    """The published parameter counts: U-Net 859.5 million, VAE 83.7, text encoder 123.1."""
    with torch.device("meta"):
        modules = (
            gpu01.UNet2DConditionModel(**gpu01.SD15.unet),
            gpu01.AutoencoderKL(**gpu01.SD15.vae),
            gpu01.CLIPTextModel(gpu01.CLIPTextConfig(**gpu01.SD15.text)),
        )
    counts = [round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1) for module in modules]
    assert counts == [859.5, 83.7, 123.1]


def test_channels_last_and_a_compiled_network_leave_x0_as_it_is(gpu01):
    plain = gpu01.random_model(gpu01.QUICK, gpu01.Loop("", torch.float32), torch.device("cpu"))
    way = gpu01.Loop("", torch.float32, channels_last=True, compile={"backend": "eager"})
    fast = gpu01.random_model(gpu01.QUICK, way, torch.device("cpu"))
    x_t = torch.randn(2, *plain.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(plain(x_t, 500), fast(x_t, 500), atol=1e-5)
    assert fast.dtype == torch.float32 and fast.network is not plain.network


def test_tf32_is_put_back(gpu01):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with gpu01.precision_of(gpu01.Loop("", torch.float32, tf32=False)):
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_the_tables_say_what_was_measured(gpu01):
    GiB = 2**30
    text = gpu01.as_markdown(
        {
            "floor": {
                "flop_an_image": 2e12,
                "flop_an_evaluation": 1e12,
                "matmul_flop_a_second": 1e12,
                "seconds_an_image": 2.0,
            },
            "time | float32, TF32 off | batch 1": {"seconds_an_image": 12.0},
            "time | float16 | batch 1": {"seconds_an_image": 4.0},
            "time | float16 | batch 8": {"seconds_an_image": 3.0},
            "peak | float16 | batch 1 | newton": {"loop": GiB, "with decoding": 2 * GiB},
            "peak | float16 | batch 1 | gradient": {"loop": 4 * GiB, "with decoding": 4 * GiB},
            "largest | float16 | 24 GB | newton": {"batch": 60},
            "largest | float16 | 24 GB | gradient": {"batch": 5},
        }
    )
    assert "| float16 | 4 | 3.00 |  | 2.0 | 3 s an image (batch 8) |" in text
    assert "| float16, batch 1 | 1.00 | 4.00 | 0.25 | 2.00 | 4.00 |" in text
    assert "| 24 GB | 60 | 5 |" in text


def test_the_half_precision_table(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["figures/tab04_half_precision.py"])
    spec = importlib.util.spec_from_file_location("tab04_half_precision", FIGURES / "tab04_half_precision.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = {"MODELS": ("mnist",), "IMAGES": 1, "TIMESTEPS": (500,), "DTYPES": (torch.float32, torch.bfloat16)}
    for name, value in (settings | {"RUN": {"num_inference_steps": 2, "inner_steps": 1}}).items():
        monkeypatch.setattr(module, name, value)
    # A default argument was bound to all of the precisions.
    monkeypatch.setattr(module, "cosines", partial(module.cosines, dtypes=module.DTYPES))
    module.main(tmp_path)
    found = json.loads((tmp_path / "tab04_half_precision.json").read_text())["numbers"]["mnist"]
    cosine = found["cosine"]
    assert cosine["float32"]["0.005"]["mean"] == pytest.approx(1, abs=1e-5)  # it is the reference
    assert cosine["float32"]["0.2"]["float32_mean"] == pytest.approx(1, abs=1e-5)
    assert cosine["bfloat16"]["0.5"]["mean"] > 0.8 > 0.5 > cosine["bfloat16"]["0.005"]["mean"]
    assert found["run"]["float32"]["mse_to_float32"] == 0 < found["run"]["bfloat16"]["mse_to_float32"]
    assert (tmp_path / "tab04_half_precision.md").read_text().count("\n| mnist |") == 2
