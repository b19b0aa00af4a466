"""What a vision tower computes in a compressed LLaVA: early exit, attention implementations, dtypes, torch.compile."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import NEW, TOKENS, K, M, answer, vision_layers
from support.tiny_models import LAYERS, PATCHES, TRANSFORMERS, features, padded, prompt
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from visionzip_ext import compress, last_zip, restore


@pytest.mark.parametrize("layer", [-1, -2, 2])
def test_layers_after_the_select_layer_are_not_computed(layer):
    model = tiny.llava(tiny.llava_config(vision_feature_layer=layer))
    expected = features(compress(model, dominant=K, contextual=M, early_exit=False), tiny.pixels(2))
    compress(model, dominant=K, contextual=M)
    ran = []
    for number, module in enumerate(vision_layers(model)):
        module.register_forward_hook(lambda *call, number=number: ran.append(number))
    assert torch.equal(features(model, tiny.pixels(2)), expected)
    assert ran == list(range(layer % (LAYERS + 1)))
    assert len(vision_layers(model)) == LAYERS


def test_asking_for_the_towers_hidden_states_runs_all_layers(compressed):
    expected = features(compressed, tiny.pixels(1))
    assert torch.equal(features(compressed, tiny.pixels(1), output_hidden_states=True), expected)
    if TRANSFORMERS >= (5, 0):  # transformers 4 returns the features alone
        outputs = compressed.model.get_image_features(tiny.pixels(1), output_hidden_states=True)
        assert len(outputs.hidden_states) == LAYERS + 1


@pytest.mark.parametrize("output", ["hidden_states", "attentions"])
def test_a_config_that_asks_for_the_towers_outputs_runs_all_layers(model, output):
    if output == "attentions":
        model.set_attn_implementation("eager")
    expected = features(compress(model, dominant=K, contextual=M), tiny.pixels(1))
    ran = []
    vision_layers(model)[-1].register_forward_hook(lambda *call: ran.append(1))
    setattr(model.model.vision_tower.config, f"output_{output}", True)
    assert torch.equal(features(model, tiny.pixels(1)), expected)
    assert ran == [1]
    if TRANSFORMERS >= (5, 0):  # transformers 4 returns the features alone
        outputs = model.model.get_image_features(tiny.pixels(1))
        assert len(getattr(outputs, output)) == LAYERS + (output == "hidden_states")
        assert all(layer is not None for layer in getattr(outputs, output))
    ran.clear()
    features(model, tiny.pixels(1), **{f"output_{output}": False})
    assert ran == [], "what the call says comes before what the config says"


def test_a_config_that_asks_for_hidden_states_does_no_harm(model):
    """transformers 5 hooks the layers that it sees at the first request, so it must never see a part of them."""
    model.model.vision_tower.config.output_hidden_states = True
    features(compress(model, dominant=K, contextual=M), tiny.pixels(1))
    restore(model)
    assert len(model.model.vision_tower(tiny.pixels(1)).hidden_states) == LAYERS + 1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_tower_keeps_its_attention(model, implementation):
    model.set_attn_implementation(implementation)
    expected = features(model, tiny.pixels(2))
    compress(model, dominant=K + 10, contextual=M)  # all 17 tokens: the merged ones are kept as they are
    assert model.model.vision_tower.config._attn_implementation == implementation
    got = features(model, tiny.pixels(2))
    decision = last_zip(model)
    order = torch.zeros_like(decision.assignment).scatter_(
        1, decision.assignment, torch.arange(PATCHES + 1).expand(2, -1)
    )
    patches = order != 0  # all rows but CLS, which the unmodified model drops
    taken = torch.stack([expected[i, order[i][patches[i]] - 1] for i in range(2)])
    torch.testing.assert_close(got[patches].view_as(taken), taken, rtol=0, atol=1e-6)


def test_an_implementation_sees_the_towers_own_config(model):
    """Flash attention reads the implementation's name from the config of the module that it is given."""
    seen = []

    def like_flash(module, query, key, value, attention_mask, **kwargs):
        seen.append((module.config._attn_implementation, module.is_causal, module.training))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("like_a_kernel", like_flash)
    model.model.vision_tower.set_attn_implementation("like_a_kernel")
    compress(model, dominant=K, contextual=M)
    features(model, tiny.pixels(1))
    assert seen == [("like_a_kernel", False, False)] * (LAYERS - 1)


def test_a_later_change_of_attention_implementation_is_honoured(model):
    names = []

    def noting(module, *args, **kwargs):
        names.append(module.config._attn_implementation)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("noting", noting)
    expected = features(compress(model, dominant=K, contextual=M), tiny.pixels(2))
    model.set_attn_implementation({"vision_config": "noting"})
    torch.testing.assert_close(features(model, tiny.pixels(2)), expected)
    assert names == ["noting"] * (LAYERS - 1)


def test_a_removed_recorder_is_an_error_that_says_how_to_mend_it(compressed):
    expected = features(compressed, tiny.pixels(1))
    vision_layers(compressed)[-2].self_attn.config = compressed.model.vision_tower.config
    with pytest.raises(RuntimeError, match=r"layer 2 .* recorded 0 times .* visionzip_ext\.compress\(model"):
        features(compressed, tiny.pixels(1))
    compress(compressed, dominant=K, contextual=M)
    assert torch.equal(features(compressed, tiny.pixels(1)), expected)


def test_nothing_is_kept_of_forwards_that_are_not_zipped(compressed):
    """Of the tower's own use, and of gradient checkpointing's second forward; their tensors would stay alive."""
    compressed.train().gradient_checkpointing_enable({"use_reentrant": False})
    features(compressed, tiny.pixels(1)).sum().backward()
    compressed.model.vision_tower(tiny.pixels(1))
    tower = compressed.model._visionzip.tower
    assert tower._select_layer_output is None
    assert tower._recorder._log is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    expected = features(compress(model, dominant=K, contextual=M), tiny.pixels(1))
    model.to(dtype)
    got = features(model, tiny.pixels(1).to(dtype))
    assert got.dtype == dtype
    assert got.shape == expected.shape
    batch = padded([prompt([1, 5], TOKENS, [7])])
    assert answer(model, **batch, pixel_values=tiny.pixels(1).to(dtype)).shape == (1, NEW)


@pytest.mark.parametrize("compress_first", [True, False])
def test_compiled_tower(model, compress_first):
    expected = features(compress(copy.deepcopy(model), dominant=K, contextual=M), tiny.pixels(2))
    torch._dynamo.reset()
    if compress_first:
        compress(model, dominant=K, contextual=M)
    model.model.vision_tower.compile(backend="aot_eager", fullgraph=True)
    if not compress_first:
        compress(model, dominant=K, contextual=M)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(features(model, tiny.pixels(2)), expected)
    assert len(vision_layers(model)) == LAYERS


@pytest.mark.parametrize("compress_first", [True, False])
def test_a_compiled_tower_in_its_place(model, compress_first):
    expected = features(compress(copy.deepcopy(model), dominant=K, contextual=M), tiny.pixels(2))
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    if compress_first:
        features(compress(model, dominant=K, contextual=M), tiny.pixels(2))
    model.model.vision_tower = torch.compile(model.model.vision_tower, backend=graphs, fullgraph=True)
    if not compress_first:
        compress(model, dominant=K, contextual=M)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(features(model, tiny.pixels(2)), expected)
    assert graphs.frame_count == 1
    compress(model, dominant=K, contextual=M + 1)
    assert features(model, tiny.pixels(2)).shape[1] == TOKENS + 1
    restore(model).model.vision_tower = model.model.vision_tower._orig_mod
    assert features(model, tiny.pixels(2)).shape[1] == PATCHES


def test_compiled_from_pixels_to_features_in_one_graph(compressed):
    expected = features(compressed, tiny.pixels(2))
    torch._dynamo.reset()
    graph = torch.compile(compressed.model.get_image_features, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        result = graph(tiny.pixels(2))
    torch.testing.assert_close(torch.stack(list(getattr(result, "pooler_output", result))), expected)
    assert torch.equal(features(compressed, tiny.pixels(2)), expected)
