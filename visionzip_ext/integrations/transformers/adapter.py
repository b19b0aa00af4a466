"""What a family of models has to say about itself; everything else is shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers.budget import Budget
from visionzip_ext.integrations.transformers.image_features import BoundImageFeatures
from visionzip_ext.integrations.transformers.placeholders import PlaceholderChange
from visionzip_ext.integrations.transformers.zip_tower import ZipDecision, ZipTower

_ATTRIBUTE = "_visionzip"


class ModelAdapter(ABC):
    """Binds one model instance of a family to the shared mechanism.

    A family subclasses this. `bind` checks everything and changes nothing, so that a failed `compress` leaves no trace.
    The adapter lives in an attribute of the module it serves: a deep copy of the model takes its own along.

    Attributes:
        seam: the module whose `get_image_features` both `forward` and `generate` call.
        tower: its vision tower.
        budget: tokens of an image (for tiled models: of a tile).
        last_decision: of the latest forward in any thread; None before the first.
    """

    def __init__(self, seam: PreTrainedModel, tower: ZipTower, budget: Budget) -> None:
        """What `bind` found out about a model; see the attributes."""
        self.seam = seam
        self.tower = tower
        self.budget = budget
        self.last_decision: ZipDecision | None = None

    @classmethod
    @abstractmethod
    def bind(cls, model: PreTrainedModel, budget: Budget, *, early_exit: bool) -> ModelAdapter:
        """Check that `model` can be compressed so. Raises ValueError or TypeError with the way out."""

    @staticmethod
    @abstractmethod
    def seam_of(model: PreTrainedModel) -> PreTrainedModel:
        """The module of `model` that owns `get_image_features`."""

    @abstractmethod
    def image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the seam's `get_image_features`: same arguments, same type of result (see `as_returned`)."""

    @abstractmethod
    def placeholders(self, processor: ProcessorMixin) -> PlaceholderChange:
        """The change that makes `processor` write as many placeholders as this model makes image tokens."""

    def attach(self) -> None:
        """Put the adapter to work."""
        self.tower.attach()
        self.seam.get_image_features = BoundImageFeatures(self)
        setattr(self.seam, _ATTRIBUTE, self)

    def detach(self) -> None:
        """Leave the model as it was before `attach`."""
        del self.seam.get_image_features
        delattr(self.seam, _ATTRIBUTE)
        self.tower.detach()

    @classmethod
    def attached_to(cls, model: PreTrainedModel) -> ModelAdapter | None:
        """The adapter that is at work in `model`, if it is compressed."""
        return cls.seam_of(model).__dict__.get(_ATTRIBUTE)
