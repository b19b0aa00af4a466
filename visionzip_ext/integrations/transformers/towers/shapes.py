"""Images of different shapes that go through a tower together, padded (NaFlex), taken apart again."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from visionzip_ext.integrations.transformers.towers.zip_tower import EncodedTiles


def by_shape(encoded: EncodedTiles, spatial_shapes: Tensor) -> list[EncodedTiles]:
    """Without padding: all images together if their shapes are the same, otherwise one by one.

    Args:
        encoded: B images, padded to the same number of patches; of a tower without CLS.
        spatial_shapes: (B, 2) int64: rows and columns of each image's patches, which come first.
    """
    shapes = [(rows, columns) for rows, columns in spatial_shapes.tolist()]
    if len(set(shapes)) == 1:
        return [_of_shape(encoded, slice(None), shapes[0])]
    return [_of_shape(encoded, slice(image, image + 1), shape) for image, shape in enumerate(shapes)]


def _of_shape(encoded: EncodedTiles, images: slice, shape: tuple[int, int]) -> EncodedTiles:
    patches = slice(shape[0] * shape[1])
    queries, keys = (x[images, :, patches] for x in (encoded.queries, encoded.keys))
    features = encoded.features[images, patches]
    return dataclasses.replace(encoded, features=features, queries=queries, keys=keys, grid=shape)
