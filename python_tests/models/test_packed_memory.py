"""How much memory a compressed Qwen2.5-VL takes for an image of 16,384 tokens, beside the unmodified one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WIDTH, REAL_WIDTH = 32, 1280
ALLOWED = 200e6 * WIDTH / REAL_WIDTH
"""Of a tower a fortieth as wide as the real one a fortieth of 200 MB. One head's (S, S) in float32 would be 17 GB."""

# Prints the peak of memory in a call, above what the process holds before it.
MEASURE = """
import sys
from pathlib import Path

import torch
import transformers

from visionzip_ext import compress

vision = {
    "depth": 2, "hidden_size": WIDTH, "num_heads": 1, "intermediate_size": 2 * WIDTH, "out_hidden_size": 64,
    "patch_size": 4, "window_size": 32, "fullatt_block_indexes": [1],
}
text = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 8, "bos_token_id": None, "eos_token_id": None,
}
rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
text["rope_parameters" if int(transformers.__version__[0]) >= 5 else "rope_scaling"] = rope
config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
model = transformers.Qwen2_5_VLModel(config).eval()
if sys.argv[1] == "compressed":
    compress(model, keep=0.1)


def image(side):
    return torch.randn(4 * side * side, 3 * 2 * 4 * 4), torch.tensor([[1, 2 * side, 2 * side]])


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


with torch.no_grad():
    model.get_image_features(*image(4))  # threads, lazily loaded code
    given = image(128)
    Path("/proc/self/clear_refs").write_text("5")  # sets the mark to what there is now
    before = status("VmRSS")
    model.get_image_features(*given)
    print(status("VmHWM") - before)
"""


def peak(which: str) -> int:
    # what is freed goes back to the system at once, so that the mark is of what was held together
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    script = MEASURE.replace("WIDTH", str(WIDTH))
    command = [sys.executable, "-c", script, which]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel has no mark to set")
def test_an_image_of_16384_tokens_takes_what_the_encoder_takes():
    assert peak("compressed") - peak("unmodified") < ALLOWED
