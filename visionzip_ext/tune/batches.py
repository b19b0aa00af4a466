"""Conversations as inputs of a model, and labels: of the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PaliGemmaProcessor, PreTrainedModel, ProcessorMixin

from visionzip_ext.tune.conversations import PLACEHOLDER, Example, Message
from visionzip_ext.tune.errors import TuneError

IGNORED = -100
"""The label that transformers' losses leave out."""

# LLaVA-1.5's words, for processors without a chat template.
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': 'USER: ', 'assistant': ' ASSISTANT: ', 'system': ''}[message['role']] }}"
    "{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{{ {'user': '', 'assistant': eos_token, 'system': ' '}[message['role']] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class _Text:
    """A conversation written out, and from where to where each answer goes, in characters."""

    text: str
    answers: Sequence[tuple[int, int]]


class Collator:
    """Makes a batch of `Example`s: the processor's inputs, with placeholders as compressed, and `labels`.

    A label is a token of an answer, the one that ends it among them; everything else is ignored.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """Note what is needed of the model; the processor is the one that `compress` was called with.

        Raises:
            TuneError: the tokenizer does not tell which characters a token is made of.
        """
        self.processor = processor
        tokenizer: Any = getattr(processor, "tokenizer", None)
        if not getattr(tokenizer, "is_fast", False):
            raise TuneError(f"the tokenizer of this {type(processor).__name__} is not a fast one, which tune needs")
        self.tokenizer = tokenizer
        text_config: Any = model.config.get_text_config()
        self.context = min(tokenizer.model_max_length, getattr(text_config, "max_position_embeddings", 1 << 30))
        self.ends = _ends(model, tokenizer)
        self.template = None if getattr(processor, "chat_template", None) else _TEMPLATE

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """(B, L) `input_ids`, `attention_mask`, `labels`, and what the processor makes of the images.

        Raises:
            TuneError: a conversation that the chat template or the processor cannot take, or longer than the context.
        """
        written = [self._write(example) for example in examples]
        inputs = self._process(examples, text=[one.text for one in written], **self._special(written[0].text))
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        for row, (example, one) in enumerate(zip(examples, written, strict=True)):
            places = inputs["attention_mask"][row].nonzero()[:, 0]
            self._check_length(example, len(places))
            learnt = self._learnt(one, inputs["input_ids"][row, places], example.where)
            labels[row, places[learnt]] = inputs["input_ids"][row, places[learnt]]
        return {**inputs, "labels": labels}

    def _check_length(self, example: Example, length: int) -> None:
        if length > self.context:
            raise TuneError(f"{example.where}: {length} tokens; the model's context has {self.context}")

    def _write(self, example: Example) -> _Text:
        """The conversation by the chat template; the last answer ends with a token that ends answers, if there is one.

        An answer is what the template adds to a prompt that asks for one.
        """
        text = self._rendered(example.messages)
        answers = []
        for number, message in enumerate(example.messages):
            if message["role"] != "assistant":
                continue
            prompt = self._rendered(example.messages[:number], add_generation_prompt=True)
            if not text.startswith(prompt):
                raise TuneError(f"{example.where}: the chat template writes a conversation otherwise than its prompt")
            end = _shared(text, self._rendered(example.messages[: number + 1]))
            answers.append((len(prompt), self._end_of_answer(text, len(prompt), end)))
        start, end = answers[-1]
        if self.ends and not text[start:end].endswith(self.ends):
            text = text[:end] + self.ends[0]
            answers[-1] = (start, len(text))
        return _Text(text, answers)

    def _end_of_answer(self, text: str, start: int, end: int) -> int:
        found = [text.find(token, start, end) + len(token) for token in self.ends if token in text[start:end]]
        return min(found, default=start + len(text[start:end].rstrip()))

    def _rendered(self, messages: Sequence[Message], **options: Any) -> str:
        template = {} if self.template is None else {"chat_template": self.template}
        return self.processor.apply_chat_template(list(messages), **template, **options)

    def _process(self, examples: Sequence[Example], **options: Any) -> dict[str, Tensor]:
        """The processor's inputs for the texts in `options`, and the examples' images."""
        processor: Any = self.processor
        images = [list(example.images) for example in examples]
        try:
            return dict(processor(images=images, padding=True, return_tensors="pt", **options))
        except ValueError as error:
            places = ", ".join(example.where for example in examples)
            raise TuneError(f"{places}: {type(processor).__name__}: {' '.join(str(error).split())}") from None

    def _special(self, text: str) -> dict[str, bool]:
        """As in `apply_chat_template`: what the template writes, the tokenizer is not to write again."""
        begin = self.tokenizer.bos_token
        return {"add_special_tokens": False} if begin and text.startswith(begin) else {}

    def _learnt(self, one: _Text, ids: Tensor, where: str) -> Tensor:
        """Which of a conversation's tokens are answers: their indices in `ids`.

        The tokenizer says it of the text as it is, in which an image is one placeholder. Images come before the first
        answer, so that from there on both have the same tokens: counted from the end.
        """
        tokens = self.tokenizer(one.text, return_offsets_mapping=True, **self._special(one.text))
        spans = tokens["offset_mapping"]
        learnt = [i for i, span in enumerate(spans) if any(_overlap(span, answer) for answer in one.answers)]
        tail = len(spans) - learnt[0]
        if ids[-tail:].tolist() != tokens["input_ids"][-tail:]:
            raise TuneError(f"{where}: {type(self.processor).__name__} writes the answer otherwise than its tokenizer")
        return torch.tensor(learnt) + (len(ids) - len(spans))


class PrefixCollator(Collator):
    """For PaliGemma: a question is a prefix, read in both directions, its answer the suffix; there are no turns."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See `Collator`; what the processor's own labels are."""
        for example in examples:
            if [message["role"] for message in example.messages] != ["user", "assistant"]:
                raise TuneError(f"{example.where}: PaliGemma takes one question and one answer")
        inputs = self._process(
            examples,
            text=[self._text(example.messages[0]) for example in examples],
            suffix=[self._text(example.messages[1]) for example in examples],
        )
        for example, mask in zip(examples, inputs["attention_mask"], strict=True):
            self._check_length(example, int(mask.sum()))
        return {**inputs, "labels": inputs["labels"].masked_fill(inputs["attention_mask"] == 0, IGNORED)}

    @staticmethod
    def _text(message: Message) -> str:
        parts = message["content"]
        return "".join(PLACEHOLDER if part["type"] == "image" else part["text"] for part in parts)


def collator(model: PreTrainedModel, processor: ProcessorMixin) -> Collator:
    """The one for the processor. Raises as `Collator`."""
    return (PrefixCollator if isinstance(processor, PaliGemmaProcessor) else Collator)(model, processor)


def _shared(text: str, other: str) -> int:
    """How many first characters are the same."""
    return next(
        (i for i, (one, two) in enumerate(zip(text, other, strict=False)) if one != two), min(len(text), len(other))
    )


def _overlap(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(span[0], other[0]) < min(span[1], other[1])


def _ends(model: PreTrainedModel, tokenizer: Any) -> tuple[str, ...]:
    """The tokens that end an answer, as text; none where the model's generation does not end by one."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = [] if ids is None else [ids] if isinstance(ids, int) else ids
    own = [tokenizer.eos_token] if tokenizer.eos_token else []
    return tuple(dict.fromkeys([*own, *tokenizer.convert_ids_to_tokens(ids)]))
