"""lmms-eval's own model classes, each of which compresses what it has loaded."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.models.chat.llava_hf import LlavaHf
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers import api

_OPTIONS = frozenset(
    parameter.name
    for parameter in inspect.signature(api.compress).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
)


def _take_options(own_class: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes `compress` and the options of `visionzip_ext.compress` out of a model's arguments.

    Raises:
        TypeError: neither an option nor an argument of lmms-eval's class.
        ValueError: options for a model that is not to be compressed.
    """
    known = {"compress", *_OPTIONS, *inspect.signature(own_class).parameters} - {"self", "kwargs"}
    if unknown := sorted(arguments.keys() - known):
        raise TypeError(f"unknown model argument {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    options = {name: arguments.pop(name) for name in ("compress", *_OPTIONS) if name in arguments}
    if options.get("compress") is False and len(options) > 1:
        raise ValueError(f"compress=False, but there are options: {', '.join(sorted(options.keys() - {'compress'}))}")
    return options


def _compress(model: PreTrainedModel, processor: ProcessorMixin, *, compress: bool = True, **options: Any) -> None:
    """By the options; without any, by the setting that the checkpoint was saved with or else by the defaults."""
    if not compress:
        return
    if not options and getattr(model.config, "visionzip", None) is not None:
        api.compress_as_configured(model, processor)
    else:
        api.compress(model, processor, **options)


class VisionZipLlavaHf(LlavaHf):
    """LLaVA-1.5 and LLaVA-NeXT of transformers.

    Arguments are those of lmms-eval's `llava_hf` and the options of `visionzip_ext.compress`; `compress=False` leaves
    all visual tokens, for the baseline. Unlike lmms-eval's class it takes batches, and an error in `generate` ends the
    evaluation, where lmms-eval's goes on with an empty answer.
    """

    def __init__(self, pretrained: str = "llava-hf/llava-1.5-7b-hf", **arguments: Any) -> None:
        """Load and compress; raises as `compress` does, and a TypeError for what neither of the two knows."""
        options = _take_options(LlavaHf, arguments)
        # lmms-eval's default is "", which transformers 5 refuses; of several processes each gets its own device.
        if PartialState().num_processes == 1:
            arguments.setdefault("device_map", arguments.get("device", "cuda"))
        super().__init__(pretrained=pretrained, **arguments)
        _compress(self.model, self._image_processor, **options)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """An answer to each request, in their order."""
        batches = Collator(
            [request.args for request in requests], lambda arguments: 0, lambda arguments: arguments[2], grouping=True
        )
        results: list[GenerationResult] = []
        elapsed = 0.0
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as progress:
            for batch in batches.get_batched(n=self.batch_size):
                started = time.perf_counter()
                results += self._answer(batch)
                elapsed += time.perf_counter() - started
                progress.update(len(batch))
        tokens = sum(result.token_counts.output_tokens for result in results)
        log_metrics(
            total_gen_tokens=tokens,
            total_elapsed_time=elapsed,
            avg_speed=tokens / elapsed if elapsed else 0.0,
            additional_metrics={"rank": self.rank},
        )
        return batches.get_original(results)

    def _answer(self, batch: Sequence[tuple]) -> list[GenerationResult]:
        """To requests with the same generation arguments."""
        messages = [
            ChatMessages(messages=to_messages(self.task_dict[task][split][number]))
            for _, to_messages, _, number, task, split in batch
        ]
        generation = batch[0][2]
        texts = [
            self._image_processor.apply_chat_template(
                own.model_dump()["messages"], tokenize=False, add_generation_prompt=True
            )
            for own in messages
        ]
        inputs = self._read(texts, messages)
        sampled = generation.get("temperature", 0) > 0
        said = self.model.generate(
            **inputs,
            do_sample=sampled,
            temperature=generation["temperature"] if sampled else None,
            top_p=generation.get("top_p"),
            num_beams=generation.get("num_beams", 1),
            max_new_tokens=generation.get("max_new_tokens", 1024),
            use_cache=self.use_cache,
            pad_token_id=self.eot_token_id,
            eos_token_id=self.eot_token_id,
        )
        results = []
        for text, row in zip(texts, said[:, inputs["input_ids"].shape[1] :], strict=True):
            answer = self._without_filling(row)
            words = self.tokenizer.decode(answer, skip_special_tokens=True)
            self.cache_hook.add_partial("generate_until", (text, generation), words)
            results.append(GenerationResult(text=words, token_counts=TokenCounts(output_tokens=len(answer))))
        return results

    def _read(self, texts: list[str], messages: list[ChatMessages]) -> Any:
        media = [own.extract_media() for own in messages]
        images = [image for images, _, _ in media for image in images]
        videos = [self.load_video(video, self.max_frames_num) for _, videos, _ in media for video in videos]
        visuals = {name: own for name, own in (("images", images), ("videos", videos)) if own}
        inputs = self._image_processor(text=texts, padding=len(texts) > 1, return_tensors="pt", **visuals)
        return inputs.to(self.device, self.model.dtype)

    def _without_filling(self, answer: torch.Tensor) -> torch.Tensor:
        """As far as its first end token: what follows fills it up to the batch's longest."""
        ends = (answer == self.eot_token_id).nonzero() if self.eot_token_id is not None else []
        return answer[: int(ends[0]) + 1] if len(ends) else answer


class VisionZipLlavaOnevision(VisionZipLlavaHf):
    """LLaVA-OneVision of transformers ("-hf"), images and videos; not the original repository's `llava_onevision`."""

    def __init__(self, pretrained: str = "llava-hf/llava-onevision-qwen2-7b-ov-hf", **arguments: Any) -> None:
        """As `VisionZipLlavaHf`."""
        super().__init__(pretrained=pretrained, **arguments)


class VisionZipQwen2_5_VL(Qwen2_5_VL):
    """Qwen2.5-VL; arguments are those of lmms-eval's `qwen2_5_vl` and the options of `visionzip_ext.compress`."""

    def __init__(self, **arguments: Any) -> None:
        """As `VisionZipLlavaHf`."""
        options = _take_options(Qwen2_5_VL, arguments)
        super().__init__(**arguments)
        _compress(self.model, self.processor, **options)
