"""The table of supported models. A new family is a file with a `ModelAdapter` and its rows here."""

from __future__ import annotations

from visionzip_ext.integrations.transformers.adapter import ModelAdapter
from visionzip_ext.integrations.transformers.llava import LlavaAdapter, VipLlavaAdapter
from visionzip_ext.integrations.transformers.llava_next import LlavaNextAdapter, LlavaNextVideoAdapter
from visionzip_ext.integrations.transformers.llava_onevision import LlavaOnevisionAdapter
from visionzip_ext.integrations.transformers.video_llava import VideoLlavaAdapter

# class name in transformers -> the family's adapter
ADAPTERS: dict[str, type[ModelAdapter]] = {
    "LlavaForConditionalGeneration": LlavaAdapter,
    "LlavaModel": LlavaAdapter,
    "VipLlavaForConditionalGeneration": VipLlavaAdapter,
    "VipLlavaModel": VipLlavaAdapter,
    "LlavaNextForConditionalGeneration": LlavaNextAdapter,
    "LlavaNextModel": LlavaNextAdapter,
    "LlavaNextVideoForConditionalGeneration": LlavaNextVideoAdapter,
    "LlavaNextVideoModel": LlavaNextVideoAdapter,
    "LlavaOnevisionForConditionalGeneration": LlavaOnevisionAdapter,
    "LlavaOnevisionModel": LlavaOnevisionAdapter,
    "VideoLlavaForConditionalGeneration": VideoLlavaAdapter,
    "VideoLlavaModel": VideoLlavaAdapter,
}


def adapter_for(model: object) -> type[ModelAdapter]:
    """The adapter of the model's family; subclasses of a supported class belong to it.

    Raises:
        TypeError: an unknown model; the message lists the supported ones.
    """
    for cls in type(model).__mro__:
        if cls.__module__.startswith("transformers.") and cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__]
    raise TypeError(
        f"model is a {type(model).__module__}.{type(model).__qualname__}, which VisionZip does not know; "
        f"supported classes of transformers: {', '.join(ADAPTERS)}; for any other model, wrap its vision encoder in "
        "visionzip_ext.VisionZipEncoder"
    )
