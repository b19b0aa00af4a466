"""The model that the demo compresses: a real checkpoint, or a random one of the same build."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from visionzip_ext.demo import random_llava
from visionzip_ext.demo.errors import DemoError, first_line

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """A model ready to be asked.

    Attributes:
        model: in eval mode, on its device.
        processor: pads on the left, as generation needs.
        description: what it is, for the reader.
        caution: what to keep in mind when looking at what it chooses; may be empty.
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    description: str
    caution: str = ""

    def prompt(self, question: str) -> str:
        """The question about one image, in the model's chat template where it has one, else in LLaVA-1.5's words."""
        if not self.processor.chat_template:
            return f"USER: <image>\n{question} ASSISTANT:"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def device_named(name: str | None) -> torch.device:
    """The device of that name; without a name, a CUDA GPU where there is one.

    Raises:
        DemoError: no such device here, or one that computes nothing.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DemoError(f"--device {name}: {first_line(error)}") from None
    if device.type == "meta":
        raise DemoError("--device meta: its tensors have no values; expected a device that computes, such as cpu")
    return device


def load(name: str | None, question: str, device: torch.device, dtype: str) -> Subject:
    """The checkpoint of that name (a folder, or a name on the Hugging Face hub), or the random model.

    Args:
        name: None for the random model.
        question: what will be asked; the random model's vocabulary needs its words.
        device: where the model goes.
        dtype: a key of `DTYPES`, or "auto": the checkpoint's own, float32 for the random model.

    Raises:
        DemoError: no such checkpoint, or not one of LLaVA-1.5's kind.
    """
    if name is None:
        model, processor = random_llava.random_llava(question, DTYPES.get(dtype, torch.float32))
        description, caution = random_llava.DESCRIPTION, random_llava.CAUTION
    else:
        model, processor = _from_pretrained(name, dtype)
        description, caution = name, ""
    processor.tokenizer.padding_side = "left"
    return Subject(model.to(device).eval(), processor, description, caution)


def _from_pretrained(name: str, dtype: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    _check_name(name)
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "llava":
            raise DemoError(
                f"--model {name}: its model type is {kind!r}, expected 'llava' (LLaVA-1.5 for transformers)"
            )
        processor = AutoProcessor.from_pretrained(name)
        model = LlavaForConditionalGeneration.from_pretrained(name, dtype=DTYPES.get(dtype, "auto"))
    except (OSError, ValueError) as error:
        raise DemoError(f"--model {name}: {first_line(error)}") from None
    return model, processor


def _check_name(name: str) -> None:
    """Raise DemoError where a name is neither a folder nor of the hub's form: to ask the hub for it takes long."""
    if not Path(name).is_dir() and not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        raise DemoError(f"--model {name}: no such folder, and not a name on the hub, which would be ORGANISATION/MODEL")
