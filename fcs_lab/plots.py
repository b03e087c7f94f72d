"""Pictures of results. Every function returns a matplotlib Figure; none needs a display."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from fcs_lab.checks import check_count, check_tensor, is_number, typed
from fcs_lab.sampler import Result

__all__ = ["colour_masks", "direction_grid", "image_grid", "plot_error", "show", "trajectory"]

HIDDEN = (0.93, 0.55, 0.20)
"""The colour of what is masked."""

LAYER_COLOURS = (HIDDEN, (0.20, 0.50, 0.80), (0.25, 0.65, 0.40), (0.70, 0.40, 0.75))
"""The colours of layers, from the first; a fifth has the first's again."""


class Figure(MatplotlibFigure):
    """A matplotlib Figure that a notebook shows as a picture, without pyplot's global state: fit for threads, too."""

    def png(self, dpi: float = 110) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()

    _repr_png_ = png


@typed
def show(axes: Axes, image: Tensor, mask: Tensor | None = None) -> None:
    """Draw an image (C, H, W) in [-1, 1], the pixels under the mask (1, H, W) in orange.

    Example:
        >>> axes = fcs_lab.plots.Figure().add_subplot()
        >>> fcs_lab.plots.show(axes, fcs_lab.load_digits(1)[0][0])
        >>> len(axes.images)
        1
    """
    check_tensor("image", image, "C", "H", "W")
    if mask is not None:
        check_tensor("mask", mask, 1, *image.shape[-2:], like="any")
    pixels = (image.detach().float().cpu().clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0).numpy()
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy()
    if mask is not None:
        pixels[mask[0].bool().cpu().numpy()] = HIDDEN
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


@typed
def colour_masks(masks: Tensor) -> Tensor:
    """Soft masks (..., K, H, W) that sum to 1 as images (..., 3, H, W) in [-1, 1]: Σ m_k times the colour of layer k.

    Example:
        >>> masks = torch.zeros(1, 2, 4, 4)
        >>> masks[:, 0] = 1.0
        >>> tuple(fcs_lab.plots.colour_masks(masks).shape)
        (1, 3, 4, 4)
    """
    if masks.ndim < 3:
        raise ValueError(f"masks has shape {tuple(masks.shape)}; expected (..., K, H, W)")
    check_tensor("masks", masks, *masks.shape)
    colours = masks.new_tensor([LAYER_COLOURS[k % len(LAYER_COLOURS)] for k in range(masks.shape[-3])])
    return torch.einsum("...khw,kc->...chw", masks, colours) * 2 - 1


def _columns(rows: Mapping[str, Tensor], titles: Sequence[str] | None) -> int:
    """How many columns the rows have, once each has images and there is a title for each column."""
    if not rows:
        raise ValueError("rows is empty; expected at least one")
    for label, images in rows.items():
        check_tensor(f"rows[{label!r}]", images, "N", "C", "H", "W")
    count = max(map(len, rows.values()))
    if titles is not None and (isinstance(titles, str) or len(titles) < count):
        raise ValueError(f"column_titles is {titles!r}; expected a list of {count}")
    return count


@typed
def image_grid(
    rows: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    column_titles: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Labelled rows of images.

    Args:
        rows: Label -> images (N, C, H, W) in [-1, 1], N the same in every row.
        masks: Label -> mask (N or 1, 1, H, W); True pixels are drawn in orange.
        column_titles: One above each column.
        title: Above all.

    Example:
        >>> digits = fcs_lab.load_digits(4)[0]
        >>> mask = torch.arange(32).ge(16).expand(1, 1, 32, 32)
        >>> figure = fcs_lab.plots.image_grid({"truth": digits, "given": digits}, masks={"given": mask})
        >>> len(figure.axes)  # two rows of four
        8
    """
    count = _columns(rows, column_titles)
    head = 0.1 + 0.3 * (title is not None) + 0.22 * (column_titles is not None)
    label_width = 0.3 + 0.075 * max(len(line) for label in rows for line in label.splitlines())
    width, height = label_width + 0.75 * count + 0.1, 0.75 * len(rows) + head
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        len(rows),
        count,
        left=label_width / width,
        right=1 - 0.1 / width,
        top=1 - head / height,
        bottom=0.01,
        wspace=0.05,
        hspace=0.05,
    )
    for r, (label, images) in enumerate(rows.items()):
        mask = (masks or {}).get(label)
        for c, image in enumerate(images):
            axes = figure.add_subplot(grid[r, c])
            show(axes, image, None if mask is None else mask[c % len(mask)])
            if r == 0 and column_titles is not None:
                axes.set_title(column_titles[c], fontsize=8, pad=3)
            if c == 0:
                _label_row(axes, label)
    _set_title(figure, title)
    return figure


def _label_row(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)


def _set_title(figure: Figure, title: str | None) -> None:
    if title is not None:
        figure.text(0.5, 1 - 0.08 / figure.get_figheight(), title, ha="center", va="top", fontsize=10)


@typed
def direction_grid(
    rows: Mapping[str, Tensor],
    *,
    images: Sequence[str] = (),
    pixels: Sequence[tuple[int, int] | None] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    column_titles: Sequence[str] | None = None,
    title: str | None = None,
    size: float = 1.15,
) -> Figure:
    """Labelled rows of directions: red is positive, blue negative, white zero; each panel has a scale of its own.

    The colours saturate at half of a panel's largest magnitude, since one pixel often has several times the others'.
    Of latents, with more channels than an image, the channels are drawn side by side, in a square.

    Args:
        rows: Label -> (N, C, H, W), N the same in every row; up to three channels are averaged.
        images: Labels of rows that are images in [-1, 1] instead, drawn as they are.
        pixels: (row, column) to be framed in each column, or None; not in latents.
        captions: Label -> N texts, one under each panel. Without one, a direction's has its scale ‖·‖_∞.
        column_titles: One above each column.
        title: Above all.
        size: Of a panel, in inches.

    Example:
        >>> e, Je = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> len(fcs_lab.plots.direction_grid({"e": e, "J e": Je}).axes)
        2
    """
    count = _columns(rows, column_titles)
    head = 0.12 + 0.26 * (title is not None) + 0.24 * (column_titles is not None)
    under = 0.2
    label_width = 0.25 + 0.075 * max(len(line) for label in rows for line in label.splitlines())
    if not is_number(size) or not 0 < size <= 100:
        raise ValueError(f"size is {size!r}; expected inches, a positive number")
    if pixels is not None and (isinstance(pixels, str) or len(pixels) < count):
        raise ValueError(f"pixels is {pixels!r}; expected a (row, column) or None for each of {count} columns")
    width, height = label_width + (size + 0.08) * count, head + (size + under) * len(rows)
    figure = Figure(figsize=(width, height))
    for r, (label, row) in enumerate(rows.items()):
        for c, values in enumerate(row):
            left = (label_width + (size + 0.08) * c) / width
            bottom = 1 - (head + (size + under) * r + size) / height
            axes = figure.add_axes((left, bottom, size / width, size / height))
            if label in images:
                show(axes, values)
                caption = ""
            else:
                plane = _plane(values.detach().float().cpu()).numpy()
                limit = float(np.abs(plane).max())
                scale = limit / 2 or 1
                axes.imshow(plane, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_color("0.75")
                caption = f"±{limit:.2g}"
            if pixels is not None and pixels[c] is not None and len(values) <= 3:
                y, x = pixels[c]
                axes.add_patch(Rectangle((x - 1, y - 1), 2, 2, fill=False, ec=HIDDEN if label in images else "k", lw=1))
            if captions and label in captions:
                caption = captions[label][c]
            axes.set_xlabel(caption, fontsize=7, labelpad=2)
            if r == 0 and column_titles is not None:
                axes.set_title(column_titles[c], fontsize=8, pad=3)
            if c == 0:
                _label_row(axes, label)
    _set_title(figure, title)
    return figure


def _plane(values: Tensor) -> Tensor:
    """(C, H, W) as one plane: an image's channels averaged, a latent's in a square of ⌈√C⌉ by as many as it takes."""
    C, H, W = values.shape
    if C <= 3:
        return values.mean(0)
    columns = math.ceil(C**0.5)
    tiles = values.new_zeros(-(-C // columns) * columns, H, W)
    tiles[:C] = values
    return tiles.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _check_results(results: Mapping[str, Result], image: int) -> int:
    """That there are results, and that all have this image."""
    if not results:
        raise ValueError("results is empty; expected at least one")
    check_count("image", image, 0)
    fewest = min(len(result.x0) for result in results.values())
    if image >= fewest:
        raise ValueError(f"image is {image}; the results have {fewest}, so expected 0 to {fewest - 1}")
    return int(image)


@typed
def plot_error(results: Mapping[str, Result], axes: Axes | None = None, image: int = 0) -> Figure:
    """‖e‖_2 of one image over the whole run, against the evaluations spent.

    Args:
        results: Label -> result.
        axes: Draw there; None makes a figure.
        image: Which image of the batch.

    Example:
        >>> model, mask = fcs_lab.load("mnist"), torch.arange(32).ge(16).expand(32, 32)
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> result = fcs_lab.sample(model, task, num_inference_steps=2, inner_steps=1, trace_x0=True, progress=False)
        >>> figure = fcs_lab.plots.plot_error({"newton": result})  # shows itself at the end of a notebook's cell
        >>> len(figure.axes)
        1
    """
    image = _check_results(results, image)
    if axes is None:
        axes = Figure(figsize=(5, 2.8), layout="constrained").add_subplot()
    for label, result in results.items():
        trace = result.trace
        nfe = [entry.nfe for entry in trace]
        error = torch.stack([entry.error_norm[image] for entry in trace])
        axes.plot(nfe, error, label=label, lw=1.2)
    axes.set(xlabel="evaluations of the denoiser", ylabel=r"error norm $\|e\|_2$")
    if any((entry.error_norm[image] > 0).item() for result in results.values() for entry in result.trace):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes.figure


@typed
def trajectory(results: Mapping[str, Result], image: int = 0, columns: int = 10) -> Figure:
    """x̂_0 of one image over the timesteps, a row for each result (sampled with `trace_x0=True`).

    Raises:
        ValueError: A result was sampled without `trace_x0=True`.

    Example:
        >>> model, mask = fcs_lab.load("mnist"), torch.arange(32).ge(16).expand(32, 32)
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> result = fcs_lab.sample(model, task, num_inference_steps=2, inner_steps=1, trace_x0=True, progress=False)
        >>> figure = fcs_lab.plots.trajectory({"newton": result})
        >>> len(figure.axes) >= 2  # a panel for each timestep, at least
        True
    """
    image = _check_results(results, image)
    check_count("columns", columns, 1)
    rows, titles = {}, []
    for label, result in results.items():
        entries = [entry for entry in result.trace if entry.x0 is not None]
        if not entries:
            raise ValueError(f"the result {label!r} holds no x̂_0; sample with trace_x0=True")
        chosen = [entries[round(i)] for i in np.linspace(0, len(entries) - 1, min(columns, len(entries)))]
        rows[label] = torch.stack([entry.x0[image] for entry in chosen])
        titles = [f"t = {entry.t}" for entry in chosen]
    return image_grid(rows, column_titles=titles)
