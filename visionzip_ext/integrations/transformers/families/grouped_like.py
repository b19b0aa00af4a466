"""What models have in common that make one token of a square of patches, by pooling or pixel shuffle, or of each patch.

Such a model's `get_image_features` runs as it is: only it knows what its version does with pixels, padding and scales.
A hook zips the tokens where they enter the projector.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin

from visionzip_ext.integrations.transformers.adapter import ModelAdapter
from visionzip_ext.integrations.transformers.processors.checks import check_class
from visionzip_ext.integrations.transformers.processors.placeholders import TokensOfTile
from visionzip_ext.integrations.transformers.settings import POSITIONS, Settings
from visionzip_ext.integrations.transformers.towers.zip_tower import ZipTower
from visionzip_ext.tokens.full_places import FullPlaces
from visionzip_ext.tokens.grouped_tiles import zip_grouped_tiles
from visionzip_ext.tokens.zip_tiles import target_tokens


class GroupedAdapter(ModelAdapter):
    """Zips tokens between vision tower and projector, each tile for itself: an image, a crop or a frame.

    CLS, where the tower has one, is left out before anything is decided: these models do not show it to their language
    model, so that nothing has taught it where to look.

    Attributes:
        tower_name: the base model's attribute that is the vision tower.
        projector: path of the module whose input (T, tokens, channels) is zipped.
        processor_class: the name of the processor's class.
        tokens_attribute: the processor's attribute that says how many tokens a tile has.
        change: how it is set.
        one_tile: an image is always one tile.
    """

    positions = POSITIONS
    tower_name = "vision_tower"
    projector = "multi_modal_projector"
    processor_class: str
    tokens_attribute = "image_seq_length"
    change: type[TokensOfTile] = TokensOfTile
    one_tile = False

    def __init__(self, model: Any, settings: Settings) -> None:
        """See `ModelAdapter`."""
        super().__init__(model, settings)
        self._hook: Any = None
        self._zipped: FullPlaces | None = None

    @property
    def layer(self) -> int:
        """The vision tower's hidden state that is projected, whose layer's attention decides."""
        return -1

    @property
    @abstractmethod
    def side(self) -> int:
        """Patches along a side of a token."""

    @property
    def has_cls(self) -> bool:
        """See `ModelAdapter.has_cls`; it is left out."""
        return False

    @property
    def tile_tokens(self) -> int:
        """Of a tile without compression."""
        return (self.tower.patches // self.side) ** 2

    def make_towers(self) -> dict[str, ZipTower]:
        """See `ModelAdapter.make_towers`. These models project the last layer's output, so that all layers run."""
        tower, layer = getattr(self.base_model, self.tower_name), self.layer
        return {self.tower_name: ZipTower(tower, layer, early_exit=self.settings.early_exit)}

    def check_budget(self) -> None:
        """See `ModelAdapter.check_budget`; in the tokens that the model makes."""
        if self.budget.per == "image" and not self.one_tile:
            raise ValueError(
                f'budget_per="image" is for models that are told which tiles belong to an image; '
                f"{type(self.base_model).__name__} gets those of all images together: give each its share with "
                'budget_per="tile"'
            )
        self.budget.check_fits(self.tile_tokens, self.tower.name)

    @property
    def feature_methods(self) -> dict[str, Callable[..., Any]]:
        """See `ModelAdapter.feature_methods`."""
        return {"get_image_features": self.image_features}

    def image_features(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own method, with the tokens zipped on their way."""
        own_method: Any = type(self.base_model).get_image_features
        with self.tower.recording(getattr(self.base_model, self.tower_name)):
            self._zipped = None
            features = own_method(self.base_model, *args, **kwargs)
            if self._zipped is None:
                raise RuntimeError(
                    f"{self.projector} of this {type(self.base_model).__name__} was replaced after compress; call "
                    "visionzip_ext.compress(model, processor, ...) again"
                )
            self.note_places("image", self._zipped, features)
        return features

    def attach(self) -> None:
        """See `ModelAdapter.attach`."""
        super().attach()
        self._hook = self.base_model.get_submodule(self.projector).register_forward_pre_hook(self._zip_input)

    def detach(self) -> None:
        """See `ModelAdapter.detach`."""
        super().detach()
        self._hook.remove()
        self._hook = None

    def placeholders(self, processor: ProcessorMixin) -> TokensOfTile:
        """See `ModelAdapter.placeholders`."""
        check_class(processor, self.processor_class)
        self.check_processor(processor)
        return self.change(self.tokens_attribute, self.budget.tokens, self.tile_tokens, processor)

    @abstractmethod
    def check_processor(self, processor: Any) -> None:
        """Raise ValueError unless a processor of the right class makes tiles of the right size and token."""

    def _zip_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Forward pre-hook of the projector."""
        if not self.tower.is_recording:
            return None
        queries, keys, scale = self.tower.recorded()
        if self.tower.has_cls:
            queries, keys = queries[:, :, 1:], keys[:, :, 1:]
        (budget,) = self.budget.of_tiles(1, self.tile_tokens)
        rows, self.last_decision = zip_grouped_tiles(args[0], queries, keys, scale, budget, self.budget.rule)
        kept = self.last_decision.indices
        tokens = torch.cat([kept, target_tokens(kept, self.tile_tokens, budget.contextual)], 1)
        self._zipped = FullPlaces(tokens.flatten(), [budget.tokens] * len(tokens), [self.tile_tokens] * len(tokens))
        return (rows, *args[1:])
