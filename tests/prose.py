"""Numbers in prose: which of them no output and no named file bears out.

What stands in `code` or $mathematics$ is a setting, an equation or a definition. Every other decimal number and percentage
is a measurement, and has to be in what was printed, or in a file of figures/output that the same text links, to within the
error stated beside it (0.165 ± 0.013) or else to within rounding.
"""

import re
from collections.abc import Iterable
from pathlib import Path

OUTPUT = Path(__file__).parents[1] / "figures" / "output"
NOT_MEASURED = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)"  # code, mathematics, the targets of links
    r"|arXiv \d+\.\d+|\(\d+\.\d+\)(?!\s*dB)|(?:Diffusion|SD|Apache|BY|Python|torch|diffusers)(?:-SA)? ?[≥]? ?\d+(?:\.\d+)+",
    re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])(\d+\.\d+(?:e[-−]?\d+)?|\d+(?= ?%))( ?%)?(?: ± (\d+(?:\.\d+)?))?(?![\w.]*\d)")
ANY = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)( ?%)?")


def unsupported(text: str, printed: Iterable[str] = ()) -> list[str]:
    """The measured numbers of a text that are in none of the printed texts, nor in a file that it links."""
    files = {OUTPUT / name for name in re.findall(r"figures/output/([\w.]+\.(?:md|json))", text)}
    sources = [*printed, *(file.read_text() for file in files if file.exists())]
    known = {_value(number, percent) for source in sources for number, percent in ANY.findall(source)}
    missing = []
    for match in NUMBER.finditer(NOT_MEASURED.sub(" ", text)):
        number, percent, error = match.groups()
        value, rounding = _value(number, percent), _value("1", percent) / 2 * 10.0 ** -_digits(number)
        within = max(rounding, _value(error, percent) if error else 0.0) * (1 + 1e-6)
        if not any(abs(one - value) <= within for one in known):
            missing.append(match[0])
    return missing


def _value(number: str, percent: str | None) -> float:
    return float(number.replace("−", "-")) / (100 if percent else 1)


def _digits(number: str) -> int:
    """How many digits a number shows after its point."""
    mantissa, _, exponent = number.replace("−", "-").partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)
