"""The images that the demo asks about."""

from __future__ import annotations

from collections.abc import Sequence

import skimage.data
from PIL import Image, UnidentifiedImageError

from visionzip_ext.demo.errors import DemoError


def photographs(files: Sequence[str]) -> list[Image.Image]:
    """The images in these files, in RGB; without any, a photograph of a cat that ships with scikit-image.

    Raises:
        DemoError: a file that is missing or holds no image.
    """
    if not files:
        return [Image.fromarray(skimage.data.chelsea())]
    return [_open(file) for file in files]


def _open(file: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DemoError(f"--image {file}: no such file") from None
    except UnidentifiedImageError:
        raise DemoError(f"--image {file}: not an image that Pillow can read") from None
    except OSError as error:
        raise DemoError(f"--image {file}: {error}") from None
