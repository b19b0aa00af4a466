"""positions="kept", of every family: each token stands where it stands in the unmodified model's prompt."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compressed_families import (
    NEW,
    QUESTION,
    answer,
    as_embeddings,
    image_features,
    repeats_pixels_wrongly,
    tokens_of,
    with_video,
)
from support.positions import K, compressed, counting_families, kept, model_of, positions_seen
from support.tiny_families import FAMILIES, FRAMES, VIDEO_TOKEN, videos
from support.tiny_models import IMAGE_TOKEN, PATCHES

from visionzip_ext import compress, last_zip, restore

TEXT = [QUESTION, "USER : <image> a cat"]
without_cls = pytest.mark.parametrize("family", [f for f in FAMILIES if not f.has_cls], ids=str)


def inputs_of(family, processor, side="left"):
    processor.tokenizer.padding_side = side
    return processor(images=family.images(2), text=TEXT, return_tensors="pt", padding=True)


def counted(mask: torch.Tensor, first: int = 0) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0) + first


@counting_families
def test_text_stands_where_it_stands_among_all_tokens(family):
    model, processor = compressed(family, **kept(family))
    seen = positions_seen(model, family)
    inputs, stock = (inputs_of(family, p) for p in (processor, family.processor()))
    answer(model, inputs)
    ours, theirs = ((x["input_ids"] != IMAGE_TOKEN) & x["attention_mask"].bool() for x in (inputs, stock))
    one_based = family.name == "PaliGemma"
    assert torch.equal(seen[0][ours], counted(stock["attention_mask"], one_based)[theirs])
    ends = stock["attention_mask"].sum(1, keepdim=True) + one_based
    assert torch.equal(torch.cat(seen[1:], 1), ends + torch.arange(NEW - 1))


@counting_families
def test_kept_tokens_stand_where_the_unmodified_model_has_them(family):
    """Told by their features, which are those of the unmodified model where nothing is merged."""
    model, processor = model_of(family), family.processor()
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    stock = image_features(model, inputs)
    where = counted(inputs["attention_mask"])[inputs["input_ids"] == IMAGE_TOKEN]
    compress(model, processor, dominant=K, contextual=0, **kept(family))
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    seen = positions_seen(model, family)
    with torch.no_grad():
        model(**inputs)
    got = (seen[0] - int(family.name == "PaliGemma"))[0][inputs["input_ids"][0] == IMAGE_TOKEN]
    distance = torch.cdist(image_features(model, inputs), stock, compute_mode="donot_use_mm_for_euclid_dist")
    same = distance < 1e-3
    found = same.sum(1) == 1
    assert int(found.sum()) >= (K - family.has_cls) * len(stock) // (2 * PATCHES)
    assert torch.equal(got[found], where[same[found].int().argmax(1)])


@without_cls
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_the_unmodified_models_with_the_dropped_tokens_masked(family, side):
    """Nothing is merged then; no position of the unmodified model is changed."""
    if family.tiled:
        pytest.skip("newlines of rows that are left have no counterpart that could be masked alone")
    model, processor = model_of(family), family.processor()
    full = inputs_of(family, processor, side)
    compress(model, processor, dominant=K, contextual=0, positions="kept")
    inputs = inputs_of(family, processor, side)
    one_based = family.name == "PaliGemma"
    positions = counted(full["attention_mask"], one_based)
    real = inputs["attention_mask"].bool()
    seen = positions_seen(model, family)
    with torch.no_grad():
        logits = model(**inputs).logits[real]
    full["attention_mask"][full["input_ids"] == IMAGE_TOKEN] = (last_zip(model).assignment >= 0).flatten().long()
    shown = full["attention_mask"].bool()
    with torch.no_grad():
        masked = model_of(family)(**full, position_ids=positions).logits[shown]
    torch.testing.assert_close(logits, masked, rtol=1e-4, atol=1e-4)
    assert (seen[0][real].diff() != 1).any(), "nothing was dropped"


@counting_families
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_the_unmodified_models_at_the_same_embeddings_and_positions(family, side):
    model, processor = compressed(family, **kept(family))
    inputs = inputs_of(family, processor, side)
    seen = positions_seen(model, family)
    with torch.no_grad():
        logits = model(**inputs).logits
        untouched = model_of(family)(**as_embeddings(model, inputs), position_ids=seen[0]).logits
        renumbered = model_of(family)(**as_embeddings(model, inputs)).logits
    assert torch.equal(logits, untouched)
    assert not torch.allclose(logits, renumbered, atol=1e-2), "positions make no difference"


@counting_families
def test_cached_generation_is_that_of_whole_prompts(family):
    """The cache carries along where the tokens to come stand; here each token is generated without."""
    model, processor = compressed(family, **kept(family))
    inputs = inputs_of(family, processor)
    generated = answer(model, inputs)
    longer = {name: values for name, values in inputs.items() if name != "labels"}
    for step in range(NEW):
        with torch.no_grad():
            logits = model(**longer, use_cache=False).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        assert torch.equal(logits.argmax(-1), generated[:, step])
        for name, more in (("input_ids", logits.argmax(-1)), ("attention_mask", 1), ("token_type_ids", None)):
            if name in longer:
                # PaliGemma's answer is seen by what comes after it alone
                more = int(family.name == "PaliGemma") if more is None else more
                column = longer[name].new_zeros(len(generated)) + more
                longer[name] = torch.cat([longer[name], column[:, None]], 1)


@counting_families
@repeats_pixels_wrongly
def test_beam_search(family):
    model, processor = compressed(family, **kept(family))
    inputs = inputs_of(family, processor)
    seen = positions_seen(model, family)
    several = answer(model, inputs, num_beams=3)
    first = seen[0]
    assert torch.equal(first, first[::3].repeat_interleave(3, 0))
    seen.clear()
    assert torch.equal(answer(model, inputs, num_beams=3, use_cache=False), several)
    assert torch.equal(seen[0], first)


@counting_families
def test_second_turn_with_the_cache_kept(family):
    model, processor = compressed(family, **kept(family))
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    first = model.generate(**inputs, **options, return_dict_in_generate=True)
    turn = processor.tokenizer("USER : what is the dog", return_tensors="pt", add_special_tokens=False)["input_ids"]
    ids = torch.cat([first.sequences, turn], 1)
    both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    everything = dict(inputs) | both
    if "token_type_ids" in inputs:
        types = inputs["token_type_ids"]
        everything["token_type_ids"] = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
    seen = positions_seen(model, family)
    again = model.generate(**everything, **options)
    expected = [positions[:, -turn.shape[1] :] for positions in seen[:1]] + seen[1:]
    seen.clear()
    kept_cache = model.generate(**both, past_key_values=copy.deepcopy(first.past_key_values), **options)
    assert torch.equal(kept_cache, again)
    assert torch.equal(seen[0][:, -turn.shape[1] :], expected[0])
    assert all(torch.equal(*pair) for pair in zip(seen[1:], expected[1:], strict=True))


@with_video
def test_text_after_a_video(family):
    model, processor = compressed(family, **kept(family))
    text = "USER : <video> what is <image> this"
    both = {"images": family.images(1), "videos": videos(1), "text": text, "return_tensors": "pt"}
    seen = positions_seen(model, family)
    inputs, stock = (p(**both) for p in (processor, family.processor()))
    with torch.no_grad():
        model(**inputs)
    ours, theirs = ((x["input_ids"] != IMAGE_TOKEN) & (x["input_ids"] != VIDEO_TOKEN) for x in (inputs, stock))
    assert torch.equal(seen[0][ours], counted(stock["attention_mask"])[theirs])
    in_video = seen[0][inputs["input_ids"] == VIDEO_TOKEN]
    where = counted(stock["attention_mask"])[stock["input_ids"] == VIDEO_TOKEN]
    assert set(in_video.tolist()) <= set(where.tolist())
    frame = (in_video[: FRAMES * (K + 2)] - where[0]).view(FRAMES, -1) // ((len(where) - family.newlines) // FRAMES)
    assert torch.equal(frame, torch.arange(FRAMES)[:, None].expand_as(frame))


@counting_families
def test_restore_leaves_nothing(family):
    model, processor = model_of(family), family.processor()
    before = dict(model.__dict__), dict(model.model.__dict__)
    hooks = [len(hooks) for part in model.modules() for hooks in (part._forward_pre_hooks, part._forward_hooks)]
    compress(model, processor, dominant=K, contextual=2, **kept(family))
    compress(model, processor, dominant=K + 1, contextual=2, **kept(family))
    restore(model, processor)
    assert (dict(model.__dict__), dict(model.model.__dict__)) == before
    assert hooks == [len(hooks) for part in model.modules() for hooks in (part._forward_pre_hooks, part._forward_hooks)]


@counting_families
def test_a_copy_keeps_positions_by_itself(family):
    model, processor = compressed(family, **kept(family))
    inputs = inputs_of(family, processor)
    expected = answer(model, inputs)
    twin = copy.deepcopy(model)
    restore(model, processor)
    assert torch.equal(answer(twin, inputs), expected)
    seen = positions_seen(twin, family)
    answer(twin, inputs)
    assert int(seen[0].max()) > sum(tokens_of(inputs))
    restore(twin)
    assert "generate" not in twin.__dict__
