"""The public functions with one argument spoilt: each call has to end right, or in an error of ours that names it.

`python tests/fuzz.py --count 2000 --seed 0` prints one line a fault, with the call that makes it again, and how many there
were. A call that takes longer than `PATIENCE` is one as well.
Every name of every `__all__` has a place here: a valid call (`CALLS`), or a reason why there is none (`NOT_CALLED`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import pkgutil
import random
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fcs_lab

PACKAGE = str(Path(fcs_lab.__file__).parent)


def public_names() -> dict[str, object]:
    """Every callable name that a module of the package offers, by "module.name"."""
    found = {}
    for module in pkgutil.walk_packages(fcs_lab.__path__, "fcs_lab."):
        if module.name.endswith("__main__"):
            continue
        imported = importlib.import_module(module.name)
        for name in getattr(imported, "__all__", []):
            value = getattr(imported, name)
            if callable(value) and getattr(value, "__module__", "") == module.name:
                found[f"{module.name.removeprefix('fcs_lab.')}.{name}"] = value
    return found


# --- What is good. Made anew for every call, so that none sees what another did.


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@functools.cache
def model():
    from conftest import tiny_denoiser

    return tiny_denoiser(torch.float32)


@functools.cache
def tuned_model():
    from conftest import tiny_unet
    from diffusers import DDIMScheduler

    from fcs_lab.denoisers import InpaintingDenoiser

    return InpaintingDenoiser(tiny_unet(3, 1), DDIMScheduler(clip_sample=False))


def blurred():
    return fcs_lab.Blur(noise(1, 1, 8, 8), torch.full((3, 3), 1 / 9))


@functools.cache
def latent_model():
    import tiny_pipelines as tiny
    from diffusers import DDIMScheduler

    from fcs_lab.latent import LatentDenoiser

    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    return LatentDenoiser(pipe, pipe.scheduler, "a dress")


def pipe():
    return latent_model().pipeline


@functools.cache
def classifier():
    from fcs_lab.classifier import Classifier

    torch.manual_seed(0)
    return Classifier(1, 8, 3).eval()


@functools.cache
def operator():
    from fcs_lab.probes import JacobianOperator

    return JacobianOperator(model(), noise(1, 1, 8, 8), 300)


@functools.cache
def matrix():
    return operator().dense(progress=False)


@functools.cache
def result():
    return fcs_lab.sample(model(), half(), num_inference_steps=2, inner_steps=1, progress=False)


def half(size=8, channels=1):
    return fcs_lab.Inpainting(noise(1, channels, size, size), right(size))


def right(size=8):
    return (torch.arange(size) >= size // 2).expand(size, size)


def scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False)


def gaussian():
    return fcs_lab.GaussianMixtureDenoiser(noise(2, 1, 2, 2), 0.1)


@functools.cache
def diagnosed():
    return fcs_lab.diagnose(model(), half(), num_inference_steps=2, inner_steps=1)


def kernel():
    return torch.full((3, 3), 1 / 9)


def layers(n=2):
    return noise(1, n, 1, 8, 8)


def masks(n=2):
    return torch.softmax(noise(1, n, 8, 8), 1)


@functools.cache
def folder():
    path = Path(tempfile.mkdtemp()) / "pictures"
    path.mkdir()
    Image.new("RGB", (32, 32), "red").save(path / "a.png")
    return path


@functools.cache
def saved():
    path = Path(tempfile.mkdtemp()) / "model"
    pipe().save_pretrained(path)
    return path


def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


def constrained_call(pipe, task=None, **options):
    with fcs_lab.constrained(pipe, task, **options):
        pass


def pipeline_call(**arguments):
    from fcs_lab.pipelines import FastConstrainedPipeline

    made = FastConstrainedPipeline.from_pipe(pipe())
    return made(**arguments)


def jacobian_products(denoiser, x_t, t, method="jvp", fd_step=None, batch_size=32):
    from fcs_lab.probes import JacobianOperator

    J = JacobianOperator(denoiser, x_t, t, method, fd_step=fd_step, batch_size=batch_size)
    return J @ np.ones(J.shape[0], np.float32)


def sampled_task(make):
    """A task's maker, followed by its use."""

    def call(**arguments):
        task = make(**arguments).to(torch.device("cpu"), torch.float32)
        return task.cost_and_error(noise(task.batch_size or 1, *(task.shape or (1, 8, 8))))

    return call


SHORT = {"num_inference_steps": 2, "inner_steps": 1, "progress": False}
POINT = {"denoiser": model, "x_t": lambda: noise(1, 1, 8, 8), "t": lambda: 300}


PEER = {
    "model": model,
    "task": half,
    "num_inference_steps": lambda: 2,
    "generator": lambda: torch.Generator().manual_seed(0),
    "progress": lambda: False,
}


def short(**others):
    return {name: (lambda value=value: value) for name, value in (SHORT | others).items()}


def calls() -> dict[str, tuple]:
    """name -> (what is called, its valid arguments as functions that make them)."""
    from fcs_lab import (
        baselines,
        composites,
        data,
        denoisers,
        families,
        features,
        forecast,
        images,
        latent,
        latent_space,
        metrics,
        plots,
        probes,
        schedule,
        zoo,
    )
    from fcs_lab import layers as layer_module
    from fcs_lab.baselines.clustering import cluster_layers
    from fcs_lab.classifier import load_classifier
    from fcs_lab.diagnosis.plots import plot_diagnosis
    from fcs_lab.failures import completed_modes, run_case, shared_half
    from fcs_lab.probes import comparison, fd_error, invertibility, newton
    from fcs_lab.sensitivity import plots as map_plots
    from fcs_lab.widgets import canvas, inpainting
    from fcs_lab.widgets import layers as layers_widget

    labels = torch.tensor([0, 1, 2, 0])
    value = lambda x: lambda: x  # noqa: E731
    e = {"e": lambda: noise(1, 1, 8, 8, seed=2)}
    return {
        "sampler.sample": (
            fcs_lab.sample,
            {
                "preset": value(None),
                "model": model,
                "task": half,
                "generator": lambda: torch.Generator().manual_seed(0),
                "x_T": value(None),
                "step_size": value(0.3),
                "direction": value("newton"),
                "fd_step": value(None),
                "regularization": value(0.1),
                "eta": value(1.0),
                "scheduler": value(None),
                "batch_size": value(1),
                "trace_x0": value(False),
                "callback_on_step_end": value(None),
            }
            | short(),
        ),
        "diagnosis.checks.diagnose": (
            fcs_lab.diagnose,
            {
                "model": model,
                "task": half,
                "num_inference_steps": value(3),
                "inner_steps": value(1),
                "step_size": value(0.3),
                "direction": value("newton"),
                "fd_step": value(None),
                "regularization": value(0.1),
                "eta": value(1.0),
                "seed": value(0),
            },
        ),
        "failures.run_case": (
            run_case,
            {
                "case": lambda: fcs_lab.failures.CASES["noise in y"]["no noise"],
                "n": value(1),
                "seed": value(0),
                "model": value(None),
            },
        ),
        "failures.shared_half": (
            shared_half,
            {"images": lambda: noise(6, 1, 8, 8), "counts": value([1, 2]), "others": value(3)},
        ),
        "failures.completed_modes": (
            completed_modes,
            {"posterior": lambda: shared_half(noise(6, 1, 8, 8), [1, 2], 3), "draws": value(2), "seed": value(0)},
        ),
        "layers.infer_layers": (
            fcs_lab.infer_layers,
            {
                "model": model,
                "composite": lambda: noise(1, 1, 8, 8),
                "num_layers": value(2),
                "masks": masks,
                "scribbles": value(None),
                "known_layers": value(None),
                "starts": value(1),
                "temperature": value((0.3, 0.1)),
                "smoothness": value(0.5),
                "generator": value(None),
                "prompts": value(None),
                "guidance_scale": value(None),
            }
            | short(),
        ),
        "layers.infer_masks": (
            layer_module.infer_masks,
            {
                "composite": lambda: noise(1, 1, 8, 8),
                "layers": layers,
                "temperature": value(0.2),
                "smoothness": value(0.5),
                "scribbles": value(None),
            },
        ),
        "layers.late_inner_steps": (
            layer_module.late_inner_steps,
            {"num_inference_steps": value(10), "inner_steps": value(3)},
        ),
        "layered.LayeredComposite": (
            sampled_layers,
            {"composite": lambda: noise(1, 1, 8, 8), "masks": masks, "known": value(None), "fixed": value(True)},
        ),
        "constraints.Inpainting": (
            sampled_task(fcs_lab.Inpainting),
            {"image": lambda: noise(1, 1, 8, 8), "mask": right},
        ),
        "filters.SuperResolution": (
            sampled_task(fcs_lab.SuperResolution),
            {"low_res": lambda: noise(1, 1, 4, 4), "factor": value(2), "kernel": value("bicubic")},
        ),
        "filters.Blur": (sampled_task(fcs_lab.Blur), {"image": lambda: noise(1, 1, 8, 8), "kernel": kernel}),
        "constraints.Colorization": (sampled_task(fcs_lab.Colorization), {"grey": lambda: noise(1, 1, 8, 8)}),
        "constraints.LinearConstraint": (
            sampled_task(fcs_lab.LinearConstraint),
            {"A": value(lambda x: 2 * x), "A_adjoint": value(lambda y: 2 * y), "y": lambda: noise(1, 1, 8, 8)},
        ),
        "constraints.CostConstraint": (
            sampled_task(fcs_lab.CostConstraint),
            {"fn": value(lambda x: x.square().flatten(1).sum(1))},
        ),
        "filters.blur": (fcs_lab.blur, {"images": lambda: noise(1, 1, 8, 8), "kernel": kernel}),
        "filters.downsample": (
            fcs_lab.downsample,
            {"images": lambda: noise(1, 1, 8, 8), "factor": value(2), "kernel": value("box")},
        ),
        "filters.upsample": (fcs_lab.upsample, {"images": lambda: noise(1, 1, 8, 8), "factor": value(2)}),
        "data.load_digits": (fcs_lab.load_digits, {"count": value(3)}),
        "data.load_garments": (fcs_lab.load_garments, {"count": value(3)}),
        "data.load_emoji": (fcs_lab.load_emoji, {"count": value(3), "split": value("test")}),
        "data.example_images": (data.example_images, {"model": model, "count": value(2)}),
        "data.load_photographs": (data.load_photographs, {"height": value(8), "width": value(16)}),
        "data.read_cifar10": (data.read_cifar10, {"path": folder, "size": value(32)}),
        "data.read_mnist": (data.read_mnist, {"folder": folder, "split": value("train")}),
        "data.read_fashion_mnist": (data.read_fashion_mnist, {"folder": folder, "split": value("train")}),
        "exact.GaussianMixtureDenoiser": (
            exact(fcs_lab.GaussianMixtureDenoiser),
            {"means": lambda: noise(2, 1, 2, 2), "covariances": value(0.1), "weights": value(None), "scheduler": scheduler},
        ),
        "exact.IdealDenoiser": (
            exact(fcs_lab.IdealDenoiser),
            {"data": lambda: noise(3, 1, 2, 2), "scheduler": scheduler},
        ),
        "denoisers.UNetDenoiser": (
            lambda **arguments: denoisers.UNetDenoiser(**arguments)(noise(1, 1, 8, 8), 300),
            {"unet": lambda: model().unet, "scheduler": scheduler},
        ),
        "denoisers.InpaintingDenoiser": (
            lambda **arguments: denoisers.InpaintingDenoiser(**arguments)(noise(1, 1, 8, 8), 300),
            {"unet": lambda: tuned_model().unet, "scheduler": scheduler},
        ),
        "denoisers.add_noise": (
            denoisers.add_noise,
            {"denoiser": model, "x_0": lambda: noise(1, 1, 8, 8), "noise": lambda: noise(1, 1, 8, 8), "t": value(300)},
        ),
        "denoisers.alpha_bar_at": (
            denoisers.alpha_bar_at,
            {"denoiser": model, "t": value(300), "x_t": lambda: noise(1, 1, 8, 8)},
        ),
        "denoisers.levels_at": (
            denoisers.levels_at,
            {"denoiser": model, "t": value(300), "x_t": lambda: noise(1, 1, 8, 8)},
        ),
        "denoisers.as_model": (denoisers.as_model, {"denoiser": model}),
        "denoisers.prediction_type_of": (denoisers.prediction_type_of, {"scheduler": scheduler}),
        "features.class_guidance": (
            sampled_task(features.class_guidance),
            {"classifier": classifier, "label": value(1)},
        ),
        "features.gram": (features.gram, {"features": lambda: noise(1, 5, 4, 4)}),
        "features.style": (
            sampled_task(features.style),
            {"reference": lambda: noise(1, 1, 8, 8), "features": value(lambda x: x)},
        ),
        "features.silhouette": (
            sampled_task(features.silhouette),
            {"mask": right, "threshold": value(-0.8), "softness": value(0.1)},
        ),
        "forecast.forecast": (
            lambda pipe, **options: forecast.forecast(pipe, "a dress", **options),
            {"pipe": pipe, "num_inference_steps": value(20), "inner_steps": value(2), "method": value("newton")},
        ),
        "images.to_tensor": (images.to_tensor, {"image": lambda: noise(1, 1, 8, 8)}),
        "images.to_mask": (images.to_mask, {"mask": right}),
        "images.to_pil": (images.to_pil, {"images": lambda: noise(1, 1, 8, 8)}),
        "images.to_channels": (images.to_channels, {"images": lambda: noise(1, 1, 8, 8), "channels": value(3)}),
        "images.read_image": (images.read_image, {"source": lambda: Image.new("L", (8, 8))}),
        "images.fit_image": (images.fit_image, {"source": lambda: Image.new("L", (9, 8)), "shape": value((1, 8, 8))}),
        "images.fit_mask": (images.fit_mask, {"source": lambda: Image.new("L", (9, 8)), "shape": value((8, 8))}),
        "latent_space.LatentInpainting": (
            latent_space.LatentInpainting,
            {
                "image": lambda: noise(1, 3, 32, 32),
                "mask": lambda: right(32),
                "model": latent_model,
                "keep_known": value(False),
            },
        ),
        "latent_space.Decoded": (
            latent_space.Decoded,
            {"task": lambda: half(32, 3), "model": latent_model, "derivative": value("backward")},
        ),
        "latent.LatentDenoiser": (
            lambda **arguments: latent.LatentDenoiser(**arguments)(noise(1, 4, 8, 8), 300),
            {
                "pipeline": pipe,
                "scheduler": lambda: pipe().scheduler,
                "prompt": value("a dress"),
                "negative_prompt": value("a coat"),
                "guidance_scale": value(2.0),
            },
        ),
        "latent.encode": (latent.encode, {"model": latent_model, "images": lambda: noise(1, 3, 32, 32)}),
        "latent.decode": (latent.decode, {"model": latent_model, "x0": lambda: noise(1, 4, 8, 8)}),
        "latent.image_shape": (latent.image_shape, {"model": latent_model}),
        "latent.in_latents": (latent.in_latents, {"task": lambda: half(32, 3), "model": latent_model}),
        "constrained.constrained": (
            constrained_call,
            {
                "pipe": pipe,
                "task": lambda: half(32, 3),
                "method": value("newton"),
                "inner_steps": value(2),
                "step_size": value(0.3),
                "fd_step": value(None),
                "eta": value(1.0),
                "layout": value(None),
            },
        ),
        "pipelines.FastConstrainedPipeline": (
            pipeline_call,
            {
                "prompt": value("a dress"),
                "image": lambda: noise(1, 3, 32, 32).sigmoid(),
                "mask_image": lambda: right(32)[None, None].float(),
                "height": value(32),
                "width": value(32),
                "num_inference_steps": value(2),
                "inner_steps": value(1),
                "guidance_scale": value(2.0),
                "negative_prompt": value("a coat"),
                "num_images_per_prompt": value(1),
                "eta": value(1.0),
                "generator": lambda: torch.Generator().manual_seed(0),
                "output_type": value("pt"),
                "strength": value(1.0),
                "step_size": value(0.3),
                "direction": value("newton"),
                "fd_step": value(None),
            },
        ),
        "metrics.accuracy": (
            metrics.accuracy,
            {"classifier": classifier, "images": lambda: noise(4, 1, 8, 8), "labels": value(labels)},
        ),
        "metrics.clustered": (
            metrics.clustered,
            {"values": lambda: noise(4), "groups": value(["a", "a", "b", "c"])},
        ),
        "metrics.data_consistency": (
            metrics.data_consistency,
            {"task": half, "images": lambda: noise(1, 1, 8, 8)},
        ),
        "metrics.denoising_loss": (
            metrics.denoising_loss,
            {
                "model": model,
                "images": lambda: noise(1, 1, 8, 8),
                "timesteps": value((100, 300)),
                "noises": value(2),
                "seed": value(0),
            },
        ),
        "metrics.mean_and_error": (metrics.mean_and_error, {"values": lambda: torch.rand(8)}),
        "metrics.with_error": (metrics.with_error, {"values": lambda: torch.rand(8)}),
        "metrics.layer_psnr": (metrics.layer_psnr, {"layers": layers, "truth": layers}),
        "metrics.match_layers": (metrics.match_layers, {"layers": layers, "truth": layers}),
        "metrics.mask_error": (
            metrics.mask_error,
            {
                "masks": masks,
                "truth": masks,
                "true_layers": layers,
                "where": value(None),
            },
        ),
        "metrics.mask_iou": (
            metrics.mask_iou,
            {"masks": masks, "truth": masks, "true_layers": layers},
        ),
        "metrics.masked_mse": (
            metrics.masked_mse,
            {"images": lambda: noise(2, 1, 8, 8), "truth": lambda: noise(2, 1, 8, 8, seed=1), "mask": right},
        ),
        "metrics.psnr": (
            metrics.psnr,
            {"images": lambda: noise(2, 1, 8, 8), "truth": lambda: noise(2, 1, 8, 8, seed=1)},
        ),
        "composites.supports": (
            composites.supports,
            {"images": lambda: noise(2, 1, 8, 8), "kind": value("stroke")},
        ),
        "composites.make_composites": (
            composites.make_composites,
            {
                "images": lambda: fcs_lab.load_digits(8)[0],
                "labels": lambda: fcs_lab.load_digits(8)[1],
                "count": value(2),
                "num_layers": value(2),
                "kind": value("stroke"),
                "max_shift": value(3),
                "min_visible": value(0.3),
                "seed": value(0),
            },
        ),
        "composites.make_emoji_composites": (
            composites.make_emoji_composites,
            {
                "count": value(1),
                "num_layers": value(2),
                "ground": value("white"),
                "arrangement": value("apart"),
                "min_visible": value(0.3),
                "split": value("settings"),
                "seed": value(0),
            },
        ),
        "composites.example_composites": (
            composites.example_composites,
            {
                "model": lambda: fcs_lab.load("mnist", device="cpu"),
                "count": value(1),
                "num_layers": value(2),
                "seed": value(0),
            },
        ),
        "baselines.clustering.cluster_layers": (
            cluster_layers,
            {
                "composites": lambda: noise(1, 1, 8, 8),
                "num_layers": value(2),
                "place": value(1.0),
                "patch": value(3),
                "background": value(-1.0),
                "seed": value(0),
            },
        ),
        "baselines.ddnm.ddnm": (baselines.ddnm, PEER | {"eta": value(1.0)}),
        "baselines.diffpir.diffpir": (
            baselines.diffpir,
            PEER | {"noise_floor": value(0.01), "strength": value(1.0), "zeta": value(1.0)},
        ),
        "baselines.dps.dps": (baselines.dps, PEER | {"step_size": value(1.0)}),
        "baselines.flowchef.flowchef": (baselines.flowchef, PEER | {"step_size": value(1.0)}),
        "baselines.lgd_mc.lgd_mc": (baselines.lgd_mc, PEER | {"step_size": value(1.0), "draws": value(2)}),
        "baselines.pigdm.pigdm": (baselines.pigdm, PEER | {"eta": value(1.0)}),
        "baselines.mpgd.mpgd": (baselines.mpgd, PEER | {"step_size": value(1.0), "eta": value(1.0)}),
        "baselines.red_diff.red_diff": (baselines.red_diff, PEER | {"learning_rate": value(0.1), "weight": value(0.2)}),
        "baselines.repaint.repaint": (baselines.repaint, PEER | {"resamplings": value(2), "eta": value(1.0)}),
        "baselines.ddrm.ddrm": (baselines.ddrm, PEER | {"eta": value(1.0), "eta_b": value(1.0)}),
        "baselines.daps.daps": (
            baselines.daps,
            PEER | {"ode_steps": value(2), "langevin_steps": value(2), "noise_floor": value(0.1)},
        ),
        "baselines.lanpaint.lanpaint": (
            baselines.lanpaint,
            PEER
            | {
                "langevin_steps": value(1),
                "step_size": value(0.2),
                "weight": value(4.0),
                "friction": value(2.0),
                "eta": value(1.0),
            },
        ),
        "baselines.guess_and_guide.guess_and_guide": (
            baselines.guess_and_guide,
            PEER | {"guesses": value(1), "start": value(0.3), "gradient_steps": value(1), "step_size": value(0.5)},
        ),
        "baselines.freedom.freedom": (
            baselines.freedom,
            PEER | {"step_size": value(1.0), "travels": value(2), "eta": value(1.0)},
        ),
        "baselines.psld.psld": (
            baselines.psld,
            PEER
            | {
                "model": latent_model,
                "task": lambda: half(32, 3),
                "step_size": value(1.0),
                "gluing": value(0.1),
            },
        ),
        "baselines.tuned.tuned": (baselines.tuned, PEER | {"model": tuned_model, "eta": value(1.0)}),
        "baselines.deep_image_prior.deep_image_prior": (
            baselines.deep_image_prior,
            PEER | {"model": value(None), "task": lambda: half(16), "learning_rate": value(0.01), "width": value(4)},
        ),
        "baselines.classical.biharmonic": (baselines.biharmonic, {"model": value(None), "task": half}),
        "baselines.classical.total_variation": (
            baselines.total_variation,
            {"model": value(None), "task": half, "num_inference_steps": value(2), "weight": value(0.1)},
        ),
        "baselines.classical.wiener": (
            baselines.wiener,
            {"model": value(None), "task": blurred, "balance": value(0.1), "progress": value(False)},
        ),
        "baselines.classical.richardson_lucy": (
            baselines.richardson_lucy,
            {"model": value(None), "task": blurred, "num_inference_steps": value(2), "progress": value(False)},
        ),
        "baselines.classical.bicubic": (
            baselines.bicubic,
            {"model": value(None), "task": lambda: fcs_lab.SuperResolution(noise(1, 1, 4, 4), 2)},
        ),
        "baselines.budget": (baselines.budget, {"method": value("ddnm"), "evaluations": value(60)}),
        "classifier.load_classifier": (load_classifier, {"name": value("digits"), "device": value("cpu")}),
        "plots.image_grid": (
            plots.image_grid,
            {
                "rows": lambda: {"a": noise(2, 1, 8, 8)},
                "masks": lambda: {"a": right()[None, None]},
                "column_titles": value(["x", "y"]),
                "title": value("t"),
            },
        ),
        "plots.colour_masks": (plots.colour_masks, {"masks": masks}),
        "plots.direction_grid": (
            plots.direction_grid,
            {
                "rows": lambda: {"a": noise(2, 1, 8, 8)},
                "images": value(("a",)),
                "pixels": value(None),
                "captions": value(None),
                "column_titles": value(None),
                "title": value("t"),
                "size": value(1.0),
            },
        ),
        "plots.plot_error": (
            plots.plot_error,
            {"results": lambda: {"newton": result()}, "axes": value(None), "image": value(0)},
        ),
        "diagnosis.plots.plot_diagnosis": (plot_diagnosis, {"diagnosis": diagnosed}),
        "plots.trajectory": (
            plots.trajectory,
            {"results": lambda: {"newton": traced()}, "image": value(0), "columns": value(2)},
        ),
        "plots.show": (plots.show, {"axes": axes, "image": lambda: noise(1, 8, 8), "mask": value(None)}),
        "probes.jacobian.JacobianOperator": (
            jacobian_products,
            POINT | {"method": value("jvp"), "fd_step": value(0.1), "batch_size": value(8)},
        ),
        "probes.comparison.compare_directions": (
            comparison.compare_directions,
            POINT
            | e
            | {
                "known": value(None),
                "fd_step": value(0.1),
                "regularization": value(0.1),
                "step_size": value(0.1),
                "max_iterations": value(3),
            },
        ),
        "probes.fd_error.in_precision": (fd_error.in_precision, {"denoiser": model, "dtype": value(torch.bfloat16)}),
        "probes.fd_error.measure_fd_error": (
            fd_error.measure_fd_error,
            POINT | e | {"h": value((0.01, 0.1)), "dtypes": value((torch.float32,)), "schemes": value(("forward",))},
        ),
        "probes.fd_error.suggest_fd_step": (
            fd_error.suggest_fd_step,
            POINT | e | {"dtype": value(torch.float32), "scheme": value("forward")},
        ),
        "probes.invertibility.find_displacement": (
            invertibility.find_displacement,
            {
                "denoiser": gaussian,
                "x_t": lambda: noise(1, 1, 2, 2),
                "t": value(500),
                "move": lambda: 0.01 * noise(1, 1, 2, 2),
                "guess": value(None),
                "inverse": value(None),
                "starts": value(1),
                "tolerance": value(1e-3),
                "max_iterations": value(5),
                "max_krylov": value(4),
                "generator": value(None),
            },
        ),
        "probes.invertibility.measure_invertibility": (
            invertibility.measure_invertibility,
            {
                "denoiser": gaussian,
                "x_t": lambda: noise(1, 1, 2, 2),
                "t": value(500),
                "e": lambda: noise(1, 1, 2, 2),
                "J": value(None),
                "n_random": value(1),
                "n_singular": value(1),
                "radii": value((0.01, 0.1)),
                "bisections": value(1),
                "starts": value(1),
                "tolerance": value(1e-3),
                "max_iterations": value(5),
                "max_krylov": value(4),
            },
        ),
        "probes.linear_reach.measure_linear_reach": (
            invertibility.measure_linear_reach,
            POINT | e | {"error": value(0.1), "step_sizes": value((0.01, 0.1))},
        ),
        "probes.newton.measure_forcing_term": (
            newton.measure_forcing_term,
            POINT
            | e
            | {
                "step_sizes": value((0.01, 0.1)),
                "regularization": value(None),
                "max_iterations": value(3),
                "within": value(None),
            },
        ),
        "probes.newton.forcing_bound": (newton.forcing_bound, {"J": matrix, "step_sizes": value((0.01, 0.1))}),
        "probes.newton.measure_convergence": (
            newton.measure_convergence,
            POINT
            | {
                "task": half,
                "steps": value(2),
                "step_size": value(0.1),
                "rule": value("infinity"),
                "direction": value("newton"),
            },
        ),
        "probes.spectrum.measure_spectrum": (
            probes.measure_spectrum,
            {"J": matrix, "k": value(3), "vectors": value(30), "tol": value(1e-3), "probes": value(4), "seed": value(0)},
        ),
        "probes.symmetry.measure_symmetry": (
            probes.measure_symmetry,
            {"J": matrix, "e": lambda: noise(1, 1, 8, 8), "probes": value(4), "confidence": value(0.9), "seed": value(0)},
        ),
        "schedule.read_schedule": (
            schedule.read_schedule,
            {
                "scheduler": scheduler,
                "num_inference_steps": value(5),
                "timesteps": value(None),
                "sigmas": value(None),
                "mu": value(None),
                "tokens": value(None),
            },
        ),
        "schedule.same_levels": (schedule.same_levels, {"one": scheduler, "other": scheduler}),
        "schedule.is_flow": (schedule.is_flow, {"scheduler": scheduler}),
        "families.family_of": (families.family_of, {"pipe": pipe}),
        "records.save_record": (
            save_record,
            {
                "path": value("x.json"),
                "model": value("mnist"),
                "seed": value(0),
                "settings": value({"a": 1}),
                "numbers": value([1.0]),
            },
        ),
        "sensitivity.plots.plot_costs": (
            map_plots.plot_costs,
            {"evaluations": value([1.0, 2.0]), "costs": lambda: noise(2, 3).abs()},
        ),
        "sensitivity.plots.plot_sensitivity": (
            map_plots.plot_sensitivity,
            {
                "values": lambda: noise(2, 3).abs(),
                "x": value(["a", "b", "c"]),
                "y": value(["0", "1"]),
                "labels": value(("x", "y", "v")),
                "failed": value(None),
                "title": value("t"),
                "axes": value(None),
            },
        ),
        "sensitivity.map.SensitivityMap": (
            sensitivity_map,
            {
                "model": model,
                "images": lambda: noise(1, 1, 8, 8),
                "x": value(("step_size_first", [0.1, 0.2])),
                "y": value(("inner_steps", [0, 1])),
                "task": value("right-half"),
                "folder": value(None),
                "seed": value(0),
                "batch_size": value(None),
                "many": value(False),
                "num_inference_steps": value(1),
                "method": value("newton"),
                "step_size_last": value(0.1),
                "fd_step": value(None),
                "eta": value(1.0),
                "noise_std": value(0.1),
            },
        ),
        "widgets.inpainting.InpaintingLab": (
            inpainting.InpaintingLab,
            {"model": lambda: fcs_lab.load("mnist", device="cpu")},
        ),
        "widgets.layers.LayersLab": (
            layers_widget.LayersLab,
            {"model": lambda: fcs_lab.load("mnist", device="cpu"), "composite": lambda: noise(1, 1, 32, 32)},
        ),
        "widgets.canvas.png": (canvas.png, {"image": lambda: Image.new("L", (8, 8)), "zoom": value(2)}),
        "widgets.canvas.MaskPainter": (canvas.MaskPainter, {"image": lambda: noise(1, 1, 8, 8)}),
        "widgets.canvas.PixelPicker": (canvas.PixelPicker, {"image": lambda: noise(1, 1, 8, 8)}),
        "widgets.canvas.ScribblePainter": (canvas.ScribblePainter, {"image": lambda: noise(1, 1, 8, 8)}),
        "zoo.load": (
            fcs_lab.load,
            {
                "name": saved,
                "device": value("cpu"),
                "torch_dtype": value(torch.float32),
                "prompt": value("a dress"),
                "negative_prompt": value("a coat"),
                "guidance_scale": value(2.0),
                "variant": value(None),
                "config": value(None),
            },
        ),
        "zoo.load_pipeline": (zoo.load_pipeline, {"name": saved, "variant": value(None), "config": value(None)}),
        "zoo.checkpoints": (zoo.checkpoints, {"name": value("mnist")}),
    }


def exact(make):
    """An exact denoiser's maker, followed by its use."""

    def call(**arguments):
        model = make(**arguments)
        return model(noise(1, *model.shape).to(model.dtype), 300)

    return call


def sampled_layers(**arguments):
    from fcs_lab.layered import LayeredComposite

    task = LayeredComposite(**arguments)
    return task.cost_and_error(noise(task.batch_size, *task.shape))


@functools.cache
def traced():
    return fcs_lab.sample(model(), half(), num_inference_steps=2, inner_steps=1, trace_x0=True, progress=False)


def sensitivity_map(folder=None, **arguments):
    """A map, and where it is kept in memory its numbers; a cell that fails is none that was refused."""
    found = fcs_lab.SensitivityMap(folder=folder, **arguments)
    if folder is not None:
        return found.evaluations()
    failed = [cell.error for cell in found.run(progress=False).cells.values() if cell.error is not None]
    if failed:
        raise BaseException(f"a cell failed: {failed[0]}")
    return found.values()


def save_record(path, **arguments):
    from fcs_lab.records import save_record

    with tempfile.TemporaryDirectory() as place:
        return save_record(Path(place) / path if isinstance(path, str) else path, **arguments)


MADE_HERE = "a result or a record: the lab makes it"
PART = "a part of the lab that others call, with what they have checked"
TYPE = "a protocol or a base class"
TRAINING = "training: its command line checks what it is given (tests/test_training.py)"
SAME = "as another that is here"
NOT_CALLED = {
    **dict.fromkeys(
        (
            "study.plots.plot_differences",
            "study.plots.plot_trade_off",
            "study.plots.values_of",
            "widgets.study_table.StudyTable",
            "study.config.Entry",
            "study.config.Study",
            "study.config.read_studies",
            "study.config.read_study",
            "pipeline_call.PipelineCall",
            "study.run.Plan",
            "study.run.dry_run",
            "study.run.records",
            "study.run.run",
            "study.tasks.Posed",
            "study.tasks.check_task_name",
            "study.tasks.pose",
        ),
        "a study's file and folder are spoilt in tests/test_study.py",
    ),
    **dict.fromkeys(
        (
            "algorithm.algorithm_1",
            "algorithm.plan",
            "baselines.frame.clipped",
            "baselines.frame.run",
            "baselines.pigdm.pigdm_peer",
            "baselines.lgd_mc.lgd_mc_peer",
            "baselines.repaint.repaint_peer",
            "baselines.red_diff.red_diff_peer",
            "baselines.mpgd.mpgd_peer",
            "baselines.flowchef.flowchef_peer",
            "baselines.dps.dps_peer",
            "baselines.diffpir.diffpir_peer",
            "baselines.ddnm.ddnm_peer",
            "baselines.ddrm.ddrm_peer",
            "baselines.daps.daps_peer",
            "baselines.daps.daps_budget",
            "baselines.freedom.freedom_peer",
            "baselines.freedom.freedom_budget",
            "baselines.guess_and_guide.guess_and_guide_peer",
            "baselines.guess_and_guide.guess_and_guide_budget",
            "baselines.lanpaint.lanpaint_peer",
            "baselines.lanpaint.lanpaint_budget",
            "baselines.psld.psld_peer",
            "baselines.repaint.repaint_budget",
            "baselines.frame.noised_back",
            "baselines.frame.on_images",
            "baselines.frame.one_a_timestep",
            "baselines.frame.per_image_norm",
            "baselines.frame.repeated",
            "checks.check_number",
            "denoisers.is_tuned",
            "fast.fast",
            "fast.fast_plan",
            "sampler.check_preset",
            "sampler.drive",
            "checks.check_count",
            "checks.typed",
            "checks.check_tensor",
            "checks.check_seed",
            "checks.check_generator",
            "checks.check_flag",
            "checks.check_function",
            "checks.describe",
            "checks.is_int",
            "checks.is_number",
            "checks.refuse_meta",
            "constrained.check_pipeline",
            "constraints.for_channels",
            "constraints.needs",
            "contexts.computes_in",
            "contexts.ordinary",
            "contexts.own_copy",
            "denoisers.check_shape",
            "denoisers.estimate_x0",
            "denoisers.forward_mode",
            "denoisers.frozen",
            "denoisers.left_as_found",
            "denoisers.networks_of",
            "directions.CountedDenoiser",
            "directions.Differentiation",
            "directions.exact",
            "directions.gradient",
            "directions.identity",
            "directions.moves",
            "directions.newton",
            "directions.newton_jvp",
            "directions.norm_inf",
            "directions.unit",
            "families.table",
            "forecast.seconds_of_an_evaluation",
            "families.takes_a_callback",
            "families.takes_an_interrupt",
            "families.what_it_takes",
            "inpainting_inputs.Preparation",
            "inpainting_inputs.processor",
            "latent_space.LatentSpace",
            "latent_space.Layout",
            "latent.check_base_model",
            "latent.check_channels",
            "latent_space.layout_of",
            "latent_space.network_of",
            "precision.at_least_float32",
            "precision.channels_last_if_half",
            "probes.jacobian.check_direction",
            "probes.jacobian.check_point",
            "probes.jacobian.check_vector",
            "records.save_figure",
            "sampler.Settings",
            "sampler.check_task",
            "sensitivity.axes.Axis",
            "sensitivity.axes.Grid",
            "sensitivity.axes.checked_axis",
            "sensitivity.axes.settings_taken",
            "sensitivity.cells.Bench",
            "sensitivity.cells.Stopped",
            "sensitivity.cells.digest_of",
            "sensitivity.plots.heat",
            "sensitivity.plots.ink_on",
            "schedule.check_scheduler",
            "trace.Watch",
            "trace.check_finite",
            "zoo.verify",
        ),
        PART,
    ),
    **dict.fromkeys(
        (
            "classifier.Classifier",
            "composites.Composites",
            "baselines.frame.Peer",
            "baselines.frame.RunOptions",
            "constrained.ConstrainedRun",
            "constraints.SingularSystem",
            "families.Family",
            "diagnosis.checks.Diagnosis",
            "diagnosis.checks.Finding",
            "failures.Case",
            "failures.Posterior",
            "failures.Ran",
            "forecast.Forecast",
            "layered.LayersResult",
            "probes.comparison.Compared",
            "probes.fd_error.FdCurve",
            "probes.fd_error.FdError",
            "probes.invertibility.Invertibility",
            "probes.linear_reach.LinearReach",
            "probes.invertibility.Reach",
            "probes.invertibility.Solve",
            "probes.newton.Convergence",
            "probes.newton.ForcingBound",
            "probes.newton.ForcingTerm",
            "probes.spectrum.Spectrum",
            "probes.symmetry.Symmetry",
            "sampler.Result",
            "sensitivity.cells.Cell",
            "schedule.Schedule",
            "trace.State",
            "trace.TraceEntry",
        ),
        MADE_HERE,
    ),
    **dict.fromkeys(
        (
            "constraints.Constraint",
            "constraints.ConstraintBase",
            "constraints.EachChannel",
            "constraints.Selection",
            "denoisers.Denoiser",
            "denoisers.Model",
        ),
        TYPE,
    ),
    **dict.fromkeys(
        (
            "widgets.jacobian.JacobianLab",
            "widgets.lab.SamplerLab",
            "widgets.super_resolution.SuperResolutionLab",
            "widgets.families.FamilyMenu",
            "widgets.tasks.TaskLab",
            "widgets.heatmap.HeatMap",
            "widgets.sensitivity.SensitivityLab",
        ),
        SAME,
    ),
    **dict.fromkeys(("features.CLIPFeatures", "features.load_clip"), "needs the weights of CLIP (tests/test_features.py)"),
}


class Other:
    """An object of nobody's library."""

    def __repr__(self):
        return "Other()"


def nasty() -> dict[str, object]:
    """Values that are wrong nearly everywhere, by what they are."""
    return {
        "None": None,
        "a string": "nonsense",
        "an empty string": "",
        "bytes": b"abc",
        "-1": -1,
        "0": 0,
        "1.5": 1.5,
        "NaN": float("nan"),
        "infinity": float("inf"),
        "10**9": 10**9,
        "True": True,
        "complex": 1 + 1j,
        "an empty list": [],
        "a list of strings": ["a", "b"],
        "an empty dict": {},
        "a tuple": (1, 2),
        "a set": {1},
        "an object": Other(),
        "a type": int,
        "a function of nothing": lambda: None,
        "NumPy's 3": np.int64(3),
        "a 0-d array": np.array(3),
        "an array of objects": np.array([Other()], dtype=object),
        "an array": np.zeros((2, 3)),
        "an array of NaN": np.full((8, 8), np.nan),
        "an empty tensor": torch.zeros(0),
        "a tensor of one axis": torch.zeros(3),
        "a batch of none": torch.zeros(0, 1, 8, 8),
        "NaN pixels": torch.full((1, 1, 8, 8), torch.nan),
        "infinite pixels": torch.full((1, 1, 8, 8), torch.inf),
        "whole pixels": torch.zeros(1, 1, 8, 8, dtype=torch.int64),
        "complex pixels": torch.zeros(1, 1, 8, 8, dtype=torch.complex64),
        "on meta": torch.zeros(1, 1, 8, 8, device="meta"),
        "another size": torch.zeros(1, 1, 7, 5),
        "three channels": torch.zeros(1, 3, 8, 8),
        "bool pixels": torch.ones(1, 1, 8, 8) > 0,
        "a graph": torch.zeros(1, 1, 8, 8, requires_grad=True),
        "sparse": torch.zeros(1, 1, 8, 8).to_sparse(),
        "a picture": Image.new("RGBA", (8, 8)),
        "a path": Path("/nonexistent/file"),
    }


def finite(value, depth=0) -> bool:
    """Whether no tensor, array or number in a result is NaN."""
    if isinstance(value, torch.Tensor):
        return value.is_meta or not (value.is_floating_point() and bool(value.isnan().any()))
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or not np.isnan(value).any()
    if dataclasses.is_dataclass(value) and depth < 3:  # whose numbers may be undefined, and say so
        return all(finite(one, depth + 1) for one in vars(value).values() if isinstance(one, torch.Tensor))
    if isinstance(value, list | tuple) and depth < 3:
        return all(finite(one, depth + 1) for one in value)
    return not (isinstance(value, float) and value != value)


ALIASES = {  # what an error may call an argument
    "A_adjoint": ("A_adjoint", "A yields"),
    "A": ("A ", "A_adjoint", "A yields"),
    "unet": ("U-Net", "unet"),
    "truth": ("truth", "images"),
    "true_layers": ("true_layers", "layers"),
    "labels": ("labels", "label"),
    "negative_prompt": ("prompt",),
    "direction": ("direction", "method"),
    "callback_on_step_end": ("callback",),
    "rows": ("row",),
    "results": ("result",),
    "settings": ("settings", "record"),
    "numbers": ("numbers", "record"),
    "generator": ("generator",),
    "source": ("image", "mask", "source"),
    "values": ("values",),
    "J": ("J ", "J"),
    "pipe": ("pipe", "network"),
    "composite": ("composite", "image"),
    "model": ("model", "denoiser"),
    "denoiser": ("denoiser", "model"),
    "task": ("task", "the task"),
    "x_0": ("x_0", "x_t"),
    "one": ("scheduler", "one"),
    "other": ("scheduler", "other"),
    "image": ("image",),
    "images": ("image",),
    "name": ("name", "model", "folder"),
    "folder": ("folder", "path"),
    "A_": (),
}
EXPECTED = (TypeError, ValueError, OSError, FloatingPointError, ImportError)


PATIENCE = 20
"""Seconds that a call may take."""


def judge(name: str, argument: str, spoilt: str) -> str | None:
    """Make one call; what is short of what is wanted, or None."""

    def too_long(*_):
        raise BaseException(f"took more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE)
    try:
        return _judge(name, argument, spoilt)
    finally:
        signal.alarm(0)


def _judge(name: str, argument: str, spoilt: str) -> str | None:
    function, good = CALLS[name]
    arguments = {key: make() for key, make in good.items()}
    bad = nasty()[spoilt]
    arguments[argument] = bad
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = function(**arguments)
    except EXPECTED as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        if not last.filename.startswith(PACKAGE) and "beartype" not in last.filename:
            return f"{type(error).__name__} from {Path(last.filename).name}:{last.lineno}: {str(error)[:120]!r}"
        # Where two do not fit each other, the error may name either.
        words = (argument, *ALIASES.get(argument, ()), *(good if isinstance(error, ValueError) else ()))
        if not any(word.lower() in str(error).lower() for word in words):
            return f"{type(error).__name__} that does not name it: {str(error)[:120]!r}"
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:120]!r}"
    if not finite(found) and spoilt not in ("NaN", "an array of NaN"):
        return "NaN in the result"
    return None


CALLS = calls()


def cases(count: int, seed: int) -> list[tuple[str, str, str]]:
    everything = [(name, key, bad) for name, (_, good) in CALLS.items() for key in good for bad in nasty()]
    return random.Random(seed).sample(everything, min(count, len(everything)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names that begin so")
    parser.add_argument("--again", nargs=3, metavar=("NAME", "ARGUMENT", "VALUE"), help="one call, with its traceback")
    options = parser.parse_args()
    if options.again:
        name, argument, spoilt = options.again
        function, good = CALLS[name]
        print(function(**{key: make() for key, make in good.items()} | {argument: nasty()[spoilt]}))
        return 0
    chosen = [
        case for case in cases(10**9 if options.only else options.count, options.seed) if case[0].startswith(options.only)
    ]
    short_of = 0
    for name, argument, spoilt in chosen:
        fault = judge(name, argument, spoilt)
        if fault is not None:
            short_of += 1
            print(f"--again {name} {argument} {spoilt!r}: {fault}", flush=True)
    print(f"{short_of} short of {len(chosen)} calls (seed {options.seed})")
    return int(short_of > 0)


if __name__ == "__main__":
    sys.exit(main())
