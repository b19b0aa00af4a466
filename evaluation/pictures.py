"""Photographs and pictograms, from the packages."""

from __future__ import annotations

from pathlib import Path

import skimage
from PIL import Image

from evaluation.packages import LOMIRI, MATE, NOTO, TWEMOJI, Package

_SHORT_SIDE = 480

_SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "grass.png", "brick.png")
_SKIMAGE_TOO = ("retina.jpg", "hubble_deep_field.jpg")

KINDS = {
    "animal": {
        "dog": "1f436",
        "cat": "1f431",
        "elephant": "1f418",
        "penguin": "1f427",
        "fish": "1f420",
        "frog": "1f438",
    },
    "food": {
        "apple": "1f34e",
        "banana": "1f34c",
        "pizza": "1f355",
        "hamburger": "1f354",
        "strawberry": "1f353",
        "carrot": "1f955",
    },
    "vehicle": {
        "car": "1f697",
        "bus": "1f68c",
        "bike": "1f6b2",
        "airplane": "2708-fe0f",
        "rocket": "1f680",
        "tractor": "1f69c",
    },
    "thing": {
        "umbrella": "2602-fe0f",
        "key": "1f511",
        "scissors": "2702-fe0f",
        "guitar": "1f3b8",
        "crown": "1f451",
        "bell": "1f514",
    },
}
"""Pictograms that scenes are made of, by kind and name: their code points."""
MARKS = {"star": "2b50", "heart": "2764-fe0f", "drop": "1f4a7", "leaf": "1f343", "moon": "1f319", "snow": "2744-fe0f"}
"""Pictograms that are pasted small and faint."""

KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
NAMES = sorted(KIND_OF)


def training_photographs() -> list[Image.Image]:
    """Of scikit-image and Debian's lomiri-wallpapers."""
    data = Path(skimage.__file__).parent / "data"
    wallpapers = sorted((LOMIRI.folder() / "usr/share/backgrounds").glob("*.jpg"))
    return [_small(data / name) for name in (*_SKIMAGE, *_SKIMAGE_TOO)] + [_small(path) for path in wallpapers]


def other_photographs() -> list[Image.Image]:
    """Of Debian's mate-backgrounds: none of them, nor of their photographers, is trained on."""
    return [_small(path) for path in sorted((MATE.folder() / "usr/share/backgrounds/mate/nature").glob("*.jpg"))]


def pictograms(package: Package = NOTO) -> dict[str, Image.Image]:
    """By name, RGBA; of one artist's set."""
    codes = {**MARKS, **{name: code for names in KINDS.values() for name, code in names.items()}}
    return {name: Image.open(package.folder() / f"{code}.png").convert("RGBA") for name, code in codes.items()}


def held_out_pictograms() -> dict[str, Image.Image]:
    """The same things as drawn by other artists."""
    return pictograms(TWEMOJI)


def _small(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    factor = _SHORT_SIDE / min(image.size)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
