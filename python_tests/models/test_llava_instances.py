"""compress changes one instance: other models, copies, threads and classes stay as they are."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import TOKENS, K, M, answer, placeholders
from support.tiny_models import PATCHES, features
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig
from transformers.models.clip import modeling_clip
from transformers.models.llava import modeling_llava

from visionzip_ext import compress, last_zip, restore


def test_a_second_model_of_the_same_config_object():
    config = tiny.llava_config()
    first, second = tiny.llava(config), tiny.llava(config, seed=1)
    expected = features(second, tiny.pixels(1))
    compress(first, dominant=K, contextual=M)
    assert torch.equal(features(second, tiny.pixels(1)), expected)
    assert second.config.vision_config._attn_implementation != "visionzip"
    with pytest.raises(ValueError, match="not compressed"):
        last_zip(second)


def test_clip_text_and_vision_encoder_and_the_classes(model):
    text = CLIPTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=tiny.vision_config().to_dict())).eval()
    inputs = {"input_ids": torch.arange(8)[None], "pixel_values": tiny.pixels(1)}

    def state():
        with torch.no_grad():
            outputs = clip(**inputs)
        return outputs.text_embeds, outputs.image_embeds

    def classes():
        return {
            (name, attribute): value
            for module in (modeling_clip, modeling_llava)
            for name, cls in vars(module).items()
            if isinstance(cls, type)
            for attribute, value in vars(cls).items()
            if callable(value)
        }

    text_before, image_before = state()
    classes_before = classes()
    features(compress(model, dominant=K, contextual=M), tiny.pixels(1))
    text_after, image_after = state()
    assert torch.equal(text_before, text_after)
    assert torch.equal(image_before, image_after)
    assert classes() == classes_before


def test_two_budgets_side_by_side(model):
    other, other_processor = copy.deepcopy(model), tiny.processor()
    processor = tiny.processor()
    compress(model, processor, dominant=K, contextual=M)
    compress(other, other_processor, dominant=3, contextual=1)
    for one, its_processor, tokens in ((model, processor, TOKENS), (other, other_processor, 4)) * 2:
        inputs = its_processor(images=tiny.images(1), text="USER : <image> what", return_tensors="pt")
        assert placeholders(inputs) == [tokens]
        answer(one, **inputs)
        assert last_zip(one).assignment.max() == tokens - 1
    restore(model, processor)
    assert features(other, tiny.pixels(1)).shape[1] == 4


def test_one_processor_for_two_budgets(model, processor):
    other = copy.deepcopy(model)
    compress(model, processor, dominant=K, contextual=M)
    way_out = "LlavaProcessor was changed for another model, .* give each model a processor of its own"
    with pytest.warns(RuntimeWarning, match=way_out):
        compress(other, processor, dominant=3, contextual=1)
    inputs = processor(images=tiny.images(1), text="USER : <image> what", return_tensors="pt")
    assert placeholders(inputs) == [4]


@pytest.mark.parametrize("method_kept", [False, True])
@pytest.mark.parametrize(
    "end", ["restored", "restored without it", "deleted", "of the same budget", "copied", "the same"]
)
def test_one_processor_that_is_free(processor, end, method_kept):
    model, other = tiny.llava(), tiny.llava()
    compress(model, processor, dominant=K, contextual=M)
    kept = [model.model.get_image_features] if method_kept else []  # and with it the adapter
    budget = {"dominant": 3, "contextual": 1}
    if end == "restored":
        restore(model, processor)
    elif end == "restored without it":
        with pytest.warns(RuntimeWarning, match="still writes"):
            restore(model)
    elif end == "deleted":
        del model
    elif end == "of the same budget":
        budget = {"dominant": K, "contextual": M}
    elif end == "copied":
        other, processor = copy.deepcopy(model), copy.deepcopy(processor)
    elif end == "the same":
        other = model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(other, processor, **budget)
    del kept


@pytest.mark.parametrize("inner", [False, True])
def test_a_deleted_model_is_gone_at_once(model, processor, inner, monkeypatch):
    """Without a garbage collection: nothing of ours keeps the language model, and the processor is known to be free."""
    model = copy.deepcopy(model)  # the fixture's lives as long as the test
    compress(model.model if inner else model, processor, dominant=K, contextual=M)
    features(model, tiny.pixels(1))
    language_model = weakref.ref(model.model.language_model)
    gc.disable()
    try:
        monkeypatch.setattr(gc, "collect", lambda *generation: pytest.fail("compress collects garbage"))
        del model
        assert language_model() is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compress(tiny.llava(), processor, dominant=3, contextual=1)
    finally:
        gc.enable()


def test_a_feature_method_that_outlives_its_model(model):
    model = copy.deepcopy(model)
    method = compress(model, dominant=K, contextual=M).model.get_image_features
    del model
    with pytest.raises(RuntimeError, match="the compressed model that this method belongs to is deleted"):
        method(tiny.pixels(1))


def test_threads_share_models(model):
    """Four threads on one model, and four on another with another budget: each gets its own image's features."""
    other = copy.deepcopy(model)
    compress(model, dominant=K, contextual=M)
    compress(other, dominant=3, contextual=1)
    images = [tiny.pixels(1, seed=seed) for seed in range(4)]
    jobs = [(one, image, features(one, image).detach()) for one in (model, other) for image in images]
    wrong, ready = [], threading.Barrier(len(jobs))

    def work(one, image, expected):
        ready.wait()
        for _ in range(15):
            try:
                with torch.no_grad():
                    if not torch.equal(features(one, image), expected):
                        wrong.append("another image's features")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_compressed_and_on_its_own(compressed, duplicate):
    expected = features(compressed, tiny.pixels(1))
    twin = duplicate(compressed)
    assert torch.equal(features(twin, tiny.pixels(1)), expected)
    with torch.no_grad():
        twin.model.multi_modal_projector.linear_1.weight.zero_()
    assert not torch.equal(features(twin, tiny.pixels(1)), expected), "the copy runs the original's weights"
    assert torch.equal(features(compressed, tiny.pixels(1)), expected)
    restore(twin)
    assert features(twin, tiny.pixels(1)).shape[1] == PATCHES
    assert features(compressed, tiny.pixels(1)).shape[1] == TOKENS
