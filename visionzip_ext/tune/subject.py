"""The model that is trained: a checkpoint, compressed, of which a part learns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers import compress, mark_tuned, supported_models
from visionzip_ext.integrations.transformers.registry import adapter_for
from visionzip_ext.integrations.transformers.settings import CONFIG_KEY
from visionzip_ext.tune.errors import TuneError

_WITH_HEAD = "ForConditionalGeneration"
PROJECTOR_FILE = "projector.safetensors"
PARTS = ("projector", "all")


def load(name: str, dtype: Any) -> tuple[PreTrainedModel, Any]:
    """The checkpoint of that name (a folder, or a name on the Hugging Face hub), and its processor.

    Raises:
        TuneError: there is none, its model is not a supported one, or its weights are not those of its model.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        processor = AutoProcessor.from_pretrained(name)
        cls = _class_of(name, config)
        model, told = cls.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TuneError(f"--model {name}: {' '.join(str(error).split())}") from None
    if missing := sorted(told["missing_keys"]):
        raise TuneError(f"--model {name}: {len(missing)} weights of {cls.__name__} are not there, such as {missing[0]}")
    return model, processor


def _class_of(name: str, config: Any) -> Any:
    known = [cls for cls in supported_models() if cls.endswith(_WITH_HEAD)]
    (architecture,) = getattr(config, "architectures", None) or [f"unknown, of type {config.model_type!r}"]
    if architecture not in known:
        raise TuneError(f"--model {name}: its model is {architecture}; expected one of {', '.join(known)}")
    return getattr(transformers, architecture)


def zip_as_asked(model: PreTrainedModel, processor: ProcessorMixin, setting: Mapping[str, Any] | None) -> None:
    """`compress` by these keywords; None leaves all tokens.

    Raises:
        TuneError: the model or its processor cannot be compressed so.
    """
    if setting is None:
        return
    try:
        compress(model, processor, **setting)
    except (TypeError, ValueError) as error:
        raise TuneError(str(error)) from None


def choose_parts(model: PreTrainedModel, part: str) -> list[str]:
    """Let a part of the model learn and nothing else: "projector", or "all": that and the language model.

    Returns the names of the parameters that learn. The vision tower never does.

    Raises:
        TuneError: the model has no projector.
    """
    learning = _projectors(model)
    if part == "all":
        adapter = adapter_for(model)
        learning += [adapter.base_model_of(model).get_submodule(adapter.language_model), model.get_output_embeddings()]
    model.requires_grad_(False)
    for module in learning:
        module.requires_grad_(True)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _projectors(model: PreTrainedModel) -> list[nn.Module]:
    adapter = adapter_for(model)
    try:
        return [adapter.base_model_of(model).get_submodule(path) for path in adapter.projectors]
    except AttributeError as error:
        raise TuneError(f"this {type(model).__name__} has no projector to train: {error}") from None


def put_in(model: PreTrainedModel, trained: Mapping[str, Tensor]) -> None:
    """Weights by the names of `choose_parts` into a model as it was loaded.

    Raises:
        RuntimeError: they are another model's.
    """
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    if unexpected:
        raise RuntimeError(f"{type(model).__name__} has no {unexpected[0]}")


def save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """An ordinary checkpoint folder of transformers, and the projector in a file of its own.

    The config says what the model is compressed to, and what its weights were tuned for.

    That file's names are those of the base model's parameters, its metadata the setting of `compress`.
    """
    setting = getattr(model.config, CONFIG_KEY, None)
    if setting is not None:
        mark_tuned(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    base_model = adapter_for(model).base_model_of(model)
    projector = {id(parameter) for module in _projectors(model) for parameter in module.parameters()}
    weights = {name: x.detach().contiguous() for name, x in base_model.named_parameters() if id(x) in projector}
    save_file(weights, folder / PROJECTOR_FILE, metadata={"format": "pt", CONFIG_KEY: json.dumps(setting)})


def in_single_precision(model: PreTrainedModel) -> None:
    """What learns, in float32: steps of a learning rate of 2e-5 are too small for bfloat16 and float16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
