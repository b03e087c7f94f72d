"""Guidance by features: Gram matrices, e, classes, silhouettes and CLIP, each against what it has to be."""

import numpy as np
import pytest
import torch
from conftest import generators
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.features import class_guidance, gram, load_clip, silhouette, style

F64 = torch.float64


def random(*shape, seed=0, dtype=F64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 1.6 - 0.8


def smooth_features(channels=1):
    """A small extractor with smooth derivatives, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 2), nn.Tanh()).double().requires_grad_(False)


def test_gram_is_the_mean_outer_product_over_positions():
    f = random(2, 3, 4, 5)
    expected = torch.zeros(2, 3, 3, dtype=F64)
    for b in range(2):
        for y in range(4):
            for x in range(5):
                expected[b] += torch.outer(f[b, :, y, x], f[b, :, y, x]) / 20
    assert torch.allclose(gram(f), expected, atol=1e-14)
    tiled = f.repeat(1, 1, 3, 2)  # the same features, six times: size does not matter
    assert torch.allclose(gram(tiled), expected, atol=1e-14)


def constraints():
    flat = nn.Sequential(smooth_features(), nn.Flatten(), nn.Linear(4 * 25, 6).double()).requires_grad_(False)
    return {
        "class": class_guidance(flat, 2),
        "a class each": class_guidance(flat, torch.tensor([0, 5])),
        "style": style(random(1, 1, 12, 10, seed=3), smooth_features()),
        "silhouette": silhouette(random(2, 1, 8, 8, seed=4) > 0, threshold=0.1, softness=0.3),
    }


@pytest.mark.parametrize("name", constraints())
def test_e_is_the_negative_finite_difference_of_the_cost(name):
    constraint = constraints()[name]
    x0, v, h = random(2, 1, 8, 8, seed=5), random(2, 1, 8, 8, seed=6), 1e-5
    difference = (constraint.cost(x0 + h * v) - constraint.cost(x0 - h * v)) / (2 * h)
    assert torch.allclose((-constraint.error(x0) * v).flatten(1).sum(1), difference, rtol=1e-6)


def test_the_costs_are_what_they_say():
    x0 = random(2, 1, 8, 8)
    features = smooth_features()
    reference = random(1, 1, 8, 8, seed=1)
    difference = gram(features(x0)) - gram(features(reference))
    assert torch.allclose(style(reference, features).cost(x0), torch.linalg.matrix_norm(difference).square() / 2)
    assert style(reference, features).cost(reference).item() == 0

    logits = random(2, 6, seed=2) * 5
    probabilities = logits.softmax(1)
    cost = class_guidance(lambda x: logits + 0 * x.flatten(1)[:, :6], [1, 4]).cost(x0)
    assert torch.allclose(cost, -torch.stack([probabilities[0, 1], probabilities[1, 4]]).log())


def test_a_silhouette_pulls_what_is_on_the_wrong_side_of_the_threshold():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    task = silhouette(mask, threshold=-0.5, softness=0.1)
    x0 = random(2, 1, 8, 8)
    m = mask.to(F64)
    assert torch.allclose(task.error(x0), (m - ((x0 + 0.5) / 0.1).sigmoid()) / 0.1)
    right = torch.where(mask, torch.tensor([0.3, 0.9]).reshape(2, 1, 1, 1), -1.0).double()
    assert task.error(right).abs().max() < 0.1 < 9 < task.error(-right).abs().max()  # any grey will do inside


def test_class_guidance_raises_the_probability_of_the_class():
    """Of an exact denoiser's samples: ten digits by heart, one of each class, and the classifier is sure of all."""
    digits, labels = fcs_lab.load_digits(64)
    digits = digits[[labels.tolist().index(i) for i in range(10)]]
    ideal, classifier = fcs_lab.IdealDenoiser(digits), load_classifier("digits")
    asked = torch.arange(10)

    def probability(task, direction="newton"):
        generator = generators(*range(10))
        settings = {"direction": direction, "generator": generator, "batch_size": 10, "progress": False}
        images = fcs_lab.sample(ideal, task, num_inference_steps=10, inner_steps=4, **settings).images
        return classifier(images).softmax(1)[asked, asked].mean()

    task = class_guidance(classifier, asked)
    free = probability(None)
    assert free < 0.3
    assert probability(task) > free + 0.15  # once it is sure, an exact denoiser cannot be moved: J vanishes
    assert probability(task, "gradient") > free + 0.15


def test_one_description_for_all_images_or_one_each():
    assert constraints()["class"].batch_size is None and constraints()["style"].batch_size is None
    assert constraints()["a class each"].batch_size == 2
    references = random(3, 1, 8, 8)
    each = style(references, smooth_features())
    assert each.batch_size == 3 and torch.allclose(each.cost(references), torch.zeros(3, dtype=F64))
    with pytest.raises(ValueError, match="batch_size is 2; the task describes 3 images"):
        fcs_lab.sample(fcs_lab.IdealDenoiser(references), each, batch_size=2)


CLIP = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def clip_folders(tmp_path_factory):
    """A tiny CLIPVisionModel, and a whole CLIPModel with the same vision weights, as folders."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**CLIP, image_size=24, patch_size=8)
    both = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=CLIPTextConfig(**CLIP, vocab_size=10).to_dict()))
    folders = {name: tmp_path_factory.mktemp(name) for name in ("vision", "both")}
    both.vision_model.save_pretrained(folders["vision"])
    both.save_pretrained(folders["both"])
    return folders


@pytest.mark.parametrize("kind", ["vision", "both"])
def test_clip_features_are_the_blocks_own_output(clip_folders, kind):
    features = load_clip(clip_folders[kind], block=3)
    images = random(2, 3, 20, 30, dtype=torch.float32)
    whole = CLIPVisionModel.from_pretrained(clip_folders["vision"])
    with torch.no_grad():
        hidden = whole(features.preprocess(images), output_hidden_states=True).hidden_states
    expected = hidden[3][:, 1:]  # 0 is what enters the first block; the first token is the class's
    found = features(images)
    assert found.shape == (2, 16, 3, 3)
    assert torch.allclose(found[:, :, 1, 2], expected[:, 1 * 3 + 2], atol=1e-6)
    assert torch.allclose(found.flatten(2).mT, expected, atol=1e-6)
    assert not torch.allclose(found.flatten(2).mT, hidden[4][:, 1:], atol=1e-2)
    assert len(features.vision.encoder.layers) == 3


def test_clip_preprocessing_is_pillows_bicubic_and_clips_statistics(clip_folders):
    image = random(1, 3, 60, 48, dtype=torch.float32)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    planes = [
        np.asarray(Image.fromarray((plane / 2 + 0.5).numpy()).resize((24, 24), Image.Resampling.BICUBIC))
        for plane in image[0]
    ]
    expected = np.stack([(plane - m) / s for plane, m, s in zip(planes, mean, std, strict=True)])
    assert np.allclose(load_clip(clip_folders["vision"], block=1).preprocess(image)[0].numpy(), expected, atol=1e-4)


def test_style_by_clip_is_differentiable_and_takes_grey_images(clip_folders):
    features = load_clip(clip_folders["vision"], block=2).double()
    task = style(random(1, 3, 20, 20, seed=2), features)
    x0, v, h = random(2, 1, 16, 16), random(2, 1, 16, 16, seed=3), 1e-5
    difference = (task.cost(x0 + h * v) - task.cost(x0 - h * v)) / (2 * h)
    assert torch.allclose((-task.error(x0) * v).flatten(1).sum(1), difference, rtol=1e-5)


def test_clip_that_cannot_be_had(tmp_path, clip_folders, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"could not get 'nobody/clip' from the hub.*give the folder"):
        load_clip("nobody/clip")
    with pytest.raises(ValueError, match=r"block is 9; .* has 4"):
        load_clip(clip_folders["both"], block=9)
    with pytest.raises(ValueError, match="block is 0"):
        load_clip(block=0)
    (tmp_path / "config.json").write_text((clip_folders["vision"] / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' model; expected a CLIP model"):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: class_guidance("digits", 3), TypeError, "classifier is 'digits'"),
        (lambda: class_guidance(load_classifier(), 1.5), TypeError, "label is 1.5"),
        (lambda: class_guidance(load_classifier(), "3"), TypeError, "label is '3'"),
        (lambda: class_guidance(load_classifier(), -1), ValueError, "label is -1"),
        (
            lambda: class_guidance(load_classifier(), 10).cost(torch.zeros(1, 1, 32, 32)),
            ValueError,
            "label is 10; the classifier's classes are 0 to 9",
        ),
        (lambda: style(random(1, 1, 8, 8), 3), TypeError, "features is 3"),
        (lambda: style(random(1, 1, 8, 8) * 9, smooth_features()), ValueError, "reference has values in"),
        (lambda: style(random(1, 1, 8, 8), lambda x: x.flatten(1)), ValueError, "expected feature maps"),
        (lambda: silhouette(np.zeros((8, 8)) + 0.4), ValueError, "not binary"),
        (lambda: silhouette(np.ones((8, 8)), threshold=-1), ValueError, "threshold is -1"),
        (lambda: silhouette(np.ones((8, 8)), softness=0), ValueError, "softness is 0"),
        (lambda: silhouette(np.ones((8, 8))).cost(torch.zeros(1, 1, 6, 6)), ValueError, r"mask is \(8, 8\).*\(6, 6\)"),
    ],
)
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
