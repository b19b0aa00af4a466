"""`python -m benchmarks.packed_encoder`: Qwen2.5-VL's vision tower with compressed output, beside the way without us.

The tower is made from its configuration and random numbers, at the size of the 7B checkpoint. "Without us" is how
Qwen-VL is compressed elsewhere: eager attention in the deciding layer, whose (S, S) matrices are summed, and one image
at a time. Each provider runs in a process of its own, whose high-water mark of memory counts. `--images 4 4 16 64 1024`
measures a batch, in tokens behind the 2 x 2 merger; on a CPU a tower of this size takes a minute for an image of 1,024
tokens on few cores. `--provider` measures one of the two alone, `--layers 8` a tower of eight layers, whose last one
decides. Eager attention of an image of 4,096 tokens makes logits of 17 GB, and a softmax of as much: leave it out where
memory is less.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from benchmarks.encoder_memory import PROCESS, _status
from benchmarks.places import ROOT
from benchmarks.terminal import Table, Terminal
from benchmarks.timers import timer_for
from visionzip_ext import allocate_budgets, compress, zip_packed

KEEP = 0.1
SIZES = {
    False: {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    True: {
        "depth": 4,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [3],
    },
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TEXT = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}

Call = Callable[[Tensor, Tensor], Tensor]
"""Patches (sum of the grids, C) and grids (n, 3) -> tokens (sum of k + m, C)."""


def model(quick: bool, dtype: torch.dtype = torch.float32, layers: int | None = None) -> nn.Module:
    """A Qwen2.5-VL whose vision tower is real in size, with a language model of one layer that is never run."""
    torch.manual_seed(0)
    vision = SIZES[quick]
    if layers is not None:
        whole = [layer for layer in vision["fullatt_block_indexes"] if layer < layers - 1]
        vision = vision | {"depth": layers, "fullatt_block_indexes": [*whole, layers - 1]}
    text = _TEXT | {"hidden_size": vision["out_hidden_size"], "vocab_size": 8}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, vision["out_hidden_size"] // 8 - 2]}
    config = transformers.Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision)
    return transformers.Qwen2_5_VLModel(config).eval().to(dtype)


def ours(qwen: nn.Module) -> Call:
    """`compress`: the tower keeps SDPA, and the batch goes through at once."""
    compress(qwen, keep=KEEP)
    return lambda pixels, grids: torch.cat(list(qwen.get_image_features(pixels, grids).pooler_output))


def one_by_one(qwen: nn.Module) -> Call:
    """Eager attention in the deciding layer, whose matrices are summed over heads and queries, image after image."""
    attention = qwen.visual.blocks[-1].attn
    seen: dict[str, Tensor] = {}

    def eager(module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, **kwargs: object) -> tuple:
        weights = (queries @ keys.transpose(2, 3) * module.scaling).softmax(-1, dtype=torch.float32)
        seen.update(scores=weights.sum((0, 1)).mean(0), keys=keys[0].float().mean(0))
        return (weights.to(values.dtype) @ values).transpose(1, 2), None

    transformers.AttentionInterface.register("benchmark_eager", eager)
    config = type(attention.config).from_dict(attention.config.to_dict())
    config._attn_implementation = "benchmark_eager"
    attention.config = config

    def of_image(pixels: Tensor, grid: Tensor) -> Tensor:
        hidden = qwen.get_image_features(pixels, grid[None]).pooler_output[0]
        order = window_order(qwen.visual, grid[None])
        scores, keys = (seen[name].unflatten(0, (len(order), -1))[order].flatten(0, 1) for name in ("scores", "keys"))
        budgets = allocate_budgets([len(hidden)], ratio=KEEP)
        return zip_packed(hidden, keys, torch.tensor([0, len(hidden)]), *budgets, scores=scores, group=4).tokens

    def call(pixels: Tensor, grids: Tensor) -> Tensor:
        images = pixels.split(grids.prod(1).tolist())
        return torch.cat([of_image(*image) for image in zip(images, grids, strict=True)])

    return call


def window_order(tower: nn.Module, grids: Tensor) -> Tensor:
    """(tokens,): where in the tower's order each token is."""
    sizes = {"spatial_merge_size": 2, "window_size": tower.window_size, "patch_size": tower.patch_size}
    return get_vision_window_index(grids, **sizes)[0].argsort()


PROVIDERS = {"ours": ours, "one by one, eager": one_by_one}


def images(tokens: Sequence[int], channels: int) -> tuple[Tensor, Tensor]:
    """Patches and grids of images of about so many tokens, as square as they can be."""
    grids = [(1, 2 * max(1, math.isqrt(number)), 2 * max(1, number // max(1, math.isqrt(number)))) for number in tokens]
    total = sum(math.prod(grid) for grid in grids)
    return torch.randn(total, channels, generator=torch.Generator().manual_seed(0)), torch.tensor(grids)


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds and the peak of memory of a call, in this process."""
    call = PROVIDERS[options.provider](model(options.quick, DTYPES[options.dtype], options.layers))
    call(*images([4], 3 * 2 * 14 * 14))  # threads, lazily loaded code
    pixels, grids = images(options.images, 3 * 2 * 14 * 14)
    (PROCESS / "clear_refs").write_text("5")  # sets the mark to what there is now
    before = _status("VmRSS")
    timer = timer_for("cpu")
    seconds = [timer.seconds(lambda: call(pixels, grids)) for _ in range(options.rounds)]
    return {"seconds": statistics.median(seconds), "peak_bytes": _status("VmHWM") - before}


def main(arguments: list[str] | None = None) -> int:
    """Both providers, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packed_encoder", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1024], metavar="TOKENS", help="tokens of each")
    parser.add_argument("--rounds", type=int, default=1, help="of which the median counts (default: 1)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the model (default: float32)")
    parser.add_argument("--layers", type=int, help="of the tower (default: all)")
    parser.add_argument("--quick", action="store_true", help="a tiny tower: a try, no figures")
    parser.add_argument("--provider", choices=tuple(PROVIDERS), help="measure this one here, and print JSON")
    options = parser.parse_args(arguments)
    if options.provider:
        print(json.dumps(measure(options)))
        return 0
    asked = ["--images", *map(str, options.images), "--rounds", str(options.rounds), "--dtype", options.dtype]
    asked += ["--layers", str(options.layers)] if options.layers else []
    asked += ["--quick"] * options.quick
    rows = []
    for provider in PROVIDERS:
        command = [sys.executable, "-m", "benchmarks.packed_encoder", *asked, "--provider", provider]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        cost = json.loads(done.stdout.splitlines()[-1])
        rows.append([provider, f"{cost['seconds']:.4g} s", f"{cost['peak_bytes'] / 1e6:.0f} MB"])
    title = f"Qwen2.5-VL's tower, images of {options.images} tokens, a share of {KEEP} kept, {options.dtype}"
    Terminal().show(Table(("provider", "time", "memory"), rows, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
