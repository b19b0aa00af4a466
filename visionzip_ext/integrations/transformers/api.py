"""Compress a model of transformers, and undo it."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers.adapter import ModelAdapter
from visionzip_ext.integrations.transformers.original_llava import is_original_llava, restore_original, tower_forward_of
from visionzip_ext.integrations.transformers.processors import placeholders
from visionzip_ext.integrations.transformers.registry import ADAPTERS, adapter_for
from visionzip_ext.integrations.transformers.settings import (
    CONFIG_KEY,
    TUNED_KEY,
    Settings,
    asked_budget,
    asked_positions,
    keywords_in,
    tuned_otherwise,
)
from visionzip_ext.integrations.transformers.weak_link import WeakLink
from visionzip_ext.tokens.decision import ZipDecision
from visionzip_ext.tokens.tiled_images import check_layout

Model = TypeVar("Model", bound=PreTrainedModel)


def compress(
    model: Model,
    processor: ProcessorMixin | None = None,
    *,
    dominant: int | None = None,
    contextual: int | None = None,
    keep: float | None = None,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    merge: str = "residual",
    policy: str = "attention",
    keep_cls: bool = True,
    budget_per: str = "tile",
    layout: str = "released",
    positions: str | None = None,
    early_exit: bool = True,
    budget: str | None = None,
) -> Model:
    """Give the model's language model dominant + contextual visual tokens for each image or tile, in place.

    Afterwards `processor(...)`, `model(...)` and `model.generate(...)` are used as before. Only this instance changes:
    no class is patched, and the vision tower keeps its attention implementation (SDPA, flash, eager), also where that
    is chosen later. Weights stay as they are; `model.config.visionzip` holds the setting, so that `save_pretrained`
    writes it and `compress_as_configured` applies it again. Calling `compress` again changes the setting.

    Source: VisionZip (arXiv 2412.04467), section 3; the defaults are its setting of 64 tokens for LLaVA-1.5.

    Args:
        model: an instance of one of `supported_models()`.
        processor: the model's processor, which then writes as many placeholders. Without one, the caller sees to it
            that `input_ids` has as many as there are visual tokens. Models with different settings need one each; where
            another model loses its own, a RuntimeWarning tells.
        dominant: tokens kept as they are, at least 1; the CLS token, where the tower has one, is among them. By
            default 54.
        contextual: tokens that all others are merged into, at least 0. By default 10.
        keep: instead of the two: the share of tokens that is left of each image, tile of a large image, or frame (of
            Qwen-VL: temporal patch) of a video, above 0 and at most 1. Of what is left, 10 in 64 are contextual, as in
            the paper's 54 + 10. CLS, where the tower has one that takes a row, counts on both sides.
        min_tokens: with `keep`: what is left of an image or tile at least, as far as it has so many. By default 1.
        max_tokens: with `keep`: what is left of an image or tile at most. By default there is no bound.
        merge: "residual" as in the released implementation, or "mean" as in the paper's words; see `visionzip_ext.zip`.
        policy: "attention", the paper's: the tokens that are attended to most are kept. "distinct", which is not in the
            paper: tokens that are attended to and differ from one another; see `visionzip_ext.zip`.
        keep_cls: False: CLS scores the other tokens and takes no row, so that all of dominant are patches. Of models
            whose vision tower has CLS among the tokens that are zipped: the LLaVA family with CLIP or DINOv2.
        budget_per: what has dominant + contextual tokens: "tile": each image, tile of a large image, or frame of a
            video; "image": a whole image or video, spread evenly over its tiles or frames.
        layout: for models that cut large images into tiles: "released": the order of the released implementation,
            without newlines; "native": the model's own raster order with newlines, padding left out. The newlines come
            on top of the budget: five tiles of 32, 64 or 128 tokens, 160, 320 or 640 in the paper's tables, become
            208, 368 or 688 of a LLaVA-NeXT image without padding.
        positions: which position ids visual tokens have in the language model. "renumbered", the default, as in the
            released implementation: those of the shorter prompt. "kept": those that they have where all are there, a
            merged token that of the token that the others were merged into, and text goes on behind all of them; CLS,
            of models that do not show it, stands where the first patch does. Models that were not tuned with fewer
            tokens answer better so, models that were tuned with renumbered ones worse. `position_ids` of your own, in
            `forward` or `generate`, stay as they are. Of models that cut images into tiles it is for layout="native".
            Qwen2-VL and its successors always keep their 3D positions: there "kept" is the default.
        early_exit: leave out the vision tower's layers after the one whose features the model uses. Where
            `output_hidden_states` or `output_attentions` is asked for, in a call or in the tower's config, all run.
        budget: the old name of `budget_per`, of which a DeprecationWarning tells.

    Returns:
        The same model.

    Raises:
        TypeError: a model, vision tower or processor of an unsupported class; a vision tower in float64; a budget that
            is not an integer; `early_exit` or `keep_cls` that is not a bool; both `budget_per` and `budget`; both
            `keep` and `dominant` or `contextual`; bounds without `keep`.
        ValueError: a budget that the tower's tokens cannot fill, `keep` out of (0, 1], an unknown `merge`, `policy`,
            `budget_per`, `layout` or `positions`, positions that the model cannot have, `keep_cls=False` of a model
            without CLS, a `vision_feature_layer` that cannot be used, a processor that belongs to another model, a
            vision tower that is wrapped in a `VisionZipEncoder`. Model and processor are then unchanged.
    """
    family = adapter_for(model)
    if budget is not None:
        budget_per = _by_its_old_name(budget, budget_per)
    check_layout(layout)
    asked = asked_budget(dominant, contextual, keep, min_tokens, max_tokens, merge, budget_per, policy, keep_cls)
    asked_for = Settings(asked, layout, asked_positions(positions, family.positions), early_exit)
    adapter = family(model, asked_for)
    _warn_if_tuned_otherwise(adapter)
    change = None
    if processor is not None:
        change = adapter.placeholders(processor)
        _warn_if_taken_away(processor, adapter)
    _exchange(family.attached_to(model), adapter)
    setattr(adapter.base_model.config, CONFIG_KEY, adapter.settings.as_keywords())
    if processor is not None and change is not None:
        placeholders.apply(change, processor)
        change.adapter, adapter.processor = WeakLink(adapter), WeakLink(processor)
    return model


def compress_as_configured(model: Model, processor: ProcessorMixin | None = None) -> Model:
    """`compress` with the setting that `model.config.visionzip` holds, as `save_pretrained` wrote it.

    Raises:
        TypeError: the setting is not a dict; and as `compress`.
        ValueError: the config holds no setting, or one with an unknown key; and as `compress`.
    """
    keywords = keywords_in(adapter_for(model).base_model_of(model).config)
    if keywords is None:
        raise ValueError(
            f"the config of this {type(model).__name__} has no setting under {CONFIG_KEY!r}: the model was not "
            "compressed when it was saved; call visionzip_ext.compress(model, processor, dominant=..., contextual=...)"
        )
    return compress(model, processor, **keywords)


def mark_tuned(model: Model) -> Model:
    """Write into the model's config that its weights were tuned with the setting that it is compressed to.

    `save_pretrained` writes it, as `visionzip_tuned`. It speaks of the weights: `restore` leaves it there, and
    `compress` warns where a setting differs from it.

    Args:
        model: a model that `compress` was called on.

    Returns:
        The same model.

    Raises:
        TypeError: an unknown model.
        ValueError: the model is not compressed.
    """
    adapter = adapter_for(model).attached_to(model)
    if adapter is None:
        raise ValueError(f"this {type(model).__name__} is not compressed; call visionzip_ext.compress before tuning")
    setattr(adapter.base_model.config, TUNED_KEY, adapter.settings.as_keywords())
    return model


def restore(model: Model, processor: ProcessorMixin | None = None) -> Model:
    """Undo `compress`: model and processor are exactly as they were before.

    Args:
        model: a model that `compress` was called on.
        processor: the processor that was given to `compress`. Without it the processor stays as it is, of which a
            RuntimeWarning tells.

    Returns:
        The same model.

    Raises:
        TypeError: an unknown model.
        ValueError: neither of the two is compressed.
    """
    if is_original_llava(model):
        undone = restore_original(model)
    else:
        adapter = adapter_for(model).attached_to(model)
        undone = processor is not None and placeholders.undo(processor)
        if adapter is not None:
            adapter.detach()
            delattr(adapter.base_model.config, CONFIG_KEY)
            _warn_if_left_behind(adapter)
            undone = True
    if not undone:
        raise ValueError(f"this {type(model).__name__} is not compressed, there is nothing to restore")
    return model


def last_zip(model: nn.Module) -> ZipDecision | list[ZipDecision] | None:
    """Which tokens the latest forward kept, merged and dropped; None if no image has gone through yet.

    One decision for all tiles of that forward; a list of one for each tile where their budgets differ
    (budget_per="image", layout="native"), or for each image where a tower of an original LLaVA repository is given a
    list. With several threads it is the latest forward of any of them.

    Raises:
        TypeError: an unknown model.
        ValueError: the model is not compressed.
    """
    original = is_original_llava(model)
    compressed = tower_forward_of(model) if original else adapter_for(model).attached_to(model)
    if compressed is None:
        call = "visionzip(model)" if original else "compress(model, processor)"
        raise ValueError(f"this {type(model).__name__} is not compressed; call visionzip_ext.{call} first")
    return compressed.last_decision


def supported_models() -> tuple[str, ...]:
    """The class names of transformers that `compress` accepts."""
    return tuple(ADAPTERS)


def _exchange(earlier: ModelAdapter | None, adapter: ModelAdapter) -> None:
    if earlier is None:
        adapter.attach()
        return
    earlier.detach()
    try:
        adapter.attach()
    except ValueError:
        earlier.attach()
        raise


def _warn_if_taken_away(processor: ProcessorMixin, adapter: ModelAdapter) -> None:
    """Warn if the processor goes with another model that is compressed to something else."""
    if _is_taken(processor, adapter):
        warnings.warn(
            f"this {type(processor).__name__} was changed for another model, which is compressed otherwise and from "
            "now on gets a wrong number of placeholders from it; give each model a processor of its own "
            "(from_pretrained, or copy.deepcopy)",
            RuntimeWarning,
            stacklevel=3,
        )


def _warn_if_tuned_otherwise(adapter: ModelAdapter) -> None:
    """Warn if the weights were tuned with another setting."""
    tuned = keywords_in(adapter.base_model.config, TUNED_KEY)
    if tuned is None:
        return
    asked = adapter.settings.as_keywords()
    if names := tuned_otherwise(asked, tuned):
        here, there = (", ".join(f"{name}={of.get(name)!r}" for name in names) for of in (asked, tuned))
        warnings.warn(
            f"this checkpoint was tuned with {there} (config.{TUNED_KEY}), and is compressed with {here} now: it may "
            "answer worse than one that was not tuned",
            RuntimeWarning,
            stacklevel=3,
        )


def _is_taken(processor: ProcessorMixin, adapter: ModelAdapter) -> bool:
    change = placeholders.change_of(processor)
    other = None if change is None else change.adapter()
    if other is None or not other.is_attached or other.base_model is adapter.base_model:
        return False
    return other.settings != adapter.settings


def _warn_if_left_behind(adapter: ModelAdapter) -> None:
    """Warn if the processor that was changed for a model still is, and the model no more."""
    processor = adapter.processor()
    change = None if processor is None else placeholders.change_of(processor)
    if change is not None and change.adapter() is adapter:
        warnings.warn(
            f"the model is restored, but the {type(processor).__name__} that compress changed with it still writes "
            f"{adapter.settings.budget} placeholders an image or tile; call "
            "visionzip_ext.restore(model, processor)",
            RuntimeWarning,
            stacklevel=3,
        )


def _by_its_old_name(budget: str, budget_per: str) -> str:
    """The value of `budget_per`, given as `budget`."""
    if budget_per != "tile":
        raise TypeError(f"budget is the old name of budget_per; got both, budget={budget!r}, budget_per={budget_per!r}")
    warnings.warn(
        f"compress(budget={budget!r}) is now compress(budget_per={budget!r}); the old name goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
    return budget
