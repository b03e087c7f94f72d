"""The super-resolution laboratory of notebook 06."""

from __future__ import annotations

from functools import partial

import ipywidgets as widgets
import torch
from torch import Tensor

from fcs_lab.denoisers import Denoiser
from fcs_lab.filters import SuperResolution, downsample, upsample
from fcs_lab.images import ImageLike, to_pil, to_tensor
from fcs_lab.latent import image_shape
from fcs_lab.metrics import data_consistency, psnr
from fcs_lab.plots import plot_error
from fcs_lab.sampler import Result, sample
from fcs_lab.widgets.canvas import png
from fcs_lab.widgets.lab import SamplerLab, Told

__all__ = ["SuperResolutionLab"]

FACTORS = (2, 4, 8)
OPERATORS = ("bicubic", "box")
SAME = "the same"


class SuperResolutionLab(SamplerLab):
    """Choose an image and a factor, reduce it, and have the model make it large again.

    The image may be reduced by one operator and the sampler told of another, and noise may be added to what is given: of
    standard deviation σ_y, which a task has as its `noise_std`. Sampling runs in a thread of its own; Stop
    leaves the partial result. `run`, `stop` and `wait` do from code what the buttons do, `result` is what they left.

    Args:
        model: A denoiser, or what `fcs_lab.load` takes.
        images: Images of the model's size to choose from, in any form that `to_tensor` takes. None: the bundled ones of
            its kind; if there are none, one is to be uploaded.

    Raises:
        ValueError: The images do not fit the model.

    Example:
        >>> lab = fcs_lab.widgets.SuperResolutionLab("mnist")
        >>> lab.num_inference_steps.value, lab.inner_steps.value = 2, 1
        >>> lab.run()
        >>> lab.wait()
        >>> lab.result.nfe
        6
    """

    def __init__(self, model: Denoiser | str = "mnist", images: ImageLike | None = None) -> None:
        super().__init__(model)
        self.result: Result | None = None
        """What the last run found."""
        shape = image_shape(self.model)
        if images is None:
            self.images = self._bundled_images()
        else:
            self.images = to_tensor(images, "images")
        if tuple(self.images.shape[1:]) != tuple(shape):
            raise ValueError(f"images has shape {tuple(self.images.shape)}; expected (N, {', '.join(map(str, shape))})")
        self.image = self.images[:1]
        """The large image (1, C, H, W) that is reduced."""
        self._build()
        self._show_input()

    def _build(self) -> None:
        control, titled = self._control, self._titled
        _, H, W = image_shape(self.model)
        self.example = control(widgets.BoundedIntText, 0, 0, len(self.images) - 1, description="bundled image")
        factors = [(f"×{factor}", factor) for factor in FACTORS if H % factor == 0 and W % factor == 0]
        self.factor = control(widgets.Dropdown, options=factors, value=factors[min(1, len(factors) - 1)][1],
                              description="factor")  # fmt: skip
        self.reduced_by = control(widgets.Dropdown, options=OPERATORS, description="reduced by")
        self.assumed = control(widgets.Dropdown, options=[SAME, *OPERATORS],
                               description="A assumes")  # fmt: skip
        self.noise_std = control(widgets.FloatSlider, 0.0, min=0, max=0.3, step=0.05, description="noise σ_y")
        self.direction = self._direction_menu("newton", "gradient", "identity")
        self._algorithm_controls(inner_steps=10, step_size=(0.1, 0.1), max=1, step=0.01)
        self.small_picture, self.bicubic_picture, self.truth_picture = (self._picture() for _ in range(3))
        self.small_caption, self.bicubic_caption, self.result_caption = (widgets.Label() for _ in range(3))
        self.scrubber.layout.width = "260px"
        self.curve = widgets.Image(format="png", layout=widgets.Layout(align_self="flex-start", display="none"))

        self.example.observe(lambda change: self._set_image(self.images[change["new"] : change["new"] + 1]), "value")
        for chooser in (self.factor, self.reduced_by, self.assumed, self.noise_std):
            chooser.observe(self._show_input, "value")
        self.direction.observe(self._show_what_applies, "value")
        left = [self.example, self.upload_image, self.factor, self.reduced_by, self.assumed, self.noise_std]
        right = [self.direction, self.num_inference_steps, self.inner_steps, self.step_size]
        right += [self.fd_step, self.eta, self.seed]
        self.children = [
            widgets.HBox([widgets.VBox(left), widgets.VBox(right)]),
            widgets.HBox([self.run_button, self.stop_button, self.progress]),
            self.status,
            self.message,
            widgets.HBox(
                [
                    titled("given", self.small_picture, self.small_caption),
                    titled("bicubic", self.bicubic_picture, self.bicubic_caption),
                    titled("x̂_0", self.frame_picture, self.result_caption, self.scrubber, self.frame_caption),
                    titled("truth", self.truth_picture),
                ]
            ),
            self.curve,
            widgets.HBox([self.path, self.save_button]),
            self.call,
        ]

    @property
    def task(self) -> SuperResolution:
        """The constraint that the settings describe."""
        factor = self.factor.value
        low_res = downsample(self.image, factor, self.reduced_by.value)
        noise = torch.randn(low_res.shape, generator=torch.Generator().manual_seed(0))  # the same for every σ_y
        assumed = self.reduced_by.value if self.assumed.value == SAME else self.assumed.value
        sigma = self.noise_std.value
        return SuperResolution(low_res + sigma * noise.to(low_res), factor, assumed, noise_std=sigma)

    def _task_told(self) -> str:
        """The lines that make `task`, of the picture that is saved."""
        task, reduced_by = self.task, self.reduced_by.value
        assumed = reduced_by if self.assumed.value == SAME else self.assumed.value
        noise = f" + {task.noise_std} * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))"
        return (
            f"small = fcs_lab.downsample(fcs_lab.to_tensor(image), {task.factor}, {reduced_by!r})\n"
            f"task = fcs_lab.SuperResolution(small{noise if task.noise_std else ''}, {task.factor}, {assumed!r}, "
            f"noise_std={task.noise_std})\n"
        )

    def _set_image(self, image: Tensor) -> None:
        self.image = image
        self._show_input()

    def _show_what_applies(self, _: object = None) -> None:
        self.fd_step.layout.display = "" if self.direction.value == "newton" else "none"  # the others take no difference

    def _show_input(self, _: object = None) -> None:
        """Draw what is given, its bicubic enlargement and the truth."""
        task = self.task
        enlarged = upsample(task.y, task.factor)
        self.small_picture.value = png(to_pil(task.y)[0], self.zoom * task.factor)
        noise = f", σ_y = {task.noise_std:g}" if task.noise_std else ""
        self.small_caption.value = f"{task.y.shape[-2]}×{task.y.shape[-1]} pixels{noise}"
        self.bicubic_picture.value = png(to_pil(enlarged)[0], self.zoom)
        self.bicubic_caption.value = _judged(task, enlarged, self.image)
        self.truth_picture.value = png(to_pil(self.image)[0], self.zoom)

    def run(self) -> None:  # documented in the base class
        if self._running:
            return
        self._say("")
        settings = {
            "direction": self.direction.value,
            "num_inference_steps": self.num_inference_steps.value,
            "generator": torch.Generator().manual_seed(self.seed.value),
        } | self._algorithm_settings()
        self.result, task, truth = None, self.task, self.image
        self.result_caption.value = ""
        told = Told({"image": to_pil(truth)[0]}, self._task_told())
        self._start(lambda: self._work(task, truth, settings, told), settings["num_inference_steps"])

    def _work(self, task: SuperResolution, truth: Tensor, settings: dict, told: Told) -> None:
        """In the thread: sample, showing x̂_0 as it goes."""
        self.status.value = f"{settings['direction']} …"
        follow = partial(self._after_timestep, "")
        result = sample(self.model, task, callback_on_step_end=follow, progress=False, **settings)
        self.result = result
        self.result_caption.value = _judged(task, result.images.cpu(), truth)
        self.curve.value = plot_error({settings["direction"]: result}).png()
        self.curve.layout.display = ""
        direction = settings["direction"]
        self._offer(result, told, direction, {name: value for name, value in settings.items() if name != "direction"})
        self._ended({direction: result}, result.completed)


def _judged(task: SuperResolution, images: Tensor, truth: Tensor) -> str:
    return f"PSNR {psnr(images, truth).item():.1f} dB, A x − y: {data_consistency(task, images).item():.4f} rms"
