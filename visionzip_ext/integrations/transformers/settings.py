"""What `compress` was asked for, and its form in a model's config, where `save_pretrained` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visionzip_ext.tokens.budget import Budget

CONFIG_KEY = "visionzip"
_KEYWORDS = ("dominant", "contextual", "merge", "budget_per", "layout", "early_exit")


@dataclass(frozen=True)
class Settings:
    """What `compress` was asked for."""

    budget: Budget
    layout: str = "released"
    early_exit: bool = True

    def as_keywords(self) -> dict[str, Any]:
        """The keyword arguments of `compress` that make these settings; plain values, for the config."""
        budget = self.budget
        values = (budget.dominant, budget.contextual, budget.merge, budget.per, self.layout, self.early_exit)
        return dict(zip(_KEYWORDS, values, strict=True))


def keywords_in(config: Any) -> dict[str, Any] | None:
    """The keyword arguments of `compress` that a model's config holds; None if it holds none.

    Raises:
        TypeError: there is something else than a dict.
        ValueError: there is a key that is no keyword argument of `compress`.
    """
    setting = getattr(config, CONFIG_KEY, None)
    if setting is None:
        return None
    if not isinstance(setting, Mapping):
        raise TypeError(
            f"config.{CONFIG_KEY} must be a dict of keyword arguments of compress ({', '.join(_KEYWORDS)}), got "
            f"{setting!r} of type {type(setting).__name__}"
        )
    keywords = dict(setting)
    if "budget" in keywords and "budget_per" not in keywords:  # as earlier versions wrote it
        keywords["budget_per"] = keywords.pop("budget")
    if unknown := keywords.keys() - set(_KEYWORDS):
        raise ValueError(
            f"config.{CONFIG_KEY} has unknown keys {sorted(map(str, unknown))}; expected keyword arguments of "
            f"compress: {', '.join(_KEYWORDS)}"
        )
    return keywords
