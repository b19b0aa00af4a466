"""A tiny compressed Qwen-VL, and what the unmodified model says of the same tokens at the same positions."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.tiny_families import VIDEO_TOKEN
from support.tiny_models import IMAGE_TOKEN, TRANSFORMERS
from support.tiny_qwen import FAMILIES, QwenFamily, images, videos

from visionzip_ext import compress

K, M = 5, 2
NEW = 5
QUESTION = "USER : <image> what is this ASSISTANT :"
TEXT = [QUESTION, "USER : <image> a cat", "USER : <image> what <image> is this a dog", "USER : a dog"]
ABOUT_VIDEOS = ["USER : <video> what", "USER : what is this <video> a cat"]
FRAMES = (3, 2)
"""Temporal patches of `videos`."""

families = pytest.mark.parametrize("family", FAMILIES, ids=str)


def compressed(family: QwenFamily, **options: Any) -> tuple[Any, Any]:
    model, processor = family.model(), family.processor()
    compress(model, processor, **(options or {"dominant": K, "contextual": M}))
    return model, processor


def for_model(inputs: Any) -> dict[str, Any]:
    """What the model takes of a processor's output."""
    return {name: value for name, value in inputs.items() if name != "video_metadata"}


def asked(processor: Any, count: int = 1, text: list[str] | None = None, seed: int = 0) -> dict[str, Any]:
    """The first of `TEXT`, or others, with as many images as they show."""
    text = text or TEXT[:count]
    shown = sum(prompt.count("<image>") for prompt in text)
    pictures = images(4, seed)[1::-1] * 2
    return for_model(
        processor(images=pictures[:shown] if shown else None, text=text, padding=True, return_tensors="pt")
    )


def asked_of_videos(family: QwenFamily, processor: Any, count: int = 2) -> dict[str, Any]:
    inputs = processor(videos=videos(family, count), text=ABOUT_VIDEOS[:count], padding=True, return_tensors="pt")
    return for_model(inputs)


def tokens_of(inputs: Any, token: int = IMAGE_TOKEN) -> list[int]:
    return (torch.as_tensor(inputs["input_ids"]) == token).sum(1).tolist()


def answer(model: Any, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options)[:, -NEW:]


def features(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Of each image."""
    with torch.no_grad():
        result = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    result = getattr(result, "pooler_output", result)
    return list(result[0] if isinstance(result[-1], list) else result)


def all_features(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Of all images together: those of the last layer, then DeepStack's."""
    with torch.no_grad():
        result = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    if hasattr(result, "pooler_output"):
        layers = [result.pooler_output, *(getattr(result, "deepstack_features", None) or ())]
    else:
        layers = [result[0], *result[1]] if isinstance(result[-1], list) else [result]
    return [layer if isinstance(layer, torch.Tensor) else torch.cat(tuple(layer)) for layer in layers]


def tokens_left(decision: Any) -> list[list[int]]:
    """Of each frame the tokens that have a row, ascending, by definition: those kept, and every step-th of the rest."""
    left = []
    for one in decision if isinstance(decision, list) else [decision]:
        for frame in range(len(one.indices)):
            kept = set(one.indices[frame].tolist())
            rest = [token for token in range(one.assignment.shape[1]) if token not in kept]
            step = max(1, len(rest) // max(1, one.contextual))
            left.append(sorted(kept | set(rest[::step][: one.contextual])))
    return left


def left_of(full: dict[str, Any], decision: Any, token: int = IMAGE_TOKEN) -> torch.Tensor:
    """(B, L): which of the uncompressed prompts' tokens are left, padding aside."""
    visual = []
    assignments = [a for one in (decision if isinstance(decision, list) else [decision]) for a in one.assignment]
    for tokens, assignment in zip(tokens_left(decision), assignments, strict=True):
        mask = torch.zeros(len(assignment), dtype=torch.bool)
        mask[tokens] = True
        visual.append(mask)
    left = full["attention_mask"].bool().clone()
    left[full["input_ids"] == token] = torch.cat(visual)
    return left


def full_positions(family: QwenFamily, full: dict[str, Any]) -> torch.Tensor:
    """(3, B, L): by the unmodified model."""
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    names += ("second_per_grid_ts",) if family.seconds else ()
    return family.model().model.get_rope_index(**{name: full[name] for name in names if name in full})[0]


def told_features(family: QwenFamily, model: Any, modality: str = "image") -> Any:
    """The unmodified model, which is told the compressed one's features."""
    untouched = family.model()
    name = f"get_{modality}_features"

    @functools.wraps(getattr(type(untouched.model), name))
    def told(*args: Any, **kwargs: Any) -> Any:
        return getattr(model.model, name)(*args, **kwargs)

    setattr(untouched.model, name, told)
    return untouched


def told_features_and_positions(family: QwenFamily, model: Any, inputs: dict[str, Any]) -> Any:
    """The unmodified model, told the compressed one's features of `inputs`, and where its language model sees them.

    Also in beams, and in forwards of a prompt and what was generated since, which is text. Padding is on the left.
    """
    untouched, seen = told_features(family, model), positions_seen(model)
    with torch.no_grad():
        model(**inputs)
    (positions,) = seen
    model.model.rope_deltas = None

    @functools.wraps(type(untouched.model).get_rope_index)
    def told(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        later = torch.arange(1, input_ids.shape[1] - positions.shape[-1] + 1)
        longer = torch.cat([positions, positions[..., -1:] + later], -1)
        deltas = longer[..., -1].amax(0) + 1 - longer.shape[-1]
        rows = len(input_ids) // positions.shape[1]
        return longer.repeat_interleave(rows, 1), deltas.unsqueeze(1).repeat_interleave(rows, 0)

    untouched.model.get_rope_index = told
    return untouched


def with_text_positions(positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(4, B, L), as the language model takes them."""
    return torch.cat([(mask.cumsum(-1) - 1).clamp(min=0)[None], positions])


def answer_step_by_step(family: QwenFamily, full: dict[str, Any], left: torch.Tensor) -> torch.Tensor:
    """The unmodified model's, with all tokens in the prompt and those that are gone masked; no generate, no cache."""
    model, state = family.model(), dict(full)
    mask, positions, tokens = left.long(), full_positions(family, full), []
    banned = model.generation_config.suppress_tokens
    for _ in range(NEW):
        state["attention_mask"] = mask
        given = with_text_positions(positions, mask)
        with torch.no_grad():
            logits = model(**state, position_ids=given, use_cache=False).logits[:, -1]
        logits[:, banned] = -torch.inf
        tokens.append(logits.argmax(-1, keepdim=True))
        state["input_ids"] = torch.cat([state["input_ids"], tokens[-1]], 1)
        if "mm_token_type_ids" in state:
            state["mm_token_type_ids"] = torch.cat([state["mm_token_type_ids"], torch.zeros_like(tokens[-1])], 1)
        mask = torch.cat([mask, torch.ones_like(tokens[-1])], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
    return torch.cat(tokens, 1)


def positions_seen(model: Any) -> list[torch.Tensor]:
    """A list that fills with the language model's 3D positions."""
    seen: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"][-3:]), with_kwargs=True
    )
    return seen


needs_encoder_outputs = pytest.mark.skipif(
    TRANSFORMERS < (5, 18), reason="transformers < 5.18 takes no features that were made earlier (mm_encoder_outputs)"
)
repeats_pixels_wrongly = pytest.mark.skipif(
    (5, 0) <= TRANSFORMERS < (5, 20), reason="transformers 5.0 to 5.17 repeats pixels wrongly for several beams"
)
TOKENS = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}
