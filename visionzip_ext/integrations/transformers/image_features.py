"""Puts the zipped features where a transformers model looks for them: in `get_image_features` of one instance."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

if TYPE_CHECKING:
    from visionzip_ext.integrations.transformers.adapter import ModelAdapter

_RETURNS_OUTPUT_OBJECT = Version(transformers.__version__) >= Version("5.0.0")


@dataclass(eq=False)
class BoundImageFeatures:
    """What an instance has in place of its bound method `get_image_features`.

    An object, not a closure or a method: deep copies and pickles of a model then carry one that belongs to the copy.
    """

    adapter: ModelAdapter

    @property
    def __signature__(self) -> inspect.Signature:
        """The method's own: `generate` reads it (transformers >= 5.18) to know which arguments go to the encoder."""
        signature = inspect.signature(type(self.adapter.seam).get_image_features)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the method was."""
        return self.adapter.image_features(*args, **kwargs)


def as_returned(features: list[Tensor], outputs: BaseModelOutputWithPooling, return_dict: bool) -> Any:
    """Features, one tensor (tokens, channels) an image, in the form that this version's `get_image_features` returns.

    transformers 4 returns the list; transformers 5 the tower's own output with the list as `pooler_output`.
    """
    if not _RETURNS_OUTPUT_OBJECT:
        return features
    outputs.pooler_output = features
    return outputs if return_dict else outputs.to_tuple()
