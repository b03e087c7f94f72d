"""The laboratories on a latent model: one paints and looks at images, the sampler works on latents."""

import io

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import DDIMScheduler
from PIL import Image

import fcs_lab
from fcs_lab.widgets import InpaintingLab, LayersLab


@pytest.fixture(scope="module")
def model():
    """32×32 grey images, 4×8×8 latents."""
    return fcs_lab.LatentDenoiser(tiny_pipelines.sd(channels=1), DDIMScheduler(clip_sample=False))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_inpainting(model):
    lab = InpaintingLab(model)
    assert lab.image.shape == (1, 1, 32, 32) and (lab.painter.height, lab.painter.width) == (32, 32)
    lab.num_inference_steps.value, lab.inner_steps.value = 3, 1
    lab.run()
    lab.wait()
    assert lab.status.value == "done (newton: 9 evaluations)", lab.message.value
    assert lab.result.x0.shape == (1, 4, 8, 8) and lab.result.images.shape == (1, 1, 32, 32)
    shown = pixels(lab.result_picture.value)
    assert shown.shape == (192, 192)
    expected = np.asarray(lab.result.to_pil()[0])
    assert np.array_equal(shown[::6, ::6], expected), "the decoded image"
    lab.scrubber.value = 0
    assert pixels(lab.frame_picture.value).shape == (192, 192)
    # A prompt changes the result; no latent cell known is said in the widget.
    before = lab.result.images
    lab.prompt.value = "a photo of a sneaker"
    lab.run()
    lab.wait()
    assert not torch.equal(lab.result.images, before)
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[::4, ::4] = True  # a pixel of every latent cell
    lab.painter.mask = mask
    lab.run()
    lab.wait()
    assert lab.status.value == "failed" and "latent" in lab.message.value


def test_layers(model):
    lab = LayersLab(model)
    lab.num_inference_steps.value, lab.inner_steps.value, lab.free.value = 3, 1, 0
    lab.prompts[1].value = "a photo of a bag"
    assert lab.prompts[1] in lab.children[0].children[-1].children, "a latent model takes prompts"
    lab.run()
    lab.wait()
    assert lab.status.value == "done (9 evaluations a layer)", lab.message.value
    assert lab.result.layers.shape == (2, 1, 32, 32) and lab.result.masks.shape == (2, 32, 32)
    with_prompt = lab.result.layers
    lab.prompts[1].value = ""
    lab.run()
    lab.wait()
    assert not torch.equal(lab.result.layers, with_prompt)
