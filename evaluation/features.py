"""What the encoder makes of scenes, computed once: training reads each many times, and the encoder does not learn."""

from __future__ import annotations

from itertools import islice

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from evaluation.packages import HOME
from evaluation.scenes import Scene, split

_BATCH = 8


@torch.inference_mode()
def patch_features(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, name: str, count: int
) -> tuple[list[Scene], Tensor]:
    """The first `count` scenes of a split, and their patches' features (count, patches, channels) in float16.

    Features are those before the projector, without CLS; they are kept in `packages.HOME`.
    """
    scenes = list(split(name).scenes(count))
    cache = HOME / f"features-{name}-{count}.safetensors"
    if cache.exists():
        return scenes, load_file(cache)["features"]
    parts = []
    left = iter(scenes)
    with tqdm(total=count, desc=f"encoding {name} scenes") as progress:
        while batch := list(islice(left, _BATCH)):
            pixels = processor.image_processor([scene.image for scene in batch], return_tensors="pt")["pixel_values"]
            hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
            parts.append(hidden[:, 1:].half())
            progress.update(len(batch))
    features = torch.cat(parts)
    partial = cache.with_suffix(".partial")
    save_file({"features": features}, partial)
    partial.rename(cache)
    return scenes, features
