"""What the two variants cost and what they answer, measured in one run, taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, Cache

from visionzip_ext.demo.subject import Subject
from visionzip_ext.integrations.transformers import ZipDecision, compress, last_zip, restore

VARIANTS = ("full", "zipped")


@dataclass
class Variant:
    """Measurements of the model as it is ("full") or compressed ("zipped"), for the whole batch of images.

    Attributes:
        visual_tokens: image placeholders of one image.
        encoder_s: seconds from the call of the model to its language model, one entry a repeat: vision tower, selection
            and merging, projector.
        prefill_s: seconds of the language model's first forward, one entry a repeat.
        cache_bytes: keys and values of that forward.
        answers: generated text, one an image.
    """

    visual_tokens: int = 0
    encoder_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    cache_bytes: int = 0
    answers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measurement:
    """Both variants, the pixels that the model saw (B, 3, height, width), and what became of their tokens."""

    full: Variant
    zipped: Variant
    pixel_values: torch.Tensor
    decision: ZipDecision


@torch.inference_mode()
def measure(
    subject: Subject,
    images: list[Image.Image],
    question: str,
    budget: dict[str, Any],
    *,
    repeats: int,
    max_new_tokens: int,
    progress: Callable[[str], None],
) -> Measurement:
    """Ask the same question about each image, with all visual tokens and with few.

    Args:
        subject: model and processor; both are restored afterwards.
        images: B of them, one prompt each, in one batch.
        question: the text of each prompt.
        budget: `dominant` and `contextual`, as for `compress`.
        repeats: timed forwards of each variant, full and zipped in turn, after the answers have warmed both up.
        max_new_tokens: length of the answers.
        progress: told what comes next.
    """
    variants = {name: Variant() for name in VARIANTS}
    inputs: dict[str, BatchFeature] = {}
    for name, variant in variants.items():
        progress(f"{name}: answering")
        with _as_variant(subject, name, budget):
            inputs[name] = _inputs(subject, images, question)
            variant.visual_tokens = _visual_tokens(subject, inputs[name])
            variant.answers = _answers(subject, inputs[name], max_new_tokens)
            if name == "zipped":
                decision = _decision(subject)
    for repeat in range(1, repeats + 1):
        for name, variant in variants.items():
            progress(f"{name}: forward {repeat} of {repeats}")
            with _as_variant(subject, name, budget):
                encoder_s, prefill_s, variant.cache_bytes = _timed_forward(subject, inputs[name])
            variant.encoder_s.append(encoder_s)
            variant.prefill_s.append(prefill_s)
    return Measurement(variants["full"], variants["zipped"], inputs["zipped"]["pixel_values"], decision)


@contextmanager
def _as_variant(subject: Subject, name: str, budget: dict[str, Any]) -> Iterator[None]:
    """One set of weights serves both variants: compress and restore take no time."""
    if name == "full":
        yield
        return
    compress(subject.model, subject.processor, **budget)
    try:
        yield
    finally:
        restore(subject.model, subject.processor)


def _inputs(subject: Subject, images: list[Image.Image], question: str) -> BatchFeature:
    text = [subject.prompt(question)] * len(images)
    inputs = subject.processor(images=images, text=text, return_tensors="pt", padding=True)
    return inputs.to(subject.model.device, subject.model.dtype)


def _decision(subject: Subject) -> ZipDecision:
    decision = last_zip(subject.model)
    assert isinstance(decision, ZipDecision)  # LLaVA-1.5 shows its encoder no tiles, which might have one each
    return decision


def _visual_tokens(subject: Subject, inputs: BatchFeature) -> int:
    placeholders = inputs["input_ids"] == subject.model.config.image_token_id
    return int(placeholders[0].sum())


def _timed_forward(subject: Subject, inputs: BatchFeature) -> tuple[float, float, int]:
    """(seconds until the language model starts, seconds that it takes, bytes of its cache)."""
    model = subject.model
    marks: list[float] = []

    def mark(*call: object) -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        marks.append(time.perf_counter())

    language_model = model.model.language_model
    hooks = (language_model.register_forward_pre_hook(mark), language_model.register_forward_hook(mark))
    try:
        mark()
        outputs = model(**inputs, use_cache=True, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    start, encoded, prefilled = marks
    return encoded - start, prefilled - encoded, _cache_bytes(outputs.past_key_values)


def _cache_bytes(cache: Cache) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _answers(subject: Subject, inputs: BatchFeature, max_new_tokens: int) -> list[str]:
    generated = subject.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new_tokens = generated[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in subject.processor.batch_decode(new_tokens, skip_special_tokens=True)]
