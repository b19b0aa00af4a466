"""What a family of models has to say about itself; everything else is shared."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers.image_features import BoundFeatures, as_returned
from visionzip_ext.integrations.transformers.processors.placeholders import PlaceholderChange
from visionzip_ext.integrations.transformers.towers.zip_tower import EncodedTiles, ZipTower
from visionzip_ext.integrations.transformers.weak_link import WeakLink
from visionzip_ext.tokens.budget import Budget
from visionzip_ext.tokens.zip_tiles import Tile, ZipDecision, ZippedTiles, zip_tiles

_ATTRIBUTE = "_visionzip"
_SELECT_STRATEGIES = ("default", "full")


@dataclass(frozen=True)
class Settings:
    """What `compress` was asked for."""

    budget: Budget
    layout: str = "released"
    early_exit: bool = True


class ModelAdapter(ABC):
    """Binds one model instance of a family to the shared mechanism.

    A family subclasses this. The constructor checks everything and changes nothing, so that a failed `compress` leaves
    no trace. The adapter lives in an attribute of the module it serves: a deep copy of the model takes its own along.

    Attributes:
        feature_methods: the seam's methods that the adapter stands in for; `get_image_features` is answered by
            `image_features`, and so on.
        tower_names: the seam's vision towers.
        tiled: whether large images are shown in tiles, so that a `layout` has a meaning.
        seam: the module whose feature methods both `forward` and `generate` call.
        settings: what was asked for.
        towers: the seam's vision towers, by name.
        processor: the one that was changed for this model, as long as somebody else has it.
        last_decision: of the latest forward in any thread; None before the first.
    """

    feature_methods: tuple[str, ...] = ("get_image_features",)
    tower_names: tuple[str, ...] = ("vision_tower",)
    tiled = False

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        """Check that `model` can be compressed so.

        Raises:
            TypeError: a vision tower that is not supported.
            ValueError: settings that do not go with the model; the message says the way out.
        """
        self.seam = self.seam_of(model)
        self.settings = settings
        if settings.layout != "released" and not self.tiled:
            raise ValueError(
                f'layout="{settings.layout}" is for models that show images in tiles; {type(model).__name__} does not'
            )
        config = self.seam.config
        if (strategy := getattr(config, "vision_feature_select_strategy", None)) is not None:
            check_strategy(strategy)
        layer = feature_layer_of(config)
        self.towers = {
            name: ZipTower(getattr(self.seam, name), layer, early_exit=settings.early_exit) for name in self.tower_names
        }
        self.processor = WeakLink()
        self.last_decision: ZipDecision | list[ZipDecision] | None = None
        self.check_budget()

    @property
    def tower(self) -> ZipTower:
        """The vision tower for images."""
        return self.towers[self.tower_names[0]]

    @property
    def budget(self) -> Budget:
        """What was asked for."""
        return self.settings.budget

    @staticmethod
    def seam_of(model: PreTrainedModel) -> PreTrainedModel:
        """The module of `model` that owns the feature methods: the inner model without a language modeling head."""
        return getattr(model, "model", model)

    @abstractmethod
    def image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the seam's `get_image_features`: same arguments, same type of result (see `as_returned`)."""

    @abstractmethod
    def placeholders(self, processor: ProcessorMixin) -> PlaceholderChange:
        """The change that makes `processor` write as many placeholders as this model makes visual tokens.

        Raises TypeError or ValueError for a processor that belongs to another model.
        """

    def check_budget(self) -> None:
        """Raise ValueError unless images have enough tokens for the budget."""
        self.budget.check_fits(self.tower.encoder_tokens, self.tower.name)

    def attach(self) -> None:
        """Put the adapter to work.

        Raises:
            ValueError: a tower is at work for somebody else; nothing has changed then.
        """
        with contextlib.ExitStack() as undo:
            for tower in self.towers.values():
                tower.attach()
                undo.callback(tower.detach)
            undo.pop_all()
        for method in self.feature_methods:
            setattr(self.seam, method, BoundFeatures(self, method))
        setattr(self.seam, _ATTRIBUTE, self)

    def detach(self) -> None:
        """Leave the model as it was before `attach`."""
        delattr(self.seam, _ATTRIBUTE)
        for method in self.feature_methods:
            delattr(self.seam, method)
        for tower in self.towers.values():
            tower.detach()

    @property
    def is_attached(self) -> bool:
        """Whether the adapter is at work."""
        return self.seam.__dict__.get(_ATTRIBUTE) is self

    @classmethod
    def attached_to(cls, model: PreTrainedModel) -> ModelAdapter | None:
        """The adapter that is at work in `model`, if it is compressed."""
        return cls.seam_of(model).__dict__.get(_ATTRIBUTE)

    def encode(
        self,
        tower: ZipTower,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> EncodedTiles:
        """Tiles (T, 3, height, width) through a tower, after the arguments of the call were checked."""
        tower.check_layer(feature_layer_of(self.seam.config) if vision_feature_layer is None else vision_feature_layer)
        if vision_feature_select_strategy is not None:
            check_strategy(vision_feature_select_strategy)
        return tower(pixel_values, through=self._in_place_of(tower), **kwargs)

    def zip(self, encoded: EncodedTiles, tiles: list[Tile]) -> ZippedTiles:
        """Zip encoded tiles and note the decision."""
        zipped = zip_tiles(encoded, tiles, self.budget.merge)
        self.last_decision = zipped.decision
        return zipped

    def zip_videos(self, tower: ZipTower, videos: Tensor, *layer: Any, **kwargs: Any) -> tuple[Tensor, EncodedTiles]:
        """Videos (B, frames, 3, height, width) -> (B, tokens of a video, channels), projected; frame after frame.

        Further arguments are those of `encode`.
        """
        encoded = self.encode(tower, videos.flatten(0, 1), *layer, **kwargs)
        number, frames = videos.shape[:2]
        budgets = self.budget.of_tiles(frames, tower.encoder_tokens)
        zipped = self.zip(encoded, [Tile(budget) for budget in budgets] * number)
        return self.project(zipped.rows.unflatten(0, (number, -1))), encoded

    def project(self, rows: Tensor) -> Tensor:
        """(..., channels of the tower) -> (..., channels of the language model)."""
        return self.seam.multi_modal_projector(rows)

    def _in_place_of(self, tower: ZipTower) -> nn.Module:
        """What the seam has where `tower` was found: the same module, unless somebody wrapped or replaced it."""
        return next(getattr(self.seam, name) for name, own in self.towers.items() if own is tower)

    def as_returned(self, features: Any, encoded: EncodedTiles, return_dict: bool | None) -> Any:
        """See `image_features.as_returned`."""
        wanted = self.seam.config.return_dict if return_dict is None else return_dict
        return as_returned(features, encoded.outputs, wanted)


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
