"""The table of supported models. A new family is a file with a `ModelAdapter` and its row here."""

from __future__ import annotations

from torch import nn

from visionzip_ext.integrations.transformers.adapter import ModelAdapter
from visionzip_ext.integrations.transformers.families.gemma3 import Gemma3Adapter
from visionzip_ext.integrations.transformers.families.idefics3 import Idefics3Adapter, SmolVLMAdapter
from visionzip_ext.integrations.transformers.families.internvl import InternVLAdapter
from visionzip_ext.integrations.transformers.families.llava import LlavaAdapter, VipLlavaAdapter
from visionzip_ext.integrations.transformers.families.llava_next import LlavaNextAdapter, LlavaNextVideoAdapter
from visionzip_ext.integrations.transformers.families.llava_onevision import LlavaOnevisionAdapter
from visionzip_ext.integrations.transformers.families.paligemma import PaliGemmaAdapter
from visionzip_ext.integrations.transformers.families.qwen_vl import Qwen2_5VLAdapter, Qwen2VLAdapter, Qwen3VLAdapter
from visionzip_ext.integrations.transformers.families.video_llava import VideoLlavaAdapter
from visionzip_ext.integrations.transformers.original_llava import is_original_llava

# A family's name, with which its classes' names begin, and its adapter.
FAMILIES: dict[str, type[ModelAdapter]] = {
    "Llava": LlavaAdapter,
    "VipLlava": VipLlavaAdapter,
    "LlavaNext": LlavaNextAdapter,
    "LlavaNextVideo": LlavaNextVideoAdapter,
    "LlavaOnevision": LlavaOnevisionAdapter,
    "VideoLlava": VideoLlavaAdapter,
    "PaliGemma": PaliGemmaAdapter,
    "Gemma3": Gemma3Adapter,
    "InternVL": InternVLAdapter,
    "Idefics3": Idefics3Adapter,
    "SmolVLM": SmolVLMAdapter,
    "Qwen2VL": Qwen2VLAdapter,
    "Qwen2_5_VL": Qwen2_5VLAdapter,
    "Qwen3VL": Qwen3VLAdapter,
    "Qwen3VLMoe": Qwen3VLAdapter,
}
# With a language modeling head and without.
_CLASSES = ("ForConditionalGeneration", "Model")

# class name in transformers -> the family's adapter
ADAPTERS = {family + suffix: adapter for family, adapter in FAMILIES.items() for suffix in _CLASSES}

# Where wrappers have their model: torch.compile, data parallelism, peft.
_WRAPPED_AT = ("_orig_mod", "module", "base_model.model")


def adapter_for(model: object) -> type[ModelAdapter]:
    """The adapter of the model's family; subclasses of a supported class belong to it.

    Raises:
        TypeError: an unknown model; the message lists the supported ones, or says what to do with this one.
    """
    if (adapter := _adapter_of_class(model)) is not None:
        return adapter
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if is_original_llava(model):
        raise TypeError(
            f"model is a {kind}, of an original LLaVA repository; call visionzip_ext.visionzip(model, dominant=..., "
            "contextual=...) for it"
        )
    if (path := _path_inside(model)) is not None:
        raise TypeError(
            f"model is a {kind} around a supported model; pass that, model.{path}, before or after it is wrapped"
        )
    raise TypeError(
        f"model is a {kind}, which VisionZip does not know; supported classes of transformers: {', '.join(ADAPTERS)}; "
        "for any other model, wrap its vision encoder in visionzip_ext.VisionZipEncoder"
    )


def _adapter_of_class(model: object) -> type[ModelAdapter] | None:
    for cls in type(model).__mro__:
        if cls.__module__.startswith("transformers.") and cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__]
    return None


def _path_inside(model: object) -> str | None:
    """The attributes that lead from a wrapper, or wrappers around wrappers, to a supported model in it, if any."""
    for path in _WRAPPED_AT:
        inside: object = model
        for name in path.split("."):
            inside = getattr(inside, name, None)
        if not isinstance(inside, nn.Module):
            continue
        if _adapter_of_class(inside) is not None or is_original_llava(inside):
            return path
        if (deeper := _path_inside(inside)) is not None:
            return f"{path}.{deeper}"
    return None
