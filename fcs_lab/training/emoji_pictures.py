"""The material of `emoji`: six sets of drawings of the same concepts, from npm packages, drawn at 64×64 with transparency.

A *concept* is what is drawn ("red apple"), a *style* is who drew it ("noto"). The sets name some concepts differently; their
own lists of aliases bring them together. Variants that differ in the tone of skin alone are left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ["HELD_OUT", "SIZE", "STYLES", "Package", "Pictures", "bundle", "held_out_concepts", "read_pictures"]

SIZE = 64
"""Width and height of a picture in pixels."""

HELD_OUT = 126
"""How many concepts no model is trained on (5 % of the 2,528 names that the sets use)."""

SETTINGS = 26
"""How many of them are for choosing settings; the others are for what is reported."""


@dataclass(frozen=True)
class Package:
    """One set of drawings: an npm package of the scope @iconify-json, at a version, with the SHA-256 of its archive."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        return f"iconify-json-{self.name}-{self.version}.tgz"


STYLES = {
    "noto": Package("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "blob": Package("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "fluent": Package("fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "flat": Package("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "twemoji": Package("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "emojione": Package("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
}
"""The style's word in a prompt -> the package that it is. Licences and authors are in NOTICE."""

# "-medium-dark-skin-tone", and in some sets "-tone3", anywhere in a name; "-medium-dark" at the end of Fluent's.
TONES = r"(?:(?:medium-)?(?:light|dark)|medium)"
SKIN_TONE = re.compile(rf"-{TONES}-skin-tone|-tone[1-5](?=-|$)")
TRAILING_TONE = re.compile(rf"(.+?)(?:-{TONES})+")


@dataclass(frozen=True)
class Pictures:
    """N drawings."""

    rgba: Tensor
    """(N, 4, 64, 64), uint8: red, green, blue, not multiplied by alpha, and alpha."""
    concepts: list[str]
    """What each shows, in words: "red apple"."""
    styles: list[str]
    """Who drew it, a key of `STYLES`."""

    def __len__(self) -> int:
        return len(self.rgba)

    def select(self, indices: list[int]) -> Pictures:
        """Those at `indices`."""
        return Pictures(self.rgba[indices], [self.concepts[i] for i in indices], [self.styles[i] for i in indices])

    def without(self, concepts: set[str]) -> Pictures:
        """All but those of the named concepts."""
        return self.select([i for i, concept in enumerate(self.concepts) if concept not in concepts])


def read_pictures(folder: str | Path | None, cache: str | Path, *, progress: bool = True) -> Pictures:
    """All drawings, in the order of `STYLES` and, within a style, of the concepts' names.

    Args:
        folder: Where the packages' archives (`npm pack @iconify-json/noto@1.2.9`, …) lie. None: they are fetched with npm.
        cache: Folder that keeps what was drawn, `pictures.safetensors` (160 MB), and the archives that were fetched.
        progress: Show a progress bar.

    Raises:
        OSError: An archive is missing, or npm is, or it cannot fetch one.
        ValueError: An archive is not the pinned one.
        ImportError: The drawings have to be made and the extra "training" is not installed.
    """
    cache = Path(cache)
    drawn, names = cache / "pictures.safetensors", cache / "pictures.json"
    if not (drawn.exists() and names.exists()):
        pictures = _draw({style: _open(package, folder, cache) for style, package in STYLES.items()}, progress)
        cache.mkdir(parents=True, exist_ok=True)
        names.write_text(json.dumps({"concepts": pictures.concepts, "styles": pictures.styles}))
        partial = cache / "pictures.safetensors.part"
        save_file({"rgba": pictures.rgba}, partial)
        partial.replace(drawn)
    return Pictures(load_file(drawn)["rgba"], **json.loads(names.read_text()))


def held_out_concepts(pictures: Pictures, count: int = HELD_OUT, seed: int = 0) -> list[str]:
    """The concepts that no model is trained on, of those that every style draws, in a random order of their own."""
    drawn_by = defaultdict(set)
    for concept, style in zip(pictures.concepts, pictures.styles, strict=True):
        drawn_by[concept].add(style)
    everywhere = sorted(concept for concept, styles in drawn_by.items() if len(styles) == len(STYLES))
    return random.Random(seed).sample(everywhere, count)


def bundle(pictures: Pictures, out: str | Path) -> None:
    """Write the pictures that `fcs_lab.load_emoji` reads: of 26 held-out concepts for settings, of the other 100 for tests.

    Each split is a sheet, a lossless WebP of 16 pictures in a row, and its names in `names.json`. The test pictures come
    in rounds: one of each concept, in a random style, then another of each, until there are 256.
    """
    concepts, out, order = held_out_concepts(pictures), Path(out), random.Random(1)
    index = {key: i for i, key in enumerate(zip(pictures.concepts, pictures.styles, strict=True))}
    out.mkdir(parents=True, exist_ok=True)
    names = {}
    for split, chosen, count in (("settings", concepts[:SETTINGS], None), ("test", concepts[SETTINGS:], 256)):
        styles = {concept: order.sample(list(STYLES), len(STYLES)) for concept in chosen}
        rounds = [order.sample(chosen, len(chosen)) for _ in STYLES]
        keys = [(concept, styles[concept][r]) for r, round_ in enumerate(rounds) for concept in round_][:count]
        names[split] = [", ".join(key) for key in keys]
        rgba = pictures.rgba[[index[key] for key in keys]]
        rgba = torch.cat([rgba, rgba.new_zeros(-len(rgba) % 16, *rgba.shape[1:])])
        sheet = rgba.unflatten(0, (-1, 16)).permute(0, 3, 1, 4, 2).reshape(-1, 16 * SIZE, 4)
        Image.fromarray(sheet.numpy()).save(out / f"{split}.webp", lossless=True, exact=True, method=6)
    (out / "names.json").write_text(json.dumps(names, indent=1) + "\n")


def _open(package: Package, folder: str | Path | None, cache: Path) -> dict:
    """The package's set of icons, once its archive is known to be the pinned one."""
    path = Path(folder if folder is not None else cache) / package.archive
    if not path.exists():
        if folder is not None:
            raise FileNotFoundError(f"there is no {package.archive} in {folder}; without a folder, npm fetches it")
        _fetch(package, cache)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{path} is damaged or another version (SHA-256 {found[:12]}, expected {package.sha256[:12]})")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return json.load(archive.extractfile("package/icons.json"))


def _fetch(package: Package, cache: Path) -> None:
    wanted = f"@iconify-json/{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise OSError(f"npm fetches {wanted} and is not installed: install Node.js, or give a folder with {package.archive}")
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [npm, "pack", "--silent", "--ignore-scripts", wanted], cwd=cache, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"npm could not fetch {wanted}: {done.stderr.strip() or done.stdout.strip()}")


def _draw(sets: dict[str, dict], progress: bool) -> Pictures:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(
            f"drawing needs resvg-py, in the extra \"training\": pip install 'fcs-lab[training]' ({error})"
        ) from error
    concept_of = _concepts(sets)
    rgba, concepts, styles = [], [], []
    with tqdm(total=len(concept_of), unit="picture", desc="drawing", disable=not progress) as bar:
        for style, icons in sets.items():
            named = {concept_of[style, name]: name for s, name in concept_of if s == style}  # one drawing a concept
            for concept, name in sorted(named.items()):
                icon = icons["icons"][name]
                width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
                svg = (
                    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
                )
                drawn = Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))))
                square = ImageOps.pad(drawn.convert("RGBA"), (SIZE, SIZE))  # few are not square
                rgba.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))
                concepts.append(concept)
                styles.append(style)
                bar.update()
    return Pictures(torch.stack(rgba), concepts, styles)


def _concepts(sets: dict[str, dict]) -> dict[tuple[str, str], str]:
    """(style, name of an icon) -> its concept, in words; without the variants in the tone of skin."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.get(name, name) != name:
            name = parents[name]
        return name

    plain = {}
    for style, icons in sets.items():
        names = set(icons["icons"])
        for name in sorted(names):
            tone = TRAILING_TONE.fullmatch(name)
            if not SKIN_TONE.search(name) and not (tone and tone[1] in names):
                plain[style, name] = _short(name)
        for alias, entry in sorted(icons.get("aliases", {}).items()):
            mirrored = entry.keys() - {"parent"}
            if not mirrored and (style, entry["parent"]) in plain:
                parents[root(_short(alias))] = root(_short(entry["parent"]))
    # Of the names that mean the same, the one that most sets use.
    users = Counter(plain.values())
    groups = defaultdict(list)
    for name in sorted(users):
        groups[root(name)].append(name)
    best = {name: max(group, key=lambda n: (users[n], -len(n), n)) for group in groups.values() for name in group}
    return {key: best[name].replace("-", " ") for key, name in plain.items()}


def _short(name: str) -> str:
    """ "flag-for-flag-france" and "flag-for-france", as some sets have it, are "flag-france" in others."""
    return re.sub(r"^flag-for-(flag-)?", "flag-", name)
