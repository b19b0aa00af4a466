"""LLaVA-NeXT and LLaVA-NeXT-Video: an image is a base tile and a grid of tiles, a video its frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from visionzip_ext.integrations.transformers.families.image_grids import ImageGrids
from visionzip_ext.integrations.transformers.families.llava_like import LlavaLikeAdapter
from visionzip_ext.integrations.transformers.image_features import RETURNS_OUTPUT_OBJECT
from visionzip_ext.integrations.transformers.processors.checks import (
    check_class,
    check_patches,
    check_pinpoints,
    check_size,
    check_token,
)
from visionzip_ext.integrations.transformers.processors.counted_placeholders import CountedPlaceholders, TokenCounts
from visionzip_ext.integrations.transformers.towers.zip_tower import EncodedTiles, ZipTower
from visionzip_ext.tokens.full_places import FullPlaces, pooled_places
from visionzip_ext.tokens.tiled_images import LAYOUTS, TiledImage, TiledImages
from visionzip_ext.tokens.tiles import Region


@dataclass(frozen=True)
class TiledCounts(TokenCounts):
    """Of tiled images and of videos by frames."""

    images: TiledImages
    grids: ImageGrids
    newlines_of_video: int = 0

    def of_image(self, height: int, width: int, *, alone: bool) -> int:
        """See `TokenCounts`."""
        return self.images.tokens(self.images.image(*self.grids.of_image(height, width)))

    def of_video(self, frames: int) -> int:
        """See `TokenCounts`."""
        return sum(frame.tokens for frame in self.images.tile_budgets(frames)) + self.newlines_of_video


class LlavaNextAdapter(LlavaLikeAdapter):
    """`LlavaNextForConditionalGeneration` and `LlavaNextModel`. Tiles are zipped between tower and projector."""

    layouts = LAYOUTS
    processor_class = "LlavaNextProcessor"
    modalities: tuple[str, ...] = ("image",)

    def check_positions(self, model: Any) -> None:
        """See `ModelAdapter.check_positions`."""
        super().check_positions(model)
        if self.settings.positions == "kept" and self.settings.layout != "native":
            raise ValueError(
                'positions="kept" counts tokens in the model\'s own order, which has no place for padding; '
                f'layout="{self.settings.layout}" shows padding, in an order of its own: give layout="native" as well'
            )

    def check_budget(self) -> None:
        """See `ModelAdapter.check_budget`; every number of tiles that an image can have must be served."""
        fewest, most = self.grids.tile_counts
        self.budget.check_fits(self.tile_tokens, self.tower_described, fewest_tiles=fewest)
        self.images.tile_budgets(most)

    @property
    def images(self) -> TiledImages:
        """How this model's images become tiles, and tiles a sequence."""
        return TiledImages(self.budget, self.tower.patches, self.tower.has_cls, self.settings.layout)

    @property
    def grids(self) -> ImageGrids:
        """The grids of tiles that this model cuts images into."""
        config = self.base_model.config
        pinpoints = tuple((height, width) for height, width in config.image_grid_pinpoints)
        return ImageGrids(pinpoints, config.vision_config.image_size, self.tower.patches)

    def tiled_image(self, size: Tensor) -> TiledImage:
        """The tiles of an image of so many pixels: (height, width)."""
        height, width = map(int, size)
        return self.images.image(*self.grids.of_image(height, width))

    def image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Tiles (images, most tiles, 3, height, width) or (tiles, 3, ...) -> a list of (tokens, channels)."""
        images = [self.tiled_image(size) for size in image_sizes]
        layer = vision_feature_layer, vision_feature_select_strategy
        return self.tiled_features(pixel_values, images, *layer, return_dict=return_dict, **kwargs)

    def placeholders(self, processor: ProcessorMixin) -> CountedPlaceholders:
        """See `ModelAdapter.placeholders`."""
        config = self.base_model.config
        check_class(processor, self.processor_class)
        check_patches(processor, config.vision_config)
        check_size(processor, config.vision_config)
        check_pinpoints(processor, config)
        for modality in self.modalities:
            check_token(processor, config, modality)
        return CountedPlaceholders(TiledCounts(self.images, self.grids))

    def tiled_features(
        self, pixel_values: Tensor, images: list[TiledImage], *layer: Any, return_dict: bool | None, **kwargs: Any
    ) -> Any:
        """What `image_features` returns, for images whose tiles are known. Further arguments are those of `encode`."""
        tiles = tiles_of(pixel_values, [len(image.tiles) for image in images])
        encoded = self.encode(self.tower, tiles, *layer, **kwargs)
        return self.as_returned(self._arranged(encoded, images), encoded, return_dict)

    def _arranged(self, encoded: EncodedTiles, images: list[TiledImage]) -> list[Tensor]:
        zipped = self.zip(encoded, [tile for image in images for tile in image.tiles])
        counts = [image.rows for image in images]
        rows, places = self.project(zipped.rows).split(counts), zipped.places.split(counts)
        if self.sequence is not None:
            self.note_places("image", self._of_images(images, places), encoded.outputs)
        newline: Any = self.base_model.image_newline
        return [self.images.arrange(*of_image, newline) for of_image in zip(images, rows, places, strict=True)]

    def shown_grid(self, unpadded: Region) -> tuple[int, int]:
        """Rows and columns of tokens that the model shows of a grid of tiles without compression."""
        return unpadded.bottom - unpadded.top, unpadded.right - unpadded.left

    def _of_images(self, images: list[TiledImage], places: Sequence[Tensor]) -> FullPlaces:
        """Of images in the native layout."""
        found = [
            self.images.full_places(image, of_image, self.shown_grid(image.unpadded))
            for image, of_image in zip(images, places, strict=True)
        ]
        every = torch.cat([of_image for of_image, _ in found])
        return FullPlaces(every, [len(of_image) for of_image, _ in found], [full for _, full in found])


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """`LlavaNextVideoForConditionalGeneration`: frames are zipped before the model's spatial pooling, in its place."""

    processor_class = "LlavaNextVideoProcessor"
    modalities: tuple[str, ...] = ("image", "video")

    @property
    def feature_methods(self) -> dict[str, Callable[..., Any]]:
        """See `ModelAdapter.feature_methods`."""
        return {**super().feature_methods, "get_video_features": self.video_features}

    def video_features(
        self,
        pixel_values_videos: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        *,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Videos (B, frames, 3, height, width) -> (B, tokens of a video, channels), projected."""
        videos: Any = pixel_values if pixel_values_videos is None else pixel_values_videos
        features, encoded = self.zip_videos(
            self.tower, videos, vision_feature_layer, vision_feature_select_strategy, **kwargs
        )
        return self.as_returned(self.finished_videos(features), encoded, return_dict)

    @property
    def pooled_side(self) -> int:
        """Tokens along a side of a frame without compression."""
        return self.tower.patches // self.base_model.config.spatial_pool_stride

    def places_in_frame(self, tower: ZipTower, tokens: Tensor) -> tuple[Tensor, int]:
        """See `LlavaLikeAdapter`: a patch stands where the token is that it would be pooled into."""
        patches = (tokens - int(tower.has_cls)).clamp(min=0)
        return pooled_places(patches, tower.patches, self.pooled_side), self.pooled_side**2

    def finished_videos(self, features: Tensor) -> Any:
        """Zipped videos (B, tokens of a video, channels), projected, as this version's model expects them."""
        # transformers 4 flattens each video's (frames, tokens) itself.
        return features if RETURNS_OUTPUT_OBJECT else tuple(features.unsqueeze(1))


def tiles_of(pixel_values: Tensor, counts: list[int]) -> Tensor:
    """Each image's tiles (all tiles, 3, height, width), without those that fill up a batch.

    Raises:
        ValueError: pixel values of another rank, or of fewer tiles than the image sizes ask for.
    """
    if pixel_values.dim() not in (4, 5):
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected (images, tiles, 3, height, width) or "
            "(tiles, 3, height, width)"
        )
    if pixel_values.dim() == 5:
        if len(pixel_values) != len(counts) or pixel_values.shape[1] < max(counts, default=0):
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, but image_sizes are of {len(counts)} images of "
                f"up to {max(counts, default=0)} tiles"
            )
        return torch.cat([tiles[:count] for tiles, count in zip(pixel_values, counts, strict=True)])
    if len(pixel_values) != sum(counts):
        raise ValueError(f"pixel_values has {len(pixel_values)} tiles, but image_sizes ask for {sum(counts)}")
    return pixel_values
