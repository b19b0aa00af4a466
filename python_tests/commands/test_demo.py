"""`python -m visionzip_ext demo`: with a checkpoint and without, the picture, and every bad input."""

from __future__ import annotations

import re
import struct
import zlib

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_models as tiny

from visionzip_ext import __main__ as program
from visionzip_ext.demo import photographs, picture, random_llava, report
from visionzip_ext.integrations.transformers import ZipDecision

BUDGET = ["--dominant", "5", "--contextual", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny.llava()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the demo in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = program.main(["demo", *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def small_random_model(monkeypatch):
    """The demo's own model, narrower and shallower."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    monkeypatch.setattr(random_llava, "_VISION", random_llava._VISION | small)
    monkeypatch.setattr(random_llava, "_LANGUAGE", random_llava._LANGUAGE | small)


def photograph(path, seed: int = 0) -> str:
    tiny.images(1, seed)[0].save(path)
    return str(path)


def png_header(width: int, height: int) -> bytes:
    """As much of a PNG as says its size."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + size) + chunk(b"IDAT")


def visual_tokens(output: str) -> list[int]:
    """The row's numbers: full, VisionZip."""
    row = next(line for line in output.splitlines() if "visual tokens" in line)
    return [int(number) for number in re.findall(r"\d+", row)[:2]]


class TestRuns:
    def test_without_a_checkpoint(self, run, small_random_model, tmp_path):
        status, output, progress = run("--max-new-tokens", "3", "--repeats", "2")
        assert status == 0
        assert "RANDOM WEIGHTS" in output
        assert visual_tokens(output) == [576, 64]
        assert "median and range of 2 forwards" in output
        assert "Cropped the photograph: the model sees the middle 67%" in output
        assert progress.splitlines()[:2] == ["building the model", "full: answering"]
        assert Image.open(tmp_path / "visionzip_demo.png").width > 800

    def test_a_checkpoint_and_several_images(self, run, checkpoint, tmp_path):
        files = [photograph(tmp_path / f"{seed}.png", seed) for seed in range(2)]
        arguments = ["--model", checkpoint, *BUDGET, "--prompt", "what is this", "--output", "two.png"]
        status, output, _ = run(*arguments, "--image", *files, "--repeats", "1")
        assert status == 0
        assert "RANDOM" not in output
        assert visual_tokens(output) == [16, 7]
        two = Image.open(tmp_path / "two.png").height
        run(*arguments, "--image", files[0], "--repeats", "1")
        assert two > 1.5 * Image.open(tmp_path / "two.png").height

    def test_dtype(self, run, checkpoint, tmp_path):
        file = photograph(tmp_path / "photograph.png")
        status, output, _ = run(
            "--model", checkpoint, *BUDGET, "--image", file, "--dtype", "bfloat16", "--repeats", "1"
        )
        assert status == 0
        assert "bfloat16" in output


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--image", "missing.png"], "--image missing.png: no such file"),
            (["--image", "notes.txt"], "--image notes.txt: not an image that Pillow can read"),
            (["--image", "."], "--image .: "),
            (["--device", "toaster"], "--device toaster: "),
            (["--device", "meta"], "--device meta: its tensors have no values"),
            (["--output", "nowhere/demo.png"], "--output nowhere/demo.png: no such folder"),
            (["--image", "huge.png"], "--image huge.png: more than 179 million pixels"),
            (["--model", "./nowhere"], "--model ./nowhere: no such folder"),
            (["--model", "nowhere"], "--model nowhere: no such folder"),
            (["--model", "some/where/nothing"], "--model some/where/nothing: no such folder"),
            (["--model", "../someone/nothing"], "--model ../someone/nothing: no such folder"),
            (["--model", "someone/nothing-of-that-name"], "--model someone/nothing-of-that-name: "),
            (["--model", "CHECKPOINT", "--dominant", "90"], "dominant=90 and contextual=10 ask for 100 tokens"),
        ],
    )
    def test_one_line_and_status_2(self, run, checkpoint, tmp_path, arguments, message):
        (tmp_path / "notes.txt").write_text("not a photograph")
        (tmp_path / "huge.png").write_bytes(png_header(30000, 30000))
        status, output, errors = run(*(checkpoint if word == "CHECKPOINT" else word for word in arguments))
        complaint = [line for line in errors.splitlines() if "loading" not in line]
        assert status == 2
        assert output == ""
        assert len(complaint) == 1
        assert complaint[0].startswith("visionzip_ext demo: " + message)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="the error is for machines without a GPU")
    def test_no_gpu(self, run):
        status, _, errors = run("--device", "cuda")
        assert status == 2
        assert errors.startswith("visionzip_ext demo: --device cuda: ")

    def test_checkpoint_of_another_kind(self, run, tmp_path):
        tiny.text_config().save_pretrained(tmp_path / "llama")
        status, _, errors = run("--model", "llama")
        assert status == 2
        assert "its model type is 'llama', expected 'llava'" in errors

    @pytest.mark.parametrize("argument", ["--repeats", "--max-new-tokens", "--dominant"])
    def test_counts_are_positive(self, run, capsys, argument):
        with pytest.raises(SystemExit, match="2"):
            run(argument, "0")
        assert "expected at least 1, got 0" in capsys.readouterr().err

    @pytest.mark.parametrize("argument", ["--repeats", "--max-new-tokens", "--dominant", "--contextual"])
    def test_counts_are_whole_numbers(self, run, capsys, argument):
        with pytest.raises(SystemExit, match="2"):
            run(argument, "1.5")
        assert f"argument {argument}: expected a whole number, got '1.5'" in capsys.readouterr().err


class TestReport:
    @pytest.mark.parametrize(
        ("full", "zipped", "ratio"),
        [
            ([0.734, 0.6, 0.028], [0.018, 0.026, 0.571], "ranges overlap"),
            ([3.0, 4.0, 5.0], [1.0, 2.0, 2.5], "2.00 x"),
            ([1.0, 2.0, 2.5], [3.0, 4.0, 5.0], "0.50 x"),
            ([576], [64], "9.00 x"),
            ([64], [64], "1.00 x"),
        ],
    )
    def test_no_ratio_where_ranges_overlap(self, full, zipped, ratio):
        assert report._ratio(full, zipped) == ratio

    @pytest.mark.parametrize(
        ("size", "words"),
        [
            ((451, 300), ["cat.png: the model sees the middle 67%; left and right are cut off"]),
            ((300, 451), ["cat.png: the model sees the middle 67%; top and bottom are cut off"]),
            ((300, 300), []),
        ],
    )
    def test_what_was_cropped_is_said(self, size, words):
        assert photographs.cropped([Image.new("RGB", size)], ["cat.png"], torch.zeros(1, 3, 336, 336)) == words


class TestPicture:
    def test_targets_are_those_of_the_decision(self):
        """A target is the patch whose merged token it founded: every step-th of the rest (R = 13, m = 2: 0 and 6)."""
        decision = ZipDecision(torch.empty(0), torch.empty(0), (4, 4), True, 4, 2)
        token_of = np.array([[1, 4, 4, 5], [5, 2, 4, 4], [5, 5, 3, 5], [4, 4, 4, 5]])
        assert picture._targets(token_of, decision) == {(0, 1), (2, 0)}

    @pytest.mark.parametrize("contextual", [0, 2, 30])
    def test_kept_patches_are_clear_and_the_others_are_not(self, tmp_path, monkeypatch, contextual):
        shown = []
        monkeypatch.setattr(picture, "_panel", lambda axes, image: shown.append(image))
        image = np.random.default_rng(0).random((1, 112, 112, 3))
        kept = [0, 3, 9, 20]
        assignment = torch.full((1, 65), -1) if contextual == 0 else torch.arange(65)[None] % contextual + len(kept)
        assignment[0, kept] = torch.arange(len(kept))
        decision = ZipDecision(torch.tensor([kept]), assignment, (8, 8), True, len(kept), contextual)
        picture.draw(tmp_path / "picture.png", image, decision)
        before, after = (panel.reshape(8, 14, 8, 14, 3) for panel in shown)
        clear = (before == after).all((1, 3, 4)).ravel()
        assert np.flatnonzero(clear).tolist() == [token - 1 for token in kept[1:]]

    def test_pixels_are_shown_as_the_encoder_saw_them(self):
        image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
        normalised = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        shown = picture.pixels_to_images(normalised, mean, std)
        np.testing.assert_allclose(shown, image.permute(0, 2, 3, 1).numpy(), atol=1e-6)
