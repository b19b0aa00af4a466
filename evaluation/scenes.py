"""Scenes: pictograms on a piece of a photograph, and what is true of them.

Pictograms attract attention, so they alone would flatter a selection by attention. Therefore a scene also has small,
faint marks, and one side of its background may be dark: what attention has no reason to keep.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageEnhance

from evaluation.pictures import (
    KIND_OF,
    MARKS,
    NAMES,
    held_out_pictograms,
    other_photographs,
    pictograms,
    training_photographs,
)

SIZE = 168
"""Height and width of a scene in pixels: 12 x 12 patches of the encoder."""
PLACES = tuple(f"{row}-{column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
"""A scene is divided into 3 x 3 places; each has one thing, one mark, or nothing."""
SIDES = {"left": (0, 3, 6), "right": (2, 5, 8), "top": (0, 1, 2), "bottom": (6, 7, 8)}
"""The places of each side."""

_CELL = SIZE / 3


@dataclass(frozen=True)
class Scene:
    """An image and the truth about it.

    Attributes:
        image: RGB, `SIZE` x `SIZE`.
        photograph: the number of the photograph behind it, within its split.
        things: names by place.
        marks: names by place.
        boxes: (left, top, side) in pixels of what is at a place.
        dark: the side whose background is dark; "even" if none is.
    """

    image: Image.Image
    photograph: int
    things: dict[int, str]
    marks: dict[int, str]
    boxes: dict[int, tuple[int, int, int]]
    dark: str


@dataclass(frozen=True)
class Layout:
    """How many things a scene has, and how they lie.

    Attributes:
        things: fewest and most.
        sides: of things in pixels, least and greatest.
        marks: most of them.
        touching: things lie in four neighbouring places, pushed together.
    """

    things: tuple[int, int] = (2, 5)
    sides: tuple[int, int] = (30, 46)
    marks: int = 2
    touching: bool = False


LAYOUTS = {
    "single": Layout(things=(1, 1), sides=(54, 54), marks=0),
    "crowd": Layout(things=(6, 8), sides=(22, 28), marks=0),
    "touching": Layout(things=(4, 4), sides=(38, 46), marks=0, touching=True),
}
"""Scenes that are judged beside the usual ones: one large thing, many small ones, and some that lie together."""
_MOST_OF_A_KIND = 5  # numbers that questions have words for


@dataclass(frozen=True)
class Split:
    """A source of scenes: which photographs, whose pictograms, and a seed that no other split has."""

    photographs: Sequence[Image.Image]
    pictograms: dict[str, Image.Image]
    seed: str
    layout: Layout = Layout()

    def scenes(self, count: int) -> Iterator[Scene]:
        """The first `count` scenes: scene i is the same whatever the count."""
        for number in range(count):
            yield _draw(random.Random(f"{self.seed}/{number}"), self.photographs, self.pictograms, self.layout)


def split(name: str, seed: int = 0) -> Split:
    """By name: train, validation (other photographs), held-out (other pictograms, too), or one of `LAYOUTS` (as
    validation). Other seeds: fresh scenes.

    Raises:
        ValueError: no such split.
        MissingPackageError: its pictures cannot be fetched.
    """
    if name == "train":
        return Split(training_photographs(), pictograms(), f"train/{seed}")
    if name == "validation":
        return Split(other_photographs(), pictograms(), f"validation/{seed}")
    if name == "held-out":
        return Split(other_photographs(), held_out_pictograms(), f"held-out/{seed}")
    if name in LAYOUTS:
        return Split(other_photographs(), pictograms(), f"{name}/{seed}", LAYOUTS[name])
    raise ValueError(f'split is "{name}"; expected train, validation, held-out, {", ".join(LAYOUTS)}')


def _draw(rng: random.Random, photographs: Sequence[Image.Image], art: dict[str, Image.Image], layout: Layout) -> Scene:
    photograph = rng.randrange(len(photographs))
    dark = rng.choice([*SIDES, "even"])
    image = _darken(_background(rng, photographs[photograph]), dark)
    middle = rng.choice([(1, 1), (1, 2), (2, 1), (2, 2)]) if layout.touching else None
    places = rng.sample(range(9) if middle is None else _around(middle), 9 if middle is None else 4)
    things = dict(zip(places, _names(rng, rng.randint(*layout.things)), strict=False))
    marks = dict(zip(places[len(things) :], rng.sample(sorted(MARKS), rng.randint(0, layout.marks)), strict=False))
    boxes = {
        place: _paste(rng, image, art[name], place, rng.randint(*layout.sides), 1.0, middle)
        for place, name in things.items()
    }
    boxes |= {place: _paste(rng, image, art[name], place, rng.randint(18, 22), 0.6) for place, name in marks.items()}
    return Scene(image, photograph, things, marks, boxes, dark)


def _around(middle: tuple[int, int]) -> list[int]:
    """The four places that meet below and to the right of so many rows and columns."""
    row, column = middle
    return [3 * r + c for r in (row - 1, row) for c in (column - 1, column)]


def _names(rng: random.Random, count: int) -> list[str]:
    while True:
        names = rng.sample(NAMES, count)
        if max(Counter(KIND_OF[name] for name in names).values()) <= _MOST_OF_A_KIND:
            return names


def _background(rng: random.Random, photograph: Image.Image) -> Image.Image:
    side = rng.randint(SIZE, min(photograph.size))
    x, y = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    image = photograph.crop((x, y, x + side, y + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))


def _darken(image: Image.Image, side: str) -> Image.Image:
    """A third of the image at three tenths of its brightness."""
    third = round(_CELL)
    boxes = {
        "left": (0, 0, third, SIZE),
        "right": (SIZE - third, 0, SIZE, SIZE),
        "top": (0, 0, SIZE, third),
        "bottom": (0, SIZE - third, SIZE, SIZE),
    }
    if side in boxes:
        image.paste(ImageEnhance.Brightness(image.crop(boxes[side])).enhance(0.3), boxes[side])
    return image


def _paste(
    rng: random.Random,
    image: Image.Image,
    picture: Image.Image,
    place: int,
    side: int,
    opacity: float,
    middle: tuple[int, int] | None = None,
) -> tuple[int, int, int]:
    """Where it was pasted: somewhere in its place, or as near to `middle` as it can be there."""
    row, column = divmod(place, 3)
    if middle is None:
        x = round(column * _CELL + rng.uniform(1, _CELL - side - 1))
        y = round(row * _CELL + rng.uniform(1, _CELL - side - 1))
    else:
        x, y = (round(m * _CELL) - (side if at < m else 0) for at, m in ((column, middle[1]), (row, middle[0])))
    turned = picture.rotate(rng.uniform(-20, 20), resample=Image.Resampling.BICUBIC)
    turned = turned.resize((side, side), Image.Resampling.LANCZOS)
    image.paste(turned, (x, y), turned.getchannel("A").point(lambda alpha: round(alpha * opacity)))
    return x, y, side
