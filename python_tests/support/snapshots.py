"""What a module and its classes hold, for comparison: whether something was really left as it was."""

from __future__ import annotations

from torch import nn


def instances(model: nn.Module) -> dict:
    """Every attribute of every module, by identity; the containers of submodules and hooks by their content."""
    return {
        (name, attribute): tuple((key, id(entry)) for key, entry in value.items())
        if isinstance(value, dict)
        else id(value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
    }


def classes(model: nn.Module) -> dict[type, dict]:
    """What the classes of a model's modules hold, and those that they come from."""
    found = {cls for module in model.modules() for cls in type(module).__mro__}
    return {cls: dict(vars(cls)) for cls in found if cls is not object}
