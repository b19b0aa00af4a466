"""The images that the demo asks about."""

from __future__ import annotations

from collections.abc import Sequence

import skimage.data
import torch
from PIL import Image, UnidentifiedImageError

from visionzip_ext.demo.errors import DemoError


def photographs(files: Sequence[str]) -> list[Image.Image]:
    """The images in these files, in RGB; without any, a photograph of a cat that ships with scikit-image.

    Raises:
        DemoError: a file that is missing, holds no image, or an image that Pillow takes for an attack by its size.
    """
    if not files:
        return [Image.fromarray(skimage.data.chelsea())]
    return [_open(file) for file in files]


def cropped(images: Sequence[Image.Image], files: Sequence[str], pixel_values: torch.Tensor) -> list[str]:
    """A sentence for each image that the model saw a part of: its processor scales the shorter side and crops.

    Args:
        images: as `photographs` returned them.
        files: as `photographs` was given them.
        pixel_values: (B, 3, height, width): what the model saw.
    """
    height, width = pixel_values.shape[-2:]
    notes = []
    for name, image in zip(files or ["the photograph"], images, strict=True):
        # Of what is as wide as the model's input, so many parts are seen.
        wide, high = image.width * height, image.height * width
        seen = min(wide, high) / max(wide, high)
        if seen < 0.99:
            sides = "left and right" if wide > high else "top and bottom"
            notes.append(f"{name}: the model sees the middle {seen:.0%}; {sides} are cut off")
    return notes


def _open(file: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DemoError(f"--image {file}: no such file") from None
    except UnidentifiedImageError:
        raise DemoError(f"--image {file}: not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DemoError(f"--image {file}: more than {most / 1e6:.0f} million pixels; make it smaller") from None
    except OSError as error:
        raise DemoError(f"--image {file}: {error}") from None
