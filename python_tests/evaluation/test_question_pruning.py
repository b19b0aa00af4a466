"""FastV and SparseVLM drop what they say: by the question's attention, and for the layers that they say."""

from __future__ import annotations

import pytest
import torch
from support.evaluation import needs_packages
from transformers import LlamaConfig, LlamaModel

from evaluation import checkpoint, measure, question_pruning
from evaluation.__main__ import KEPT
from evaluation.providers import ALL_TOKENS, PROVIDERS
from evaluation.question_pruning import ASKING, last_word, pruned_forward, raters

VISUAL, WORDS, QUESTIONS, KEPT_TOKENS = 12, 3, 2, 4


@pytest.fixture
def language_model() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        initializer_range=0.5,
        attn_implementation="eager",
    )
    return LlamaModel(config).eval()


@pytest.fixture
def inputs(rng) -> tuple[torch.Tensor, torch.Tensor]:
    """<bos> and visual tokens of two images; words of two questions about each."""
    return torch.randn(2, 1 + VISUAL, 16, generator=rng), torch.randn(2 * QUESTIONS, WORDS, 16, generator=rng)


def _stays(*tokens: int):
    return lambda attention: torch.tensor(tokens).expand(len(attention), -1)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [False, True])
def test_with_all_tokens_it_is_the_model(language_model, inputs, at_once):
    image, words = inputs
    read = pruned_forward(language_model, image, words, _stays(*range(VISUAL)), at_once=at_once)
    whole = torch.cat([image.repeat_interleave(QUESTIONS, 0), words], 1)
    expected = language_model(inputs_embeds=whole).last_hidden_state
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_was_dropped_is_seen_by_the_first_layer_alone(language_model, inputs):
    """As if every layer but the first were told not to look at it: with all tokens, and a mask for these layers."""
    image, words = inputs
    read = pruned_forward(language_model, image, words, _stays(1, 4, 5, 11), at_once=False)
    whole = torch.cat([image.repeat_interleave(QUESTIONS, 0), words], 1)
    seen = torch.zeros(whole.shape[1], dtype=torch.bool)
    seen[[0, 2, 5, 6, 12, 13, 14, 15]] = True

    def do_not_look(module, args, options):
        return args, options | {"attention_mask": options["attention_mask"].masked_fill(~seen, -1e9)}

    for layer in language_model.layers[1:]:
        layer.register_forward_pre_hook(do_not_look, with_kwargs=True)
    mask = torch.full((len(seen), len(seen)), -1e9).triu(1).expand(len(whole), 1, -1, -1)
    expected = language_model(inputs_embeds=whole, attention_mask=mask).last_hidden_state[:, seen]
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_at_once_nothing_of_it_is_left(language_model, inputs):
    image, words = inputs
    read = {once: pruned_forward(language_model, image, words, _stays(1, 4), at_once=once) for once in (True, False)}
    image[:, [4, 12]] += 1  # the visual tokens 3 and 11, which were dropped
    for once, before in read.items():
        after = pruned_forward(language_model, image, words, _stays(1, 4), at_once=once)
        assert before.shape == after.shape == (4, 1 + 2 + WORDS, 16)
        assert torch.equal(before, after) == once


@torch.no_grad()
def test_attention_is_that_of_the_words_to_all_tokens(language_model, inputs):
    image, words = inputs
    seen = []

    def stays(attention):
        seen.append(attention)
        return _stays(0)(attention)

    pruned_forward(language_model, image, words, stays, at_once=True)
    whole = torch.cat([image.repeat_interleave(QUESTIONS, 0), words], 1)
    expected = language_model(inputs_embeds=whole, output_attentions=True).attentions[0][:, :, -WORDS:]
    torch.testing.assert_close(seen[0], expected)


def test_fastv_rates_by_the_last_word(rng):
    attention = torch.rand(2, WORDS, VISUAL, generator=rng)
    assert torch.equal(last_word(attention, torch.empty(0), torch.empty(0)), attention[:, 2])


def test_sparsevlm_rates_by_words_about_the_image(rng):
    """Of three words one resembles the visual tokens: it alone rates."""
    attention = torch.rand(1, WORDS, VISUAL, generator=rng)
    visual = torch.randn(1, 1, 16, generator=rng).expand(1, VISUAL, 16)
    words = torch.stack([-visual[0, 0], visual[0, 0], -visual[0, 0]])[None]
    assert torch.equal(raters(attention, visual, words), attention[:, 1])


@needs_packages
def test_the_trained_model_keeps_what_is_asked_for_and_loses_what_is_asked_next():
    """With all tokens the model answers as ever; with few, the question that chose is answered better."""
    model, processor = checkpoint.load(KEPT)
    asked = measure.examination("validation", 20)

    def right(provider, tokens):
        return measure.examine(model, processor, asked, provider, tokens)

    expected = right(ALL_TOKENS, checkpoint.IMAGE_TOKENS)
    for provider in ASKING:
        agree = right(provider, checkpoint.IMAGE_TOKENS) == expected
        assert agree.float().mean() > 0.99  # sums in another order, of logits that may be close
    own, next_one = (right(PROVIDERS[f"FastV at once{turn}"], 16) for turn in ("", ", next question"))
    assert own.float().mean() > next_one.float().mean() + 0.1


@needs_packages
def test_the_next_question_finds_the_tokens_of_the_one_before(monkeypatch):
    model, processor = checkpoint.load(KEPT)
    asked = measure.examination("validation", 2)
    texts = [[question.text for question in own] for own in asked.questions]
    images = [scene.image for scene in asked.scenes]
    chosen = []
    forward = pruned_forward

    def noted(language_model, image, words, stays, *, at_once):
        def note(attention):
            chosen.append(stays(attention))
            return chosen[-1]

        return forward(language_model, image, words, note, at_once=at_once)

    monkeypatch.setattr(question_pruning, "pruned_forward", noted)
    for name in ("FastV", "FastV, next question"):
        with PROVIDERS[name].applied(model, processor, KEPT_TOKENS) as answer:
            answer(model, processor, images, texts)
    own, of_the_one_before = (tokens.unflatten(0, (2, -1)) for tokens in chosen)
    assert own.shape == (2, measure.QUESTIONS, KEPT_TOKENS)
    assert torch.equal(of_the_one_before[:, 1:], own[:, :-1])
    assert not torch.equal(own[:, 1:], own[:, :-1])
