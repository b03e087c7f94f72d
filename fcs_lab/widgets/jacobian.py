"""The Jacobian laboratory of notebook 03: e, J e, Jᵀ e and J⁻¹ e side by side, for an error that the reader picks."""

from __future__ import annotations

import html

import ipywidgets as widgets
import torch
from torch import Tensor

from fcs_lab.constraints import CostConstraint
from fcs_lab.data import example_images
from fcs_lab.denoisers import Denoiser, add_noise
from fcs_lab.latent import decode, encode, image_shape, in_latents
from fcs_lab.plots import Figure, direction_grid
from fcs_lab.probes import Compared, compare_directions
from fcs_lab.widgets.canvas import PixelPicker
from fcs_lab.zoo import load

__all__ = ["JacobianLab"]


class JacobianLab(widgets.VBox):
    """Pick a pixel of x̂_0 (or hide half), set t, h, the regularisation and λ; see e, J e, Jᵀ e, J⁻¹ e and what each does.

    Of a latent model the error in a pixel goes to latent space through the decoder, directions are drawn as latents (their
    channels side by side), and changes of x̂_0 are decoded.

    Every change is computed at once, in a few seconds at most. From code, set a control's value, as in
    `lab.timestep.value = 300`, and look at `lab.compared` and `lab.figure`.

    Args:
        model: A denoiser of images of at most 64 pixels a side, or what `fcs_lab.load` takes.
        images: Images to start from (N, C, H, W) in [-1, 1]. None: `example_images` of the model.

    Raises:
        ValueError: The images do not fit the model.

    Example:
        >>> digits = fcs_lab.load_digits(20)[0]
        >>> lab = fcs_lab.widgets.JacobianLab(fcs_lab.IdealDenoiser(digits), digits[:1])
        >>> tuple(lab.x_t.shape)
        (1, 1, 32, 32)
    """

    def __init__(self, model: Denoiser | str = "mnist", images: Tensor | None = None) -> None:
        self.model = load(model) if isinstance(model, str) else model
        self.images = example_images(self.model) if images is None else images
        if tuple(self.images.shape[1:]) != image_shape(self.model):
            raise ValueError(f"images has shape {tuple(self.images.shape)}; expected (N, *{image_shape(self.model)})")
        self.compared: dict[str, Compared] = {}
        """What `compare_directions` found, at the settings shown."""
        self.figure: Figure | None = None
        """The picture of it."""

        def control(kind: type[widgets.Widget], **options) -> widgets.Widget:
            options = {"continuous_update": False} | options if kind is not widgets.Dropdown else options
            return kind(style={"description_width": "120px"}, layout=widgets.Layout(width="360px"), **options)

        self.digit = control(widgets.BoundedIntText, value=0, max=len(self.images) - 1, description="image")
        last = self.model.scheduler.config.num_train_timesteps - 1
        self.timestep = control(widgets.IntSlider, value=500, min=0, max=last, step=10, description="t")
        self.kind = control(widgets.Dropdown, options=["the picked pixel", "the left half"], description="error in")
        self.fd_step = control(
            widgets.FloatLogSlider, value=0.005, min=-6, max=1, step=0.25, readout_format=".1e", description="h of J e"
        )
        self.regularization = control(
            widgets.FloatLogSlider, value=0.1, min=-3, max=1, step=0.25, description="regularisation"
        )
        self.step_size = control(widgets.FloatSlider, value=1.0, min=0.05, max=4, step=0.05, description="step length λ")
        self.seed = control(widgets.IntText, value=0, description="seed of the noise")
        self.message = widgets.HTML()
        self.picture = widgets.Image(format="png", layout=widgets.Layout(width="auto", max_width="900px"))
        self.picker = PixelPicker(self.images[:1], row=self.images.shape[-2] // 2, column=self.images.shape[-1] // 2)
        self._controls = [self.digit, self.timestep, self.kind, self.fd_step, self.regularization, self.step_size, self.seed]
        for widget in self._controls:
            widget.observe(self.update, "value")
        self.picker.observe(self.update, ["row", "column"])
        hint = widgets.HTML("<small>x̂_0: click to pick a pixel</small>")
        top = widgets.HBox([widgets.VBox([self.picker, hint]), widgets.VBox(self._controls)])
        super().__init__([top, self.message, self.picture])
        self.update()

    @property
    def x_t(self) -> Tensor:
        """The noisy point (1, C, H, W): the chosen image, of a latent model its encoding, at the chosen timestep."""
        x_0 = self._x_0
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(self.seed.value), dtype=torch.float32).to(x_0)
        return add_noise(self.model, x_0, noise, self.timestep.value)

    @property
    def _x_0(self) -> Tensor:
        with torch.no_grad():
            return encode(self.model, self.images[self.digit.value : self.digit.value + 1])

    def update(self, _: object = None) -> None:
        """Compute and draw what the settings say."""
        try:
            self._compute()
            self.message.value = ""
        except (TypeError, ValueError) as error:
            self.message.value = f'<span style="color: #b00020">{html.escape(str(error))}</span>'

    def _compute(self) -> None:
        x_t, t = self.x_t, self.timestep.value
        with torch.no_grad():
            x0 = self.model(x_t, t)
            picture = decode(self.model, x0)
        with self.picker.hold_trait_notifications():
            self.picker.set_image(picture.clamp(-1, 1))
        known = pixel = None
        if self.kind.value == "the left half":
            known = torch.zeros_like(x0)
            known[..., : x0.shape[-1] // 2] = 1
            e = known * (self._x_0.to(x0) - x0)
        else:  # the pixel should be light where it is dark, dark where it is light
            pixel = (self.picker.row, self.picker.column)
            wanted = torch.zeros_like(picture)
            wanted[..., pixel[0], pixel[1]] = torch.where(picture[..., pixel[0], pixel[1]] > 0, -1.0, 1.0)
            task = CostConstraint(lambda image: -(wanted * image).flatten(1).sum(1))
            e = in_latents(task, self.model).error(x0)
        self.compared = compare_directions(
            self.model,
            x_t,
            t,
            e,
            known,
            fd_step=self.fd_step.value,
            regularization=self.regularization.value,
            step_size=self.step_size.value,
        )
        found = list(self.compared.values())
        d, moved = (torch.cat([getattr(one, name) for one in found]) for name in ("d", "change"))
        with torch.no_grad():
            after = decode(self.model, x0 + moved)
        change = after - picture
        self.figure = direction_grid(
            {"direction d": d, "change of x̂_0": change, "x̂_0 afterwards": after.clamp(-1, 1)},
            images=["x̂_0 afterwards"],
            pixels=[pixel] * len(found),
            captions={
                "direction d": [f"cos with J e: {one.cosine:.3f}" for one in found],
                "change of x̂_0": [f"±{one.abs().max():.2g}" for one in change],
                "x̂_0 afterwards": [
                    f"error left: {one.left:.0%}"
                    if pixel is None or picture is x0
                    # The length of an error that came through the decoder means nothing.
                    else f"the pixel: {(wanted * image).sum() * wanted.sum():+.2f}"
                    for one, image in zip(found, change, strict=True)
                ],
            },
            column_titles=list(self.compared),
            title=f"t = {t}, one step of λ = {self.step_size.value:g}",
            size=1.7,
        )
        self.picture.value = self.figure.png()
