"""What LLaVA-like models have in common: select layers and a select strategy, a projector, videos by frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from visionzip_ext.integrations.transformers.adapter import ModelAdapter
from visionzip_ext.integrations.transformers.settings import POSITIONS
from visionzip_ext.integrations.transformers.towers.zip_tower import EncodedTiles, ZipTower
from visionzip_ext.tokens.budget import TileBudget
from visionzip_ext.tokens.full_places import FullPlaces
from visionzip_ext.tokens.tiles import Tile

_SELECT_STRATEGIES = ("default", "full")


class LlavaLikeAdapter(ModelAdapter):
    """Zips the output of `config.vision_feature_layer` between vision tower and `multi_modal_projector`.

    Attributes:
        tower_names: the base model's vision towers, that for images first.
        newlines_of_video: tokens that close a video.
    """

    positions = POSITIONS
    tower_names: tuple[str, ...] = ("vision_tower",)
    newlines_of_video = 0

    def make_towers(self) -> dict[str, ZipTower]:
        """See `ModelAdapter.make_towers`."""
        config = self.base_model.config
        if (strategy := getattr(config, "vision_feature_select_strategy", None)) is not None:
            check_strategy(strategy)
        layer, early_exit = feature_layer_of(config), self.settings.early_exit
        return {
            name: ZipTower(getattr(self.base_model, name), layer, early_exit=early_exit) for name in self.tower_names
        }

    @property
    def feature_methods(self) -> dict[str, Callable[..., Any]]:
        """See `ModelAdapter.feature_methods`."""
        return {"get_image_features": self.image_features}

    @abstractmethod
    def image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Answers in place of the base model's `get_image_features`; each family names its arguments."""

    def encode(
        self,
        tower: ZipTower,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> EncodedTiles:
        """`run_tower`, after the arguments of the call were checked against those that the tower was made for."""
        configured = feature_layer_of(self.base_model.config)
        tower.check_layer(configured if vision_feature_layer is None else vision_feature_layer)
        if vision_feature_select_strategy is not None:
            check_strategy(vision_feature_select_strategy)
        return self.run_tower(tower, pixel_values, **kwargs)

    def zip_images(self, encoded: EncodedTiles) -> Tensor:
        """The features of images of one tile -> (B, dominant + contextual, channels), projected."""
        images = len(encoded.features)
        (budget,) = self.budget.of_tiles(1, self.tile_tokens)
        zipped = self.zip(encoded, [Tile(budget)] * images)
        full = self.tower.encoder_tokens - self.left_out
        places = (zipped.places - self.left_out).clamp(min=0)
        self.note_places("image", FullPlaces(places, [budget.tokens] * images, [full] * images), encoded.outputs)
        return self.project(zipped.rows.unflatten(0, (images, budget.tokens)))

    def zip_videos(self, tower: ZipTower, videos: Tensor, *layer: Any, **kwargs: Any) -> tuple[Tensor, EncodedTiles]:
        """Videos (B, frames, 3, height, width) -> (B, tokens of a video, channels), projected; frame after frame.

        Further arguments are those of `encode`.
        """
        encoded = self.encode(tower, videos.flatten(0, 1), *layer, **kwargs)
        number, frames = videos.shape[:2]
        budgets = self.budget.of_tiles(frames, self.tile_tokens)
        zipped = self.zip(encoded, [Tile(budget) for budget in budgets] * number)
        self.note_places("video", self._of_videos(tower, zipped.places, budgets, number), encoded.outputs)
        return self.project(zipped.rows.unflatten(0, (number, -1))), encoded

    @property
    def left_out(self) -> int:
        """Tokens at the beginning of an image that the model does not show its language model: CLS, in most."""
        # ViP-LLaVA's config has no strategy; the model leaves CLS out
        return int(getattr(self.base_model.config, "vision_feature_select_strategy", "default") == "default")

    def places_in_frame(self, tower: ZipTower, tokens: Tensor) -> tuple[Tensor, int]:
        """The places that encoder tokens have in a frame without compression, and how many there are."""
        return tokens, tower.encoder_tokens

    def _of_videos(self, tower: ZipTower, tokens: Tensor, budgets: list[TileBudget], number: int) -> FullPlaces:
        """Of so many videos, whose frames have these budgets."""
        places, of_frame = self.places_in_frame(tower, tokens.view(number, -1))
        rows = torch.tensor([budget.tokens for budget in budgets], device=tokens.device)
        frame = torch.arange(len(budgets), device=tokens.device).repeat_interleave(rows)
        full = len(budgets) * of_frame
        newline = torch.full((number, self.newlines_of_video), full, device=tokens.device)
        places = torch.cat([places + frame * of_frame, newline], 1)
        return FullPlaces(places.flatten(), [places.shape[1]] * number, [full + self.newlines_of_video] * number)

    def project(self, rows: Tensor) -> Tensor:
        """(..., channels of the tower) -> (..., channels of the language model)."""
        return self.base_model.get_submodule("multi_modal_projector")(rows)


def feature_layer_of(config: Any) -> int | list[int]:
    """The config's `vision_feature_layer`, under either of its names."""
    for name in ("vision_feature_layer", "vision_feature_layers"):
        if (layer := getattr(config, name, None)) is not None:
            return layer
    raise ValueError(f"{type(config).__name__} has no vision_feature_layer")


def check_strategy(strategy: str) -> None:
    """Raise ValueError unless `strategy` is one that the LLaVA family knows.

    Both make dominant + contextual tokens of a tile: the budget counts CLS, as in the paper's tables 8 and 9, and the
    strategy only says what happens to CLS without it.
    """
    if strategy not in _SELECT_STRATEGIES:
        raise ValueError(f'vision_feature_select_strategy must be "default" or "full", got {strategy!r}')
