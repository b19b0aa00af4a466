"""`python -m visionzip_ext tune`: what it trains and writes, resuming, several processes, and every bad input."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file
from support import tiny_models as tiny
from support import tiny_qwen
from support.tiny_families import FAMILIES
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

import visionzip_ext
from visionzip_ext import __main__ as program
from visionzip_ext.tune import batches, subject, training
from visionzip_ext.tune.conversations import Example, read
from visionzip_ext.tune.errors import TuneError

BUDGET = ["--dominant", "5", "--contextual", "2"]
QUICK = ["--fraction", "1", "--per_device_train_batch_size", "2", "--disable_tqdm", "True", "--use_cpu"]
RANK = Path(__file__).resolve().parents[1] / "support" / "tune_rank.py"
ANSWERS = ("a cat", "the dog")


def record(image: str | None, *turns: str) -> dict[str, Any]:
    """In LLaVA's form; questions and answers take turns."""
    conversations = [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]
    return {"id": image or "none", "conversations": conversations} | ({"image": image} if image else {})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model, eight images, and data.json about them."""
    folder = tmp_path_factory.mktemp("home")
    model = tiny.llava()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder / "model")
    tiny.processor().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for number, image in enumerate(tiny.images(8)):
        image.save(folder / "images" / f"{number}.png")
    records = [record(f"{i}.png", "<image>\nwhat is this", ANSWERS[i % 2]) for i in range(8)]
    (folder / "data.json").write_text(json.dumps(records, indent=1))
    return folder


@pytest.fixture
def tune(home, tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def tune(*arguments: str, data: str = f"{home}/data.json", model: str = f"{home}/model") -> tuple[int, str, str]:
        where = ["--model", model, "--data", data, "--images", f"{home}/images", "--output", "tuned"]
        status = program.main(["tune", *where, *QUICK, *arguments])
        return status, *capsys.readouterr()

    return tune


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


class TestResult:
    def test_the_projector_alone_has_changed(self, tune, home):
        status, output, _ = tune(*BUDGET, "--learning_rate", "1e-2", "--num_train_epochs", "2")
        assert status == 0
        before, after = weights(home / "model"), weights("tuned")
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in before if "multi_modal_projector" in name}
        assert "8 conversations" in output
        assert not Path("tuned.training").exists()

    def test_all_is_projector_and_language_model(self, tune, home):
        assert tune(*BUDGET, "--train", "all", "--learning_rate", "1e-2")[0] == 0
        before, after = weights(home / "model"), weights("tuned")
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert same == {name for name in before if "vision_tower" in name}

    def test_it_is_an_ordinary_checkpoint(self, tune):
        tune(*BUDGET)
        model, processor = LlavaForConditionalGeneration.from_pretrained("tuned"), tiny.loaded_processor("tuned")
        assert {model.config.visionzip[name] for name in ("dominant", "contextual")} == {5, 2}
        assert model.config.visionzip_tuned == model.config.visionzip
        assert processor.tokenizer.padding_side == "left"
        visionzip_ext.compress_as_configured(model, processor)
        inputs = processor(images=tiny.images(1), text="USER : <image> what ASSISTANT :", return_tensors="pt")
        assert int((inputs["input_ids"] == tiny.IMAGE_TOKEN).sum()) == 7
        model.generate(**inputs, max_new_tokens=2)

    def test_the_projector_s_own_file_fits_the_first_checkpoint(self, tune, home):
        tune(*BUDGET, "--learning_rate", "1e-2")
        model = LlavaForConditionalGeneration.from_pretrained(home / "model")
        assert not model.model.load_state_dict(load_file("tuned/projector.safetensors"), strict=False).unexpected_keys
        expected = LlavaForConditionalGeneration.from_pretrained("tuned").state_dict()
        torch.testing.assert_close(dict(model.state_dict()), dict(expected), rtol=0, atol=0)
        with safe_open("tuned/projector.safetensors", "pt") as file:
            assert json.loads(file.metadata()["visionzip"])["dominant"] == 5

    def test_the_checkpoint_s_dtype_stays(self, tune, tmp_path):
        tiny.llava().half().save_pretrained(tmp_path / "half")
        tiny.processor().save_pretrained(tmp_path / "half")
        assert tune(*BUDGET, "--learning_rate", "1e-2", "--bf16", model=str(tmp_path / "half"))[0] == 0
        before, after = weights("half"), weights("tuned")
        assert {x.dtype for x in after.values()} == {torch.float16}
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in before if "multi_modal_projector" in name}

    def test_answers_are_learnt_and_the_report_says_so(self, tune, home):
        hard = ["--train", "all", "--learning_rate", "5e-3", "--num_train_epochs", "25"]
        status, output, _ = tune(*BUDGET, *hard, "--check", f"{home}/data.json")
        assert status == 0
        report = json.loads(Path("tuned/tuning.json").read_text())
        assert report["answers"] == 8
        assert report["accuracy_before"] < 0.2
        assert report["accuracy_after"] == 1
        assert "100.0 % after" in output

    def test_accuracy_is_that_of_generation(self, tune, home):
        """An answer is right where `generate` gives it."""
        tune(
            *BUDGET,
            "--train",
            "all",
            "--learning_rate",
            "5e-3",
            "--num_train_epochs",
            "6",
            "--check",
            f"{home}/data.json",
        )
        model, processor = LlavaForConditionalGeneration.from_pretrained("tuned"), tiny.loaded_processor("tuned")
        visionzip_ext.compress_as_configured(model, processor)
        prompt = "USER : <image> what is this ASSISTANT :"
        right = 0
        for number, image in enumerate(tiny.images(8)):
            inputs = processor(images=image, text=prompt, return_tensors="pt")
            said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            right += processor.decode(said, skip_special_tokens=True) == ANSWERS[number % 2]
        assert json.loads(Path("tuned/tuning.json").read_text())["accuracy_after"] == right / 8

    def test_all_tokens_for_comparison(self, tune):
        assert tune("--all-tokens")[0] == 0
        assert not hasattr(LlavaForConditionalGeneration.from_pretrained("tuned").config, "visionzip")

    def test_a_tenth_by_default_and_the_same_for_the_same_seed(self, home, tmp_path):
        records = [record(f"{i % 8}.png", "<image>\nwhat", f"w{i}") for i in range(40)]
        (tmp_path / "many.json").write_text(json.dumps(records))
        whole = read(tmp_path / "many.json", home / "images")

        def answers(seed: int) -> list[str]:
            part = whole.part(0.1, seed)
            return [part[i].messages[1]["content"][0]["text"] for i in range(len(part))]

        assert len(answers(0)) == 4
        assert answers(0) == answers(0) != answers(1)

    def test_text_alone_is_left_out(self, tune, home):
        records = [record("0.png", "<image>\nwhat", "a cat"), record(None, "what", "a dog")]
        (home / "mixed.json").write_text(json.dumps(records))
        _, output, _ = tune(*BUDGET, data=f"{home}/mixed.json")
        assert "1 conversations without an image were left out" in output


def test_an_interrupted_training_resumes_to_the_same_bits(tune, home, monkeypatch):
    """Also where a checkpoint was being written at that moment."""
    check = ["--check", f"{home}/data.json"]
    steps = [
        *check,
        *BUDGET,
        "--learning_rate",
        "1e-2",
        "--num_train_epochs",
        "2",
        "--save_steps",
        "3",
        "--train",
        "all",
    ]
    assert tune(*steps)[0] == 0
    Path("tuned").rename("whole")
    collate, count = batches.Collator.__call__, itertools.count(1)

    def stop_at_the_eighth(self, examples):
        if next(count) == 8:
            raise KeyboardInterrupt
        return collate(self, examples)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(batches.Collator, "__call__", stop_at_the_eighth)
        with pytest.raises(KeyboardInterrupt):
            tune(*steps)
    assert not Path("tuned").exists()
    assert Path("tuned.training/checkpoint-3/model.safetensors").exists()
    Path("tuned.training/checkpoint-6").mkdir(exist_ok=True)
    status, _, errors = tune(*steps, "--dominant", "4")
    assert status == 2
    assert "setting {'dominant': 5, 'contextual': 2}, not {'dominant': 4, 'contextual': 2}" in errors
    assert tune(*steps)[0] == 0
    assert Path("tuned/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_plain_trainer_resumes_nothing(home, tmp_path):
    """Why `PartTrainer` writes its checkpoints itself. Should this fail, Trainer has learnt it."""
    model = tiny.llava()
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    Trainer(model, arguments).save_model(str(tmp_path / "checkpoint-1"))
    other = tiny.llava(seed=1)
    before = {name: x.clone() for name, x in other.state_dict().items()}
    Trainer(other, arguments)._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())


def test_a_checkpoint_of_another_part_is_refused(home, tmp_path):
    model = tiny.llava()
    options = {"model": model, "args": TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)}
    training.PartTrainer(subject.choose_parts(model, "projector"), **options).save_model(str(tmp_path / "checkpoint-1"))
    other = training.PartTrainer(subject.choose_parts(model, "all"), **options)
    with pytest.raises(RuntimeError, match="another --train"):
        other._load_from_checkpoint(str(tmp_path / "checkpoint-1"))


def losses_noted(monkeypatch) -> list[float]:
    """Grows by what Trainer logs of each step."""
    losses: list[float] = []
    log = training.PartTrainer.log

    def noted(self, logs, *arguments):
        losses.extend([logs["loss"]] if "loss" in logs else [])
        log(self, logs, *arguments)

    monkeypatch.setattr(training.PartTrainer, "log", noted)
    return losses


def test_two_processes_are_one(tune, home, tmp_path, monkeypatch):
    """All have the same weights, and the losses are those of one process with the same global batch."""
    steps = ["--learning_rate", "1e-3", "--num_train_epochs", "2", "--logging_steps", "1", *BUDGET]
    steps += ["--check", f"{home}/data.json"]
    losses = losses_noted(monkeypatch)
    assert tune(*steps, "--per_device_train_batch_size", "4")[0] == 0
    one = weights("tuned")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RANK)]
    where = ["--model", f"{home}/model", "--data", f"{home}/data.json", "--images", f"{home}/images"]
    command = [*launch, str(tmp_path), *where, "--output", "two", *QUICK, "--ddp_backend", "gloo", *steps]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert ranks[0].keys() == ranks[1].keys()
    assert all(torch.equal(x, ranks[1][name]) for name, x in ranks[0].items())
    torch.testing.assert_close(weights("two"), one, rtol=0, atol=1e-5)
    assert len(losses) == 4
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(losses, rel=1e-4)
    assert done.stdout.count("written: two") == 1


MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this"}]}]
MESSAGES += [{"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}]
AGAIN = [{"role": "user", "content": [{"type": "text", "text": "what"}]}]
AGAIN += [{"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}]


def learnt(processor, batch) -> list[str]:
    """The tokens that have a label."""
    rows = zip(batch["input_ids"], batch["labels"], strict=True)
    return [processor.tokenizer.decode(ids[labels != batches.IGNORED]) for ids, labels in rows]


class TestLabels:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("family", [*FAMILIES, *tiny_qwen.FAMILIES], ids=str)
    def test_they_are_the_answers_in_every_family(self, family, side):
        model, processor = family.model(), family.processor()
        visionzip_ext.compress(model, processor, dominant=5, contextual=2)
        images = family.pictures(2) if hasattr(family, "pictures") else tiny_qwen.images(2)
        turns = [] if family.name == "PaliGemma" else AGAIN
        examples = [Example("a", MESSAGES, images[:1]), Example("b", [*MESSAGES, *turns], images[1:])]
        processor.tokenizer.padding_side = side
        batch = batches.collator(model, processor)(examples)
        said = learnt(processor, batch)
        assert said == ["a cat </s>", "a cat a dog </s>" if turns else "a cat </s>"]
        subject.choose_parts(model, "projector")
        model.train()(**batch).loss.backward()
        gradients = {name for name, x in model.named_parameters() if x.grad is not None and x.grad.any()}
        assert gradients
        assert all("projector" in name or "connector" in name or "merger" in name for name in gradients)

    def test_without_a_chat_template_words_are_llava_s(self):
        model, processor = tiny.llava(), tiny.processor()
        processor.chat_template = None
        collator = batches.collator(model, processor)
        (said,) = learnt(processor, collator([Example("a", [*MESSAGES, *AGAIN], tiny.images(1))]))
        assert said == "a cat </s> a dog </s>"
        written = collator._write(Example("a", [*MESSAGES, *AGAIN], []))
        assert written.text == "USER: <image>\nwhat is this ASSISTANT: a cat</s>USER: what ASSISTANT: a dog</s>"

    def test_answers_end_where_generation_ends(self):
        """By a token of the template's own, without what it writes behind."""
        model, processor = tiny.llava(), tiny.processor()
        model.generation_config.eos_token_id = [20]
        processor.chat_template = tiny.CHAT_TEMPLATE.replace("{{ c['text'] }} ", "{{ c['text'] }} w20 w21 ")
        (said,) = learnt(processor, batches.collator(model, processor)([Example("a", MESSAGES, tiny.images(1))]))
        assert said == "a cat w20"


class TestBadInput:
    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (record("gone.png", "<image>\nwhat", "a cat"), "no such image: "),
            (record("broken.png", "<image>\nwhat", "a cat"), "broken image "),
            (record("cut.png", "<image>\nwhat", "a cat"), "broken image "),
            ({"image": "0.png", "conversations": [{"from": "gpt", "value": "a"}]}, "an answer without a question"),
            (record("0.png", "<image>\nwhat"), "the conversation ends without an answer"),
            (record("0.png", "<image>\n<video>\nwhat", "a cat"), "unknown placeholder <video>"),
            (record("0.png", "<|image_pad|>what", "a cat"), "unknown placeholder <|image_pad|>"),
            (record("0.png", "<image><image>what", "a cat"), "the conversation has 2 <image>, the record 1 images"),
            (record("0.png", "what", "a cat"), "the conversation has 0 <image>, the record 1 images"),
            (record("0.png", "<image>what", "<image>"), "an answer must be text without <image>"),
            (record("0.png", "what", "a cat", "<image>what", "a cat"), "images must come before the first answer"),
            (record("0.png", "<image>\nwhat", ""), "a turn must have text"),
            (record("0.png", "<image>\nwhat", "a cat " * 1100), "2213 tokens; the model's context has 2048"),
            ({"image": "0.png", "conversations": [{"from": "dog", "value": "w"}]}, "a turn is from 'dog'"),
            ({"image": 3, "conversations": record("0.png", "<image>", "a")["conversations"]}, "image must be a path"),
            ("nothing", "expected a record with a list of turns"),
        ],
    )  # fmt: skip
    def test_the_record_s_line_is_told(self, tune, home, broken, message):
        (home / "images" / "broken.png").write_text("not an image")
        whole = (home / "images" / "0.png").read_bytes()
        (home / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
        good = json.dumps(record("0.png", "<image>\nwhat", "a cat"))
        Path("bad.json").write_text(f"[\n{good},\n{good},\n{json.dumps(broken)}\n]")
        status, output, errors = tune(*BUDGET, data="bad.json")
        complaint = [line for line in errors.splitlines() if line.startswith("visionzip_ext tune: ")]
        assert status == 2
        assert len(complaint) == 1
        assert complaint[0].startswith(f"visionzip_ext tune: bad.json:4: {message}")
        assert "written" not in output
        assert sorted(path.name for path in Path().iterdir()) == ["bad.json"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--data", "nowhere.json"], "--data nowhere.json: no such file or folder"),
            (["--data", "empty.json"], "empty.json: none of 0 conversations is about an image"),
            (["--data", "half.json"], "half.json:2: not JSON: "),
            (["--data", "object.json"], "object.json:1: not JSON: expected a list of records"),
            (["--data", "lines.jsonl"], "lines.jsonl:2: not JSON: "),
            (["--data", "."], "--data .: not a folder that save_to_disk of datasets wrote"),
            (["--model", "nowhere"], "--model nowhere: "),
            (["--model", "llama"], "--model llama: its model is LlamaForCausalLM; expected one of Llava"),
            (["--model", "partial"], "--model partial: 4 weights of LlavaForConditionalGeneration are not there"),
            (["--dominant", "90"], "dominant=90 and contextual=2 ask for 92 tokens"),
            (["--keep", "0.1"], "got both keep=0.1 and dominant=5"),
            (["--all-tokens"], "--all-tokens compresses nothing; got dominant, contextual as well"),
            (["--output_dir", "elsewhere"], "--output_dir elsewhere: give --output"),
            (["--output", "there"], "--output there exists"),
            (["--fsdp", "full_shard"], "FSDP and DeepSpeed need GPUs"),
        ],
    )  # fmt: skip
    def test_one_line_and_status_2(self, tune, home, arguments, message):
        Path("empty.json").write_text("[]")
        Path("half.json").write_text('[\n{"image": ')
        Path("object.json").write_text("{}")
        Path("lines.jsonl").write_text(json.dumps(record("0.png", "<image>", "a")) + "\n{")
        Path("there").mkdir()
        if "llama" in arguments:
            from transformers import LlamaForCausalLM

            LlamaForCausalLM(tiny.text_config()).save_pretrained("llama")
            tiny.tokenizer().save_pretrained("llama")
        if "partial" in arguments:
            model = tiny.llava()
            without = {name: x for name, x in model.state_dict().items() if "projector" not in name}
            model.save_pretrained("partial", state_dict=without)
            tiny.processor().save_pretrained("partial")
        before = sorted(path.name for path in Path().iterdir())
        status, _, errors = tune(*BUDGET, *arguments)
        complaint = [line for line in errors.splitlines() if line.startswith("visionzip_ext tune: ")]
        assert status == 2
        assert len(complaint) == 1
        assert complaint[0].startswith(f"visionzip_ext tune: {message}")
        assert sorted(path.name for path in Path().iterdir()) == before

    def test_a_worker_s_error_is_a_line_too(self, tune, home):
        whole = (home / "images" / "0.png").read_bytes()
        (home / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
        Path("bad.json").write_text(json.dumps([record("cut.png", "<image>\nwhat", "a cat")]))
        status, _, errors = tune(*BUDGET, "--dataloader_num_workers", "1", data="bad.json")
        assert status == 2
        assert errors.splitlines()[-1].startswith("visionzip_ext tune: bad.json:1: broken image ")

    def test_another_process_at_the_same_output(self, tune):
        Path("tuned.training").mkdir()
        with FileLock("tuned.training/lock"):
            status, _, errors = tune(*BUDGET)
        assert status == 2
        assert "visionzip_ext tune: --output tuned: another process is writing it" in errors
        assert tune(*BUDGET)[0] == 0

    @pytest.mark.parametrize("fraction", ["0", "1.5", "some"])
    def test_a_fraction_is_a_share(self, tune, capsys, fraction):
        with pytest.raises(SystemExit, match="2"):
            tune("--fraction", fraction)
        assert "expected a number above 0 and at most 1" in capsys.readouterr().err


class TestDatasets:
    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets")

    def rows(self) -> dict[str, list]:
        turns = [[{"role": "user", "content": "<image>\nwhat"}, {"role": "assistant", "content": "a cat"}]] * 4
        return {"messages": turns, "image": tiny.images(4)}

    @pytest.mark.parametrize("split", [False, True])
    def test_a_folder_is_learnt_from(self, tune, datasets, split):
        table = datasets.Dataset.from_dict(self.rows())
        (datasets.DatasetDict(train=table) if split else table).save_to_disk("table")
        status, output, _ = tune(*BUDGET, data="table")
        assert status == 0
        assert "learnt from 4 conversations" in output

    def test_several_images_a_row(self, datasets, tmp_path):
        turns = [[{"from": "human", "value": "<image><image>what"}, {"from": "gpt", "value": "a cat"}]]
        rows = {"conversations": turns, "images": [tiny.images(2)]}
        features = datasets.Features(
            conversations=datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
            images=datasets.List(datasets.Image()),
        )
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "table")
        (example,) = [read(tmp_path / "table", None)[0]]
        assert [image.size for image in example.images] == [image.size for image in tiny.images(2)]

    def test_the_row_is_told(self, datasets, tmp_path):
        rows = self.rows()
        rows["messages"] = [*rows["messages"][:3], rows["messages"][3][1:]]
        datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "table")
        with pytest.raises(TuneError, match=r"table, row 3: an answer without a question"):
            read(tmp_path / "table", None)
