"""What a family of models has to say about itself; everything else is shared."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers.image_features import FeatureMethod, as_returned
from visionzip_ext.integrations.transformers.processors.placeholders import PlaceholderChange
from visionzip_ext.integrations.transformers.sequence_positions import SequencePositions
from visionzip_ext.integrations.transformers.settings import Settings
from visionzip_ext.integrations.transformers.towers.zip_tower import EncodedTiles, ZipTower
from visionzip_ext.integrations.transformers.weak_link import OwnerLink, WeakLink
from visionzip_ext.tokens.budget import Budget, Share
from visionzip_ext.tokens.decision import ZipDecision
from visionzip_ext.tokens.full_places import FullPlaces
from visionzip_ext.tokens.tiles import Tile
from visionzip_ext.tokens.zip_tiles import ZippedTiles, zip_tiles

_ATTRIBUTE = "_visionzip"


class ModelAdapter(ABC):
    """Binds one model instance of a family to the shared mechanism.

    A family subclasses this. The constructor checks everything and changes nothing, so that a failed `compress` leaves
    no trace. The adapter lives in an attribute of the module it serves: a deep copy of the model takes its own along.

    Attributes:
        layouts: the values of `compress`'s `layout` that have a meaning for the family.
        positions: the values of `compress`'s `positions` that have a meaning for the family, its default first.
        projectors: paths in the base model of what carries visual tokens over to the language model.
        language_model: path of that, without its head.
        settings: what was asked for.
        towers: the base model's vision towers, by its attribute; the first one is for images.
        processor: the one that was changed for this model, as long as somebody else has it.
        sequence: keeps positions, where that was asked for and they are counted in one dimension.
        last_decision: of the latest forward in any thread; None before the first.
    """

    layouts: tuple[str, ...] = ("released",)
    positions: tuple[str, ...] = ("renumbered",)
    projectors: tuple[str, ...] = ("multi_modal_projector",)
    language_model = "language_model"

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        """Check that `model` can be compressed so.

        Raises:
            TypeError: a vision tower that is not supported, or of float64.
            ValueError: settings that do not go with the model; the message says the way out.
        """
        self._base_model = OwnerLink(self.base_model_of(model))
        self.settings = settings
        if settings.layout not in self.layouts:
            raise ValueError(
                f'layout="{settings.layout}" is for models that put the tokens of tiles in one order, such as '
                f"LLaVA-NeXT; {type(model).__name__} does not"
            )
        self.check_positions(model)
        self.sequence = self.make_sequence(model)
        self.towers = self.make_towers()
        self.processor = WeakLink()
        self.last_decision: ZipDecision | list[ZipDecision] | None = None
        self.check_cls()
        self.check_budget()

    @staticmethod
    def base_model_of(model: nn.Module) -> PreTrainedModel:
        """The module of `model` that owns the feature methods: the inner model without a language modeling head."""
        base_model: Any = getattr(model, "model", model)
        return base_model

    @property
    def base_model(self) -> PreTrainedModel:
        """The module whose feature methods both `forward` and `generate` call; it owns the adapter.

        Raises:
            RuntimeError: it is deleted, but somebody still has one of its feature methods.
        """
        base_model = self._base_model()
        if base_model is None:
            raise RuntimeError("the compressed model that this method belongs to is deleted; keep the model")
        return base_model

    @property
    def tower(self) -> ZipTower:
        """The vision tower for images."""
        return next(iter(self.towers.values()))

    @property
    def has_cls(self) -> bool:
        """Whether CLS is one of the tokens that are zipped."""
        return self.tower.has_cls

    @property
    def tile_tokens(self) -> int:
        """What can be left of a tile: all its tokens, CLS among them if it takes a row."""
        return self.tower.encoder_tokens - (self.has_cls and not self.settings.budget.keep_cls)

    @property
    def tower_described(self) -> str:
        """The tower that makes `tile_tokens`, for messages."""
        return self.tower.name + (" without CLS" if self.has_cls and not self.settings.budget.keep_cls else "")

    @property
    def budget(self) -> Budget:
        """What was asked for, of a family whose tiles all have the same number of tokens; a share is one of each."""
        asked = self.settings.budget
        return asked.as_budget(self.tile_tokens) if isinstance(asked, Share) else asked

    def check_positions(self, model: PreTrainedModel) -> None:
        """Raise ValueError unless the settings' `positions` have a meaning for the family."""
        if self.settings.positions not in self.positions:
            raise ValueError(
                f'positions="{self.settings.positions}" has no meaning for {type(model).__name__}; it takes '
                f'"{self.positions[0]}", its default'
            )

    def make_sequence(self, model: PreTrainedModel) -> SequencePositions | None:
        """`sequence`, of which nothing is at work yet.

        Raises:
            ValueError: as `SequencePositions`.
        """
        if self.settings.positions != "kept":
            return None
        return SequencePositions(model, self.base_model, self.language_model)

    @abstractmethod
    def make_towers(self) -> dict[str, ZipTower]:
        """`towers`, of which nothing is changed yet.

        Raises TypeError or ValueError for a base model whose config or towers are not supported.
        """

    @property
    @abstractmethod
    def feature_methods(self) -> dict[str, Callable[..., Any]]:
        """By the base model's method, what answers in its place: same arguments, same type of result.

        For the result see `as_returned`.
        """

    @abstractmethod
    def placeholders(self, processor: ProcessorMixin) -> PlaceholderChange:
        """The change that makes `processor` write as many placeholders as this model makes visual tokens.

        Raises TypeError or ValueError for a processor that belongs to another model.
        """

    def check_cls(self) -> None:
        """Raise ValueError for `keep_cls=False` where there is no CLS that could take a row."""
        if not self.settings.budget.keep_cls and not self.has_cls:
            raise ValueError(
                f"keep_cls=False is for models whose vision tower has CLS among the tokens that are zipped; "
                f"{type(self.base_model).__name__} with its {self.tower.name} has none: leave keep_cls out"
            )

    def check_budget(self) -> None:
        """Raise ValueError unless images have enough tokens for the budget."""
        self.budget.check_fits(self.tile_tokens, self.tower_described)

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
        for name, answer in self.feature_methods.items():
            setattr(self.base_model, name, FeatureMethod(answer, type(self.base_model), name))
        if self.sequence is not None:
            self.sequence.attach(self.base_model)
        setattr(self.base_model, _ATTRIBUTE, self)

    def detach(self) -> None:
        """Leave the model as it was before `attach`."""
        delattr(self.base_model, _ATTRIBUTE)
        for name in self.feature_methods:
            delattr(self.base_model, name)
        if self.sequence is not None:
            self.sequence.detach()
        for tower in self.towers.values():
            tower.detach()

    @property
    def is_attached(self) -> bool:
        """Whether the adapter is at work."""
        base_model = self._base_model()
        return base_model is not None and base_model.__dict__.get(_ATTRIBUTE) is self

    @classmethod
    def attached_to(cls, model: nn.Module) -> ModelAdapter | None:
        """The adapter that is at work in `model`, if it is compressed."""
        return cls.base_model_of(model).__dict__.get(_ATTRIBUTE)

    def run_tower(self, tower: ZipTower, pixel_values: Tensor, **kwargs: Any) -> EncodedTiles:
        """Tiles (T, 3, height, width) through a tower, or through what it was wrapped in since."""
        in_its_place = next(getattr(self.base_model, name) for name, own in self.towers.items() if own is tower)
        return tower(pixel_values, through=in_its_place, **kwargs)

    def zip(self, encoded: EncodedTiles, tiles: list[Tile]) -> ZippedTiles:
        """Zip encoded tiles and note the decision."""
        zipped = zip_tiles(encoded, tiles, self.budget.rule)
        self.last_decision = zipped.decision
        return zipped

    def as_returned(self, features: Any, encoded: EncodedTiles, return_dict: bool | None) -> Any:
        """See `image_features.as_returned`."""
        wanted = self.base_model.config.return_dict if return_dict is None else return_dict
        return as_returned(features, encoded.outputs, bool(wanted))

    def note_places(self, modality: str, places: FullPlaces, outputs: Any) -> None:
        """Features were made, of tokens that stand at these places; `outputs` is what is returned of them."""
        if self.sequence is not None:
            self.sequence.note(modality, places, outputs)
