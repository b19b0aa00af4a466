"""Methods that ask the question: FastV and SparseVLM drop visual tokens inside the language model, by its attention.

As published, all visual tokens enter, the first layers see them all, and after these only those stay which the question
attended to most, at the positions that they had. One of this language model's three layers is a third of it, in which
much is already read; of the 32 of LLaVA-1.5 FastV leaves two. So there is the other end, too, "at once": the first
layer's attention decides, and the first layer already sees few.

What stays was chosen for one question: a cache that is pruned so serves the next one less well.

Simplified: one layer prunes, once, to a fixed number; SparseVLM's adaptive number and its recycling of dropped tokens
are left out. The layer that sees all tokens is not counted, which is in these methods' favour.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel, LlavaForConditionalGeneration, LlavaProcessor

from evaluation.checkpoint import IMAGE_TOKENS
from evaluation.provider import Answer, Provider

Rating = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(attention (N, L, visual) of a question's L words, visual embeddings (N, visual, C), words' embeddings (N, L, C))
-> (N, visual): the highest stay. Attention is the mean over heads."""

_VISUAL = slice(1, 1 + IMAGE_TOKENS)  # after <bos>


def last_word(attention: Tensor, visual: Tensor, words: Tensor) -> Tensor:
    """FastV (Chen et al. 2024, sec. 4.1): what the last token attends to."""
    return attention[:, -1]


def raters(attention: Tensor, visual: Tensor, words: Tensor) -> Tensor:
    """SparseVLM (Zhang et al. 2024, sec. 3.2): what those words attend to that are rate highest over the image."""
    about = (visual @ words.transpose(1, 2)).softmax(-1).mean(1)
    rates = about >= about.mean(1, keepdim=True)
    return (attention * rates[..., None]).sum(1) / rates.sum(1, keepdim=True)


@torch.inference_mode()
def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Sequence[Image.Image],
    questions: Sequence[Sequence[str]],
    *,
    tokens: int,
    rating: Rating,
    at_once: bool,
    turn: int,
) -> list[str]:
    """As `answers.generated`, after `tokens` visual tokens were kept.

    Args:
        model: as it is.
        processor: the same.
        images: B of them.
        questions: Q about each image.
        tokens: visual tokens that stay.
        rating: which.
        at_once: the first layer, too, sees these alone.
        turn: 0: each question finds the tokens that it chose. 1: those that the question before it chose, as the
            second turn of a conversation does; the first question's are then chosen by the last. A visual token does
            not see the words after it, so this is what a pruned cache would hold.
    """
    language_model = model.model.language_model
    read = processor(images=list(images), text=["<image>"] * len(images), return_tensors="pt")
    visual = torch.stack(list(model.model.get_image_features(read["pixel_values"]).pooler_output))
    embeddings = language_model.get_input_embeddings()
    texts = [text for asked in questions for text in asked]
    ids = processor.tokenizer(texts, add_special_tokens=False, return_tensors="pt")["input_ids"]
    image, words = torch.cat([embeddings(read["input_ids"][:, :1]), visual], 1), embeddings(ids)
    number = len(questions[0])

    def stays(attention: Tensor) -> Tensor:
        ratings = rating(attention.mean(1)[..., _VISUAL], visual.repeat_interleave(number, 0), words)
        ratings = ratings.unflatten(0, (-1, number)).roll(turn, 1).flatten(0, 1)
        return ratings.topk(tokens).indices.sort(1).values

    last = pruned_forward(language_model, image, words, stays, at_once=at_once)[:, -1]
    return [word.strip() for word in processor.batch_decode(model.lm_head(last).argmax(-1)[:, None])]


def pruned_forward(
    language_model: LlamaModel, image: Tensor, words: Tensor, stays: Callable[[Tensor], Tensor], *, at_once: bool
) -> Tensor:
    """The language model's last hidden states (B Q, 1 + k + L, C) of the tokens that stay.

    Args:
        language_model: with attention "eager".
        image: (B, 1 + visual, C): <bos> and the visual tokens, which no word is before.
        words: (B Q, L, C): the words of Q questions about each image.
        stays: attention of the first layer (B Q, heads, L, tokens) -> (B Q, k) visual tokens, ascending.
        at_once: the first layer runs again, with the k alone.
    """
    first, *others = language_model.layers
    number, start = len(words) // len(image), image.shape[1]
    positions = torch.arange(start + words.shape[1])[None]
    cache = DynamicCache()
    image_read = _through([first], language_model, image, positions[:, :start], cache)
    cache.batch_repeat_interleave(number)
    with _recorded(first.self_attn) as attention:
        words_read = _through([first], language_model, words, positions[:, start:], cache)
    layers, image, words = (language_model.layers, image, words) if at_once else (others, image_read, words_read)
    hidden = torch.cat([image.repeat_interleave(number, 0), words], 1)
    positions = positions.expand(hidden.shape[:2])
    left = torch.cat([positions[:, :1], 1 + stays(*attention), positions[:, start:]], 1)
    hidden = hidden.gather(1, left[..., None].expand(-1, -1, hidden.shape[2]))
    return language_model.norm(_through(layers, language_model, hidden, left, DynamicCache()))


def _through(
    layers: Sequence[nn.Module], language_model: LlamaModel, hidden: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
    past, length = cache.get_seq_length(), hidden.shape[1]
    mask = torch.full((length, past + length), torch.finfo(hidden.dtype).min).triu(1 + past)[None, None]
    rotary = language_model.rotary_emb(hidden, position_ids=positions)
    for layer in layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=cache)
    return hidden


@contextlib.contextmanager
def _recorded(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Of the forwards inside: (N, heads, tokens, tokens)."""
    weights: list[Tensor] = []
    hook = attention.register_forward_hook(lambda module, args, output: weights.append(output[1]))
    try:
        yield weights
    finally:
        hook.remove()


@contextlib.contextmanager
def eager(language_model: LlamaModel) -> Iterator[None]:
    """Inside, its attention hands out its weights."""
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)


def _provider(name: str, rating: Rating, *, at_once: bool, turn: int) -> Provider:
    @contextlib.contextmanager
    def applied(model: LlavaForConditionalGeneration, processor: LlavaProcessor, tokens: int) -> Iterator[Answer]:
        with eager(model.model.language_model):
            yield partial(answers, tokens=tokens, rating=rating, at_once=at_once, turn=turn)

    return Provider(name, applied)


ASKING = tuple(
    _provider(name + when + turn, rating, at_once=bool(when), turn=int(bool(turn)))
    for name, rating in (("FastV", last_word), ("SparseVLM", raters))
    for when in ("", " at once")
    for turn in ("", ", next question")
)
"""Each as published and at once; for the question that chose, and for the one after it."""
