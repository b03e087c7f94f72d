"""emoji: its pictures, the bundled model, its words, and how both were made."""

import hashlib
import io
import json
import tarfile
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import generators

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.data import EMOJI_CLASSES, example_images
from fcs_lab.metrics import clustered
from fcs_lab.training import emoji, emoji_pictures
from fcs_lab.training.__main__ import main
from fcs_lab.training.bundle import bundle_model
from fcs_lab.training.emoji_pictures import HELD_OUT, STYLES, Package, Pictures, held_out_concepts, read_pictures
from fcs_lab.zoo import WEIGHTS


@pytest.fixture(scope="module")
def model():
    return fcs_lab.load("emoji", device="cpu")


def test_the_bundled_pictures():
    images, alpha, names = fcs_lab.load_emoji()
    assert images.shape == (256, 3, 64, 64) and alpha.shape == (256, 1, 64, 64) and len(names) == 256
    assert images.dtype == alpha.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1 and alpha.min() == 0 and alpha.max() == 1
    assert (images[(alpha == 0).expand_as(images)] == 1).all()  # white where nothing is drawn
    concepts = [name.rsplit(", ", 1)[0] for name in names]
    assert {name.rsplit(", ", 1)[1] for name in names} == set(STYLES)
    assert len(set(concepts)) == len(set(concepts[:100])) == 100
    settings = [name.rsplit(", ", 1)[0] for name in fcs_lab.load_emoji(156, split="settings")[2]]
    assert len(set(settings)) == 26 and not set(settings) & set(concepts)
    assert len(set(settings) | set(concepts)) == HELD_OUT
    assert not set(EMOJI_CLASSES) & (set(settings) | set(concepts))
    few, _, first = fcs_lab.load_emoji(3)
    assert torch.equal(few, images[:3]) and first == names[:3]


@pytest.mark.parametrize("count", [0, -1, "all", 257, 1.5, True])
def test_more_than_are_bundled_are_refused(count):
    with pytest.raises(ValueError, match=r"count is .*; 256 emoji are bundled for 'test'"):
        fcs_lab.load_emoji(count)


def test_settings_and_other_splits():
    with pytest.raises(ValueError, match=r"156 emoji are bundled for 'settings'"):
        fcs_lab.load_emoji(157, split="settings")
    with pytest.raises(ValueError, match=r"split is 'train'"):
        fcs_lab.load_emoji(1, split="train")


def test_the_model_is_small_and_in_stable_diffusions_layout(model):
    assert model.image_shape == (3, 64, 64) and model.shape == (4, 16, 16) and model.prediction_type == "v_prediction"
    assert sum(file.stat().st_size for file in (WEIGHTS / "emoji").rglob("*.safetensors")) <= 32 * 2**20
    assert type(model.pipeline).__name__ == "StableDiffusionPipeline" and model.dtype == torch.float32
    assert example_images(model, 5).shape == (5, 3, 64, 64)


def test_both_halves_with_and_without_a_prompt(model):
    images, _, names = fcs_lab.load_emoji(2)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, 32:] = True
    options = {"num_inference_steps": 4, "inner_steps": 3, "generator": generators(0, 1), "progress": False}
    task = fcs_lab.Inpainting(images, mask)
    free = fcs_lab.sample(
        model, **{k: v for k, v in options.items() if k != "inner_steps"} | {"generator": generators(0, 1)}
    )
    for one in (model, model.with_prompt([name.rsplit(", ", 1)[0] for name in names], guidance_scale=2.5)):
        result = fcs_lab.sample(one, task, **options)
        known = [(x - images)[..., :30].square().mean() for x in (result.images, free.images)]
        assert result.images.shape == (2, 3, 64, 64) and known[0] < known[1] / 2


def test_words_that_it_never_saw_are_named_once(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.with_prompt("Red apple, noto")
        model.with_prompt(["a cat face", "rocket, twemoji"], "dog face")
    with pytest.warns(UserWarning, match=r"the model never saw 'xylophone', 'catfish'") as heard:
        model.with_prompt(["xylophone, flat", "xylophone catfish"])
    assert len(heard) == 1


def test_every_word_is_one_token_and_any_text_works():
    tokenizer = emoji.make_tokenizer(["red", "apple", "noto", "1st"])
    assert tokenizer.tokenize("Red apple, noto") == ["red", "apple", ",</w>", "noto"]
    assert tokenizer.tokenize("1st") == ["1st"] and len(tokenizer.tokenize("pineapple")) == 9
    ids = tokenizer("Äpfel 🍎", padding="max_length", max_length=24, truncation=True).input_ids
    assert len(ids) == 24 and ids[0] == tokenizer.bos_token_id


def test_the_judge_knows_its_classes():
    judge = load_classifier("emoji")
    accuracy = json.loads((WEIGHTS / "emoji-classifier" / "accuracy.json").read_text())
    assert judge(torch.zeros(1, 3, 64, 64)).shape == (1, 51)
    # Held-out concepts are none of the fifty things.
    images, _, _ = fcs_lab.load_emoji(100)
    refused = (judge(images).argmax(1) == 50).float().mean().item()
    assert refused > 0.8
    for found in accuracy["on_a_style_left_out"].values():
        assert found["named"] > 0.3


def test_clustered_errors():
    values = torch.tensor([1.0, 2.0, 4.0, 7.0])
    mean, error = clustered(values, ["a", "b", "c", "d"])
    assert mean == pytest.approx(3.5) and error == pytest.approx(values.std().item() / 2)
    # Copies say nothing new: the error is that of one of each.
    assert clustered(values.repeat(6), list("abcd") * 6)[1] == pytest.approx(error)
    with pytest.raises(ValueError, match=r"groups 1 entries"):
        clustered(values, ["a"])


# How they were made.


@pytest.fixture
def pictures():
    """130 concepts in all six styles, of coloured squares."""
    generator = torch.Generator().manual_seed(0)
    rgba = torch.zeros(130 * 6, 4, 64, 64, dtype=torch.uint8)
    rgba[:, :3] = torch.randint(256, (len(rgba), 3, 1, 1), generator=generator)
    rgba[:, 3, 8:56, 8:56] = 255
    concepts = [f"thing {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(130)]
    return Pictures(rgba, [c for c in concepts for _ in STYLES], [s for _ in concepts for s in STYLES])


def svg_set(names, aliases=(), **icon):
    body = '<rect width="16" height="16" fill="#f00"/>'
    return {"icons": {n: {"body": body} | icon for n in names}, "aliases": dict(aliases), "width": 16, "height": 16}


def test_names_are_brought_together_and_skin_tones_left_out(monkeypatch, tmp_path):
    sets = {style: svg_set(["red-apple"]) for style in STYLES}
    sets["noto"] = svg_set(["red-apple", "baby", "baby-dark-skin-tone", "light-bulb", "flag-for-flag-france"])
    sets["fluent"] = svg_set(["red-apple", "baby", "baby-medium-dark", "new-moon"], {"bear": {"parent": "bear-face"}})
    sets["emojione"] = svg_set(["bear-face", "flag-for-france", "mermaid-tone3"], {"bear": {"parent": "bear-face"}})
    sets["flat"] = svg_set(["bear"], width=8)
    sets["blob"] = svg_set(["bear"], {"right": {"parent": "bear", "hFlip": True}})
    packages = {}
    for style, content in sets.items():
        package = Package(style, "1.0.0", "")
        with tarfile.open(tmp_path / package.archive, "w:gz") as archive:
            data = json.dumps(content).encode()
            info = tarfile.TarInfo("package/icons.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        packages[style] = replace(package, sha256=hashlib.sha256((tmp_path / package.archive).read_bytes()).hexdigest())
    monkeypatch.setattr(emoji_pictures, "STYLES", packages)
    drawn = read_pictures(tmp_path, tmp_path / "cache", progress=False)
    of = {style: [c for c, s in zip(drawn.concepts, drawn.styles, strict=True) if s == style] for style in packages}
    assert of["noto"] == ["baby", "flag france", "light bulb", "red apple"] and of["fluent"] == [
        "baby",
        "new moon",
        "red apple",
    ]
    assert of["emojione"] == ["bear", "flag france"] and of["flat"] == ["bear"]
    assert drawn.rgba.shape == (len(drawn), 4, 64, 64)
    assert drawn.rgba[0].float().mean((1, 2)).tolist() == [255, 0, 0, 255]
    narrow = drawn.rgba[drawn.styles.index("flat"), 3]  # 8×16: in the middle of the square
    assert narrow[:, 31].float().mean() == 255 and not narrow[:, :8].any()
    again = read_pictures(None, tmp_path / "cache", progress=False)
    assert torch.equal(again.rgba, drawn.rgba) and again.concepts == drawn.concepts

    (tmp_path / packages["noto"].archive).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"noto-1.0.0.tgz is damaged or another version"):
        read_pictures(tmp_path, tmp_path / "new", progress=False)
    with pytest.raises(FileNotFoundError, match=r"there is no iconify-json-noto-1.0.0.tgz in"):
        read_pictures(tmp_path / "cache", tmp_path / "new", progress=False)
    monkeypatch.setattr(emoji_pictures.shutil, "which", lambda name: None)
    with pytest.raises(OSError, match=r"npm fetches @iconify-json/noto@1.0.0 and is not installed"):
        read_pictures(None, tmp_path / "new", progress=False)


def test_the_same_concepts_are_held_out_as_are_bundled(pictures):
    held = held_out_concepts(pictures)
    assert len(held) == len(set(held)) == HELD_OUT and held == held_out_concepts(pictures)
    rest = pictures.without(set(held))
    assert len(rest) == 4 * 6 and not set(rest.concepts) & set(held)


def test_every_part_is_trained_and_resumed(pictures, tmp_path, monkeypatch):
    """`--smoke`, in one call and in two; what it leaves can be loaded, and gone on from."""
    monkeypatch.setattr(emoji_pictures, "read_pictures", lambda *a, **k: pictures)
    for run, calls in (("whole", [[]]), ("pieces", [["--max-steps", "1"], []])):
        for extra in calls:
            assert main(["emoji", "--smoke", "--no-progress", "--out", str(tmp_path / run), *extra]) == 0
    assert (tmp_path / "whole" / "samples" / "step-00002.png").exists()
    record = json.loads((tmp_path / "whole" / "model" / "training.json").read_text())
    assert record == {"images_seen": 8, "steps": 2, "batch_size": 4}
    small = fcs_lab.load(tmp_path / "whole" / "model", device="cpu")
    assert fcs_lab.sample(small, num_inference_steps=1, progress=False).images.shape == (1, 3, 64, 64)
    arguments = [
        "--smoke",
        "--no-progress",
        "--start-from",
        str(tmp_path / "whole" / "model"),
        "--out",
        str(tmp_path / "on"),
    ]
    assert main(["emoji", *arguments]) == 0
    assert json.loads((tmp_path / "on" / "model" / "training.json").read_text())["images_seen"] == 16


def test_latents_are_standardised_by_the_vae_itself(pictures):
    from diffusers import AutoencoderKL

    from fcs_lab.training.latent import Run, encode_all

    torch.manual_seed(0)
    vae = AutoencoderKL(**emoji.smoke(emoji.EMOJI).vae).eval()
    run, images = Run(torch.device("cpu"), progress=False), fcs_lab.data.on_white(pictures.rgba[:60])
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        decoded = vae.decode(before.mode()).sample
        latents = emoji._standardise(vae, encode_all(vae, images, run))
        after = vae.encode(images).latent_dist
        assert torch.allclose(after.mode(), latents, atol=1e-4)
        assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
        assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3)
        assert torch.allclose(vae.decode(after.mode()).sample, decoded, atol=1e-4)
        assert torch.allclose(after.std / before.std, (after.std / before.std).mean((0, 2, 3), keepdim=True), rtol=1e-3)


def test_a_run_becomes_a_bundled_model(tmp_path, monkeypatch):
    from fcs_lab.training import bundle

    with pytest.raises(FileNotFoundError, match=r"has no model yet"):
        bundle_model(tmp_path, "emoji")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "checksums.json").write_text("{}")
    run = tmp_path / "run"
    model = fcs_lab.load("fashion", device="cpu")
    model.pipeline.save_pretrained(run / "model")
    (run / "model" / "training.json").write_text("{}")
    monkeypatch.setattr(bundle, "WEIGHTS", weights)
    out = bundle_model(run, "small")
    half = fcs_lab.load(out, device="cpu")
    x = torch.randn(1, *model.shape, generator=generators(0)[0])
    with torch.no_grad():
        assert torch.allclose(half(x, 500), model(x, 500), atol=2e-2)
    sums = json.loads((weights / "checksums.json").read_text())["small"]
    assert "unet/diffusion_pytorch_model.safetensors" in sums and "training.json" in sums
