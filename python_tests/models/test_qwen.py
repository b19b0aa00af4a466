"""What is peculiar to a compressed Qwen-VL: images of any size, videos, positions, DeepStack.

Beside it every test of families runs on these models.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import threading

import pytest
import torch
from support import tiny_families
from support.compressed_qwen import (
    NEW,
    TEXT,
    K,
    M,
    all_features,
    answer,
    asked,
    asked_of_videos,
    compressed,
    families,
    features,
    needs_encoder_outputs,
    positions_seen,
    tokens_left,
    tokens_of,
)
from support.tiny_families import VIDEO_TOKEN
from support.tiny_models import IMAGE_TOKEN
from support.tiny_qwen import images, videos
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from visionzip_ext import compress, last_zip, restore

# What the library itself sets in a forward.
_BY_TRANSFORMERS = {"_output_capturing_hooks_installed", "rope_deltas"}
_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@families
def test_placeholders_features_and_decision_agree(family):
    model, processor = compressed(family, keep=0.25, min_tokens=3, max_tokens=5)
    inputs = asked(processor, text=TEXT)
    counts = [len(rows) for rows in features(model, inputs)]
    assert all(3 <= count <= 5 for count in counts)
    assert tokens_of(inputs) == [counts[0], counts[1], counts[2] + counts[3], 0]
    decisions = last_zip(model)
    assert [d.dominant + d.contextual for d in decisions] == counts
    full = asked(family.processor(), text=TEXT)
    assert [d.assignment.shape[1] for d in decisions][:2] == tokens_of(full)[:2]


@families
def test_every_temporal_patch_of_a_video_has_the_budget(family):
    model, processor = compressed(family)
    inputs = asked_of_videos(family, processor)
    assert tokens_of(inputs, VIDEO_TOKEN) == [3 * (K + M), 2 * (K + M)]
    assert answer(model, inputs).shape == (2, NEW)
    model, processor = compressed(family, dominant=9, contextual=2, budget_per="image")
    assert tokens_of(asked_of_videos(family, processor), VIDEO_TOKEN) == [11, 11]


@families
def test_image_and_video_in_one_prompt(family):
    model, processor = compressed(family)
    text = ["USER : <image> what <video> is this", "<video> a <image> cat"]
    inputs = processor(images=images(2), videos=videos(family, 2), text=text, return_tensors="pt", padding=True)
    inputs.pop("video_metadata", None)
    assert tokens_of(inputs) == [K + M] * 2
    assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False))


@families
@pytest.mark.parametrize("padding", ["max_length", False])
def test_lists_and_padding(family, padding):
    _, processor = compressed(family)
    length = {"max_length": 90} if padding else {}
    result = processor(images=images(2), text=TEXT[:2], padding=padding, **length)
    lengths = [len(row) for row in result["input_ids"]]
    others = [len(prompt.split()) + 1 for prompt in TEXT[:2]]  # an image stands between two tokens of its own
    assert lengths == ([90, 90] if padding else [K + M + number for number in others])
    assert [sum(row) for row in result["attention_mask"]] == [K + M + number for number in others]


@families
def test_positions_of_a_second_turn_go_on_where_they_were(family):
    """With the cache kept, without the encoder; as in a prompt of both turns."""
    model, processor = compressed(family)
    inputs = asked(processor)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    first = model.generate(**inputs, **options, return_dict_in_generate=True)
    turn = processor.tokenizer("USER : what is the dog", return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = torch.cat([first.sequences, turn], 1)
    mask, decision = torch.ones_like(ids), last_zip(model)
    seen = positions_seen(model)
    kept = model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **options)
    assert last_zip(model) is decision
    whole = dict(inputs) | {"input_ids": ids, "attention_mask": mask}
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = (ids == IMAGE_TOKEN).to(whole["mm_token_type_ids"].dtype)
    went_on = seen[0][-1, 0]
    seen.clear()
    assert torch.equal(kept, model.generate(**whole, **options))
    assert torch.equal(went_on, seen[0][-1, 0, -len(went_on) :])


@needs_encoder_outputs
@families
def test_features_that_were_made_earlier_keep_their_own_positions(family):
    model, processor = compressed(family)
    one, other = asked(processor), asked(processor, seed=7)
    expected = answer(model, one)
    with torch.no_grad():
        early = model.model.get_image_features(one["pixel_values"], one["image_grid_thw"], return_dict=True)
        model.model.get_image_features(other["pixel_values"], other["image_grid_thw"])
    given = {name: value for name, value in one.items() if name != "pixel_values"}
    assert torch.equal(answer(model, given, mm_encoder_outputs={"image": early}), expected)


@families
def test_the_encoder_runs_once(family):
    model, processor = compressed(family)
    runs = []
    model.model.visual.register_forward_hook(lambda *arguments: runs.append(1))
    answer(model, asked(processor, text=TEXT))
    assert len(runs) == 1


@families
def test_threads_do_not_take_each_others_positions(family):
    """Both have made their features before either goes on."""
    model, processor = compressed(family)
    batches = [asked(processor, seed=seed) for seed in range(2)]
    with torch.no_grad():
        alone = [model(**batch).logits for batch in batches]
    barrier = threading.Barrier(2)

    def meet(*arguments: object) -> None:
        barrier.wait(30)

    model.model.language_model.register_forward_pre_hook(meet, prepend=True)
    got: dict[int, torch.Tensor] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            got[number] = model(**batches[number]).logits

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, logits in enumerate(alone):
        torch.testing.assert_close(got[number], logits)


@families
def test_kept_rows_are_the_models_own_and_deepstack_goes_the_same_way(family):
    """In raster order, with the merged ones between them."""
    model, processor = compressed(family)
    inputs = asked(processor, text=TEXT)
    ours = all_features(model, inputs)
    stock = all_features(family.model(), inputs)
    assert len(ours) == len(stock) == (3 if family.deepstack else 1)
    decision = last_zip(model)
    first, row = 0, 0
    for one, tokens in zip(decision, tokens_left(decision), strict=True):
        kept = one.indices[0].tolist()
        for mine, theirs in zip(ours, stock, strict=True):
            for offset, token in enumerate(tokens):
                same = torch.allclose(mine[row + offset], theirs[first + token], rtol=1e-4, atol=1e-4)
                assert same == (token in kept)
        first, row = first + one.assignment.shape[1], row + len(tokens)


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training(family, checkpointing):
    model, processor = compressed(family)
    inputs = asked(processor, text=TEXT)
    labels = (
        inputs["input_ids"]
        .masked_fill(inputs["attention_mask"] == 0, -100)
        .masked_fill_(inputs["input_ids"] == IMAGE_TOKEN, -100)
    )
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    for part in ("merger", "language_model", "visual.blocks"):
        gradients = [p.grad for name, p in model.named_parameters() if part in name and p.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients), part
    copy.deepcopy(model)


@families
def test_restore_leaves_everything_as_it_was(family):
    model, processor = family.model(), family.processor()
    attributes = [(m, dict(m.__dict__)) for m in model.modules()]
    hooks = [[list(getattr(m, table)) for table in _HOOK_TABLES] for m in model.modules()]
    kind, state, settings = type(processor), dict(processor.__dict__), model.config.to_dict()
    compress(model, processor, keep=0.3)
    answer(model, asked(processor, text=TEXT))
    restore(model, processor)
    assert model.config.to_dict() == settings
    assert type(processor) is kind
    assert processor.__dict__.keys() == state.keys()
    assert [[list(getattr(m, table)) for table in _HOOK_TABLES] for m in model.modules()] == hooks
    for module, before in attributes:
        assert module.__dict__.keys() - _BY_TRANSFORMERS == before.keys() - _BY_TRANSFORMERS
        assert all(
            module.__dict__[name] is before[name]
            for name in before
            if name not in _HOOK_TABLES and name not in _BY_TRANSFORMERS
        )
    inputs = asked(processor, text=TEXT)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, family.model()(**inputs).logits)


@families
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(family, duplicate):
    model, processor = compressed(family)
    inputs = asked(processor, text=TEXT)
    with torch.no_grad():
        expected = model(**inputs).logits
    twin, its_processor = duplicate(model), copy.deepcopy(processor)
    restore(model, processor)
    assert tokens_of(asked(its_processor, text=TEXT)) == tokens_of(inputs)
    with torch.no_grad():
        torch.testing.assert_close(twin(**inputs).logits, expected)
    restore(twin, its_processor)
    assert tokens_of(asked(its_processor, text=TEXT)) == tokens_of(asked(family.processor(), text=TEXT))


@families
def test_an_image_is_the_same_in_any_batch(family):
    model, processor = compressed(family)
    together = asked(processor, text=TEXT)
    alone = asked(processor, text=TEXT[:1])
    seen = positions_seen(model)
    torch.testing.assert_close(features(model, together)[0], features(model, alone)[0], rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        model(**together)
        model(**alone)
    length = alone["input_ids"].shape[1]
    assert torch.equal(seen[0][:, :1, -length:], seen[1])


@families
def test_a_fixed_budget_above_an_images_cells(family):
    _, processor = compressed(family, dominant=54, contextual=10)
    with pytest.raises(ValueError, match=r"ask for 64 tokens of an image, but one of \d+ x \d+ tokens has .*keep="):
        asked(processor)


@families
def test_processor_of_another_model(family):
    with pytest.raises(TypeError, match="processor must be the model's Qwen"):
        compress(family.model(), tiny_families.FAMILIES[0].processor())
    processor = family.processor()
    processor.image_processor.patch_size = 12
    with pytest.raises(ValueError, match="patch_size is 12, but the model's vision tower has"):
        compress(family.model(), processor)


@families
def test_prompts_of_a_processor_that_was_not_compressed(family):
    model, _ = compressed(family)
    inputs = asked(family.processor())
    message = r"placeholders in a row, which image_grid_thw .* do not make|tokens do not match"
    with pytest.raises(ValueError, match=message):
        answer(model, inputs)


@families
def test_flash_attention_of_all_images_at_once(family, monkeypatch):
    """By a stand-in for the GPU's: the deciding layer alone takes image after image, and decides as under SDPA."""
    lengths: list[list[int]] = []

    def flash(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
        ends = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
        lengths.append([end - start for start, end in itertools.pairwise(ends)])
        parts = zip(*(x.split(lengths[-1], 2) for x in (query, key, value)), strict=True)
        rows = [torch.nn.functional.scaled_dot_product_attention(*part, scale=scaling) for part in parts]
        return torch.cat(rows, 2).transpose(1, 2), None

    model, processor = compressed(family)
    inputs = asked(processor, text=TEXT)
    expected, decided = features(model, inputs), last_zip(model)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash)
    model.model.visual.config._attn_implementation = "flash_attention_2"
    for ours, theirs in zip(features(model, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(last_zip(model), decided, strict=True):
        assert torch.equal(ours.assignment, theirs.assignment)
    images_patches = inputs["image_grid_thw"].prod(1).tolist()
    assert [each for each in lengths if len(each) == 1] == [[patches] for patches in images_patches]
    assert [sum(each) for each in lengths if len(each) > 1] == [sum(images_patches)] * 3


@families
def test_an_attention_implementation_from_the_beginning(family):
    model, processor = compressed(family)
    inputs = asked(processor, text=TEXT)
    expected = features(model, inputs)
    for name in ("eager", "sdpa"):
        other, same = family.model(), family.processor()
        other.set_attn_implementation(name)
        compress(other, same, dominant=K, contextual=M)
        assert other.model.visual.config._attn_implementation == name
        for ours, theirs in zip(features(other, inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@families
def test_positions_are_always_kept(family):
    model, processor = compressed(family)
    assert model.config.visionzip["positions"] == "kept"
    inputs = asked(processor)
    expected = answer(model, inputs)
    assert torch.equal(answer(compress(model, processor, dominant=K, contextual=M, positions="kept"), inputs), expected)
    with pytest.raises(ValueError, match=r'positions="renumbered" has no meaning for .* 3D positions .* takes "kept"'):
        compress(model, processor, dominant=K, contextual=M, positions="renumbered")
