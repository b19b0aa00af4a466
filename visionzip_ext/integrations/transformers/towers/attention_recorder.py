"""Records one attention layer's queries and keys in a running model, whatever attention implementation it uses.

transformers looks an attention function up by the name in `attention.config._attn_implementation`. The recorded module,
and no other, gets a copy of that config with our name in it; our function notes queries and keys and hands over to the
implementation that the encoder has *at that moment* (sdpa, flash, eager, ...). So masks are made as before, nothing
reaches config.json, a second model that shares the config object is not disturbed, and neither is a later
`set_attn_implementation`.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "visionzip"
_RECORDER = "_visionzip_recorder"


class AttentionInputs(NamedTuple):
    """What attention was computed from: queries and keys (B, H, S, D), after rotary embedding and normalisation."""

    queries: Tensor
    keys: Tensor
    scale: float


class AttentionRecorder:
    """Records the inputs of one attention module of an encoder."""

    def __init__(self, attention: nn.Module, encoder_config: PretrainedConfig) -> None:
        """Change nothing yet.

        Args:
            attention: the module to record; it must dispatch through transformers' `AttentionInterface`.
            encoder_config: the encoder's own config, whose attention implementation stays in force.
        """
        self.attention: Any = attention
        self.encoder_config = encoder_config
        self._original_config: PretrainedConfig | None = None
        self._log: list[AttentionInputs] | None = None

    def attach(self) -> None:
        """Turn attention's dispatch to `recorded_attention`, for this module only.

        Raises:
            ValueError: another recorder is at work there; the two would undo each other.
        """
        if _RECORDER in self.attention.__dict__:
            raise ValueError(
                "this vision encoder is compressed already, or wrapped in another VisionZipEncoder, at the same layer; "
                "call visionzip_ext.restore on the model or detach() on the other first"
            )
        self._original_config = self.attention.config
        private = copy.copy(self._original_config)
        private._attn_implementation = {"": IMPLEMENTATION}  # as a dict: shared sub-configs keep theirs
        self.attention.config = private
        setattr(self.attention, _RECORDER, self)

    def detach(self) -> None:
        """Give the module its config back."""
        self.attention.config = self._original_config
        self.attention.__dict__.pop(_RECORDER, None)

    @property
    def is_recording(self) -> bool:
        """Whether a call of attention would be noted now."""
        return self._log is not None

    @property
    def calls(self) -> list[AttentionInputs]:
        """Those noted so far, inside `recording`; outside none."""
        return [] if self._log is None else self._log

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[AttentionInputs]]:
        """Collect the calls of attention inside the block, one entry a call.

        Outside it nothing is kept: gradient checkpointing runs attention again during backward, which must not count.
        """
        outer, self._log = self._log, []
        try:
            yield self._log
        finally:
            self._log = outer

    def note(self, queries: Tensor, keys: Tensor, scale: float) -> None:
        """Attention was called with these; kept without their gradient, since a selection has none."""
        if self._log is not None:
            self._log.append(AttentionInputs(queries.detach(), keys.detach(), scale))


class _UnderEncoderConfig:
    """The attention module as implementations expect to see it: with the encoder's config, not the recorder's copy.

    Flash attention reads the implementation's name from `module.config`. A view, because other threads would
    see a change of the module.
    """

    def __init__(self, module: nn.Module, config: PretrainedConfig) -> None:
        self._module = module
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _attention_function(module: nn.Module, implementation: str | None) -> Callable:
    if implementation in (None, "eager"):
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]


def recorded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The function behind the name "visionzip": record, then compute attention as the encoder would."""
    recorder: AttentionRecorder = getattr(module, _RECORDER)
    recorder.note(query, key, scaling if scaling is not None else query.shape[-1] ** -0.5)
    attention = _attention_function(module, recorder.encoder_config._attn_implementation)
    seen_as = _UnderEncoderConfig(module, recorder.encoder_config)
    return attention(seen_as, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(IMPLEMENTATION, recorded_attention)
