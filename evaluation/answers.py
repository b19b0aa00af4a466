"""How a model answers questions about images: it reads each image once, and each question goes on from the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor


@torch.inference_mode()
def generated(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    questions: Sequence[Sequence[str]],
) -> list[str]:
    """Answers of one word by `generate`, image by image.

    Args:
        model: as it is, or compressed.
        processor: the same.
        images: B of them.
        questions: Q about each image. Each is asked as if it were the only one.
    """
    number = len(questions[0])
    read = processor(images=list(images), text=["<image>"] * len(images), return_tensors="pt")
    cache = model(**read, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(number)
    texts = [text for asked in questions for text in asked]
    asked = processor.tokenizer(texts, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([read["input_ids"].repeat_interleave(number, 0), asked], 1)
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=1,
        do_sample=False,
    )
    return [answer.strip() for answer in processor.batch_decode(said[:, -1:])]
