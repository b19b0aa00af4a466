"""Puts the zipped features where a transformers model looks for them: in the feature methods of one instance."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers
from packaging.version import Version
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

RETURNS_OUTPUT_OBJECT = Version(transformers.__version__) >= Version("5.0.0")
"""transformers 4 returns features, transformers 5 the tower's output with the features as `pooler_output`."""


@dataclass(eq=False)
class FeatureMethod:
    """What an instance has in place of a bound method such as `get_image_features`.

    An object, not a closure: deep copies and pickles of a model then carry one that belongs to the copy.

    Attributes:
        answer: the adapter's bound method that is called instead.
        model_class: the instance's class, whose method is replaced.
        name: that method's.
    """

    answer: Callable[..., Any]
    model_class: type[nn.Module]
    name: str

    @property
    def __signature__(self) -> inspect.Signature:
        """The method's own: `generate` reads it (transformers >= 5.18) to know which arguments go to the encoder."""
        signature = inspect.signature(getattr(self.model_class, self.name))
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the method was."""
        return self.answer(*args, **kwargs)


def as_returned(features: Any, outputs: BaseModelOutputWithPooling, return_dict: bool) -> Any:
    """Features in the form that this version's feature methods return: see `RETURNS_OUTPUT_OBJECT`."""
    if not RETURNS_OUTPUT_OBJECT:
        return features
    outputs.pooler_output = features
    return outputs if return_dict else outputs.to_tuple()
