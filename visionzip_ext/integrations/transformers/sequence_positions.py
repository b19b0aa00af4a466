"""Position ids of the visual tokens that are left, as they are where all are there: for models that count tokens.

Which tokens are left is known once the encoder has run, in the middle of a forward. So a hook of the base model notes
what the call was given, its feature methods note where the tokens stand, a hook of the language model moves the
positions, and the cache that it fills carries along how far tokens to come are moved. `generate` numbers tokens itself
before it calls the model; what the instance has in its place tells these numbers from a caller's, which stay.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from visionzip_ext.integrations.transformers.image_features import FeatureMethod
from visionzip_ext.integrations.transformers.weak_link import OwnerLink
from visionzip_ext.tokens.full_places import FullPlaces

_PLACES = "visionzip_full_places"
"""The attribute of an encoder's output (transformers 5) that holds its `FullPlaces`."""
_SHIFTS = "_visionzip_shifts"
"""The attribute of a cache: (B, tokens) int64, what to add to the position of a token after each."""


class _Call(threading.local):
    """What a thread's forward, or `generate`, has told so far. Copies begin with nothing.

    Attributes:
        in_generate: `generate` is at work, and was given no position_ids.
        input_ids: of the base model's forward; None between two.
        moves: the forward's position_ids are not its caller's own.
        places: of the features that it uses, by modality.
        shifts: what its cache is to hold.
    """

    in_generate = False
    input_ids: Tensor | None = None
    moves = False
    shifts: Tensor | None = None

    def __init__(self) -> None:
        self.places: dict[str, FullPlaces] = {}

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _Call, ()


class SequencePositions:
    """Kept positions of one model."""

    def __init__(self, model: PreTrainedModel, base_model: PreTrainedModel, language_model: str) -> None:
        """Check that the positions can be kept; change nothing yet.

        Args:
            model: with its language modeling head.
            base_model: the model inside.
            language_model: the path of its language model in `base_model`.

        Raises:
            ValueError: a model without a head, or whose language model takes no position ids.
        """
        if model is base_model:
            raise ValueError(
                f'positions="kept" is for a model that generates; pass the model around this {type(model).__name__}, '
                "with its language modeling head"
            )
        decoder = base_model.get_submodule(language_model)
        if "position_ids" not in inspect.signature(decoder.forward).parameters:
            raise ValueError(
                f'positions="kept" is for language models that take position_ids; {type(decoder).__name__} does not'
            )
        self._model = OwnerLink(model)
        self._language_model = language_model
        self._token_ids = {
            modality: token
            for modality in ("image", "video")
            if (token := getattr(base_model.config, f"{modality}_token_id", None)) is not None
        }
        self._call = _Call()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, base_model: PreTrainedModel) -> None:
        """Put the hooks in, and the answer to `generate`."""
        decoder = base_model.get_submodule(self._language_model)
        self._hooks = [
            base_model.register_forward_pre_hook(self._begin, with_kwargs=True),
            decoder.register_forward_pre_hook(self._move, with_kwargs=True),
            decoder.register_forward_hook(self._remember, with_kwargs=True),
        ]
        model = self._model()
        model.generate = FeatureMethod(self._generate, type(model), "generate")

    def detach(self) -> None:
        """Take them out again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if (model := self._model()) is not None:
            del model.generate

    @torch.compiler.disable  # it is Python that depends on data
    def note(self, modality: str, places: FullPlaces, outputs: Any) -> None:
        """Features were made; `outputs` is what the feature method returns of them."""
        self._call.places[modality] = places
        if hasattr(outputs, "pooler_output"):
            setattr(outputs, _PLACES, places)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the model's `generate`."""
        model = self._model()
        with self._numbering(by_generate=kwargs.get("position_ids") is None):
            return type(model).generate(model, *args, **kwargs)

    @contextlib.contextmanager
    def _numbering(self, *, by_generate: bool) -> Iterator[None]:
        before, self._call.in_generate = self._call.in_generate, by_generate
        try:
            yield
        finally:
            self._call.in_generate = before

    @torch.compiler.disable  # it is Python that depends on data
    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the base model."""
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments if args else kwargs
        call = self._call
        call.input_ids = given.get("input_ids")
        call.moves = call.in_generate or given.get("position_ids") is None
        call.places, call.shifts = {}, None
        for modality, outputs in (given.get("mm_encoder_outputs") or {}).items():
            if outputs is None:
                continue
            if (places := getattr(outputs, _PLACES, None)) is not None:
                call.places[modality] = places
            elif call.moves:
                raise RuntimeError(
                    f'mm_encoder_outputs["{modality}"] do not say which tokens they are of, which positions="kept" '
                    f"needs: pass what get_{modality}_features returned, whole (prefill_chunk_size=None), or "
                    "position_ids of your own"
                )

    @torch.compiler.disable  # it is Python that depends on data
    def _move(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Forward pre-hook of the language model."""
        call = self._call
        embeddings, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        if embeddings is None:  # called by itself, as no base model does
            return None
        rows, length = embeddings.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        earlier = _shifts_of(cache, past, rows)
        if not call.moves or (not call.places and earlier is None):
            return None
        shifts = after = torch.zeros(rows, length, dtype=torch.int64, device=embeddings.device)
        if call.places:
            shifts, after = self._of_features(shifts)
        if earlier is not None:
            shifts, after = (x + earlier[:, -1:] for x in (shifts, after))
        if call.places:
            call.shifts = after if earlier is None else _joined(earlier, after, past)
            call.places = {}
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length, device=embeddings.device)[None]
        moved = {"position_ids": positions + shifts}
        if kwargs.get("attention_mask") is None and length > 1:
            # Without one, transformers takes positions that leave some out for several sequences in one row.
            moved["attention_mask"] = torch.ones(rows, past + length, dtype=torch.int64, device=embeddings.device)
        return args, kwargs | moved

    @torch.compiler.disable  # it is Python that depends on data
    def _remember(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the language model."""
        shifts, self._call.shifts = self._call.shifts, None
        self._call.moves = False
        if shifts is None:
            return
        values = output.values() if isinstance(output, dict) else output
        for cache in values:
            if isinstance(cache, Cache):
                setattr(cache, _SHIFTS, shifts)

    def _of_features(self, nothing: Tensor) -> tuple[Tensor, Tensor]:
        """See `FullPlaces.shifts`; of the forward's images and videos together."""
        ids = self._call.input_ids
        if ids is None:
            raise ValueError(
                'positions="kept" needs input_ids, which say where images are in the prompt; got inputs_embeds: pass '
                "position_ids of your own with them"
            )
        shifts = after = nothing
        for modality, places in self._call.places.items():
            own, own_after = places.shifts(ids == self._token_ids[modality])
            shifts, after = shifts + own, after + own_after
        return shifts, after


def _shifts_of(cache: Cache | None, past: int, rows: int) -> Tensor | None:
    """What a cache of `past` tokens holds under `_SHIFTS`; it may have been cropped or emptied since.

    Returns:
        (rows, tokens up to the last visual one at least), of which the last column is for all tokens to come; or None.
    """
    shifts = getattr(cache, _SHIFTS, None)
    if shifts is None:
        return None
    if past < shifts.shape[1]:
        shifts = shifts[:, :past]
        setattr(cache, _SHIFTS, shifts)
    if past == 0:
        delattr(cache, _SHIFTS)
        return None
    if len(shifts) != rows:  # repeated since, as for several samples of one prompt
        shifts = shifts.repeat_interleave(rows // len(shifts), 0)
    return shifts


def _joined(earlier: Tensor, after: Tensor, past: int) -> Tensor:
    """What `_shifts_of` returned, and (rows, L) of the tokens that follow on `past` ones."""
    between = earlier[:, -1:].expand(-1, past - earlier.shape[1])
    return torch.cat([earlier, between, after], 1)
