"""A menu of what `constrained` runs: the families, what is known of each, and the lines to run one."""

from __future__ import annotations

import html

import diffusers
import ipywidgets as widgets

from fcs_lab.families import FAMILIES, Family, takes_a_callback, takes_an_interrupt

__all__ = ["FamilyMenu"]


class FamilyMenu(widgets.VBox):
    """Choose a family; read what is known of it, and copy the lines that run it.

    Attributes:
        family: The menu.
        code: The lines, as text.

    Example:
        >>> menu = fcs_lab.widgets.FamilyMenu()
        >>> menu.family.value.name in [family.name for family in fcs_lab.families.FAMILIES]
        True
    """

    def __init__(self) -> None:
        super().__init__()
        options = {family.name: family for family in FAMILIES}
        self.family = widgets.Dropdown(options=options, description="family", layout=widgets.Layout(width="420px"))
        self.shown = widgets.HTML()
        self.family.observe(lambda _: self._show(), "value")
        self.children = [self.family, self.shown]
        self._show()

    def _show(self) -> None:
        family: Family = self.family.value
        kind = getattr(diffusers, family.pipelines[0])
        facts = [
            "one call of the network for a guided estimate"
            if family.calls == 1
            else f"{family.calls} calls, where it is guided",
            "a callback after each evaluation" if takes_a_callback(kind) else "takes no callback_on_step_end",
            "pipe._interrupt ends a run" if takes_an_interrupt(kind) else "looks at no _interrupt: stop it with ■",
            *([family.note] if family.note else []),
        ]
        load = f"pipe = fcs_lab.zoo.load_pipeline({family.example!r}, dtype=torch.bfloat16).to('cuda')"
        size = ", use_resolution_binning=False" if "binning" in family.note else ""
        size += ", image=edges" if "ControlNet" in family.name else ""
        self.code = (
            f"{load if family.example else f'# pipe: a {kind.__name__} of yours'}\n"
            "task = fcs_lab.Inpainting(photograph, mask)  # PIL images of the pipeline's size\n"
            "with fcs_lab.constrained(pipe, task) as run:\n"
            f"    pipe('a red house', num_inference_steps=20{size})\n"
            "run.result.to_pil()[0]"
        )
        lines = "".join(f"<li>{html.escape(fact).replace('`', '')}</li>" for fact in facts)
        self.shown.value = f"<ul>{lines}</ul><pre>{html.escape(self.code)}</pre>"
