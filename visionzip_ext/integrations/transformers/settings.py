"""What `compress` was asked for, and its form in a model's config, where `save_pretrained` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from visionzip_ext.tokens.budget import Budget, Share

CONFIG_KEY = "visionzip"
TUNED_KEY = "visionzip_tuned"
_BUDGET_KEYWORDS = ("dominant", "contextual", "keep", "min_tokens", "max_tokens")
_KEYWORDS = (*_BUDGET_KEYWORDS, "merge", "policy", "keep_cls", "budget_per", "layout", "positions", "early_exit")
POSITIONS = ("renumbered", "kept")


@dataclass(frozen=True)
class Settings:
    """What `compress` was asked for."""

    budget: Budget | Share
    layout: str = "released"
    positions: str = "renumbered"
    early_exit: bool = True

    def as_keywords(self) -> dict[str, Any]:
        """The keyword arguments of `compress` that make these settings; plain values, for the config."""
        budget = self.budget
        if isinstance(budget, Share):
            bounds = {"min_tokens": budget.min_tokens, "max_tokens": budget.max_tokens}
            asked: dict[str, Any] = {"keep": budget.keep, **bounds}
        else:
            asked = {"dominant": budget.dominant, "contextual": budget.contextual}
            asked |= {"budget_per": budget.per}
        asked |= {"merge": budget.merge, "policy": budget.policy, "keep_cls": budget.keep_cls}
        return asked | {"layout": self.layout, "positions": self.positions, "early_exit": self.early_exit}


def keywords_in(config: Any, key: str = CONFIG_KEY) -> dict[str, Any] | None:
    """The keyword arguments of `compress` that a model's config holds; None if it holds none.

    Args:
        config: the base model's.
        key: `CONFIG_KEY`, the setting that the model was compressed to; or `TUNED_KEY`, that its weights were tuned to.

    Raises:
        TypeError: there is something else than a dict.
        ValueError: there is a key that is no keyword argument of `compress`.
    """
    setting = getattr(config, key, None)
    if setting is None:
        return None
    if not isinstance(setting, Mapping):
        raise TypeError(
            f"config.{key} must be a dict of keyword arguments of compress ({', '.join(_KEYWORDS)}), got "
            f"{setting!r} of type {type(setting).__name__}"
        )
    keywords = dict(setting)
    if "budget" in keywords and "budget_per" not in keywords:  # as earlier versions wrote it
        keywords["budget_per"] = keywords.pop("budget")
    if unknown := keywords.keys() - set(_KEYWORDS):
        raise ValueError(
            f"config.{key} has unknown keys {sorted(map(str, unknown))}; expected keyword arguments of "
            f"compress: {', '.join(_KEYWORDS)}"
        )
    return keywords


def asked_positions(positions: str | None, of_family: tuple[str, ...]) -> str:
    """The value of `compress`'s `positions`; by default the first of those that a family knows.

    Raises:
        ValueError: another word than those of `POSITIONS`.
    """
    if positions is None:
        return of_family[0]
    if positions not in POSITIONS:
        raise ValueError(f'positions must be "renumbered" or "kept", got {positions!r}')
    return positions


def tuned_otherwise(asked: Mapping[str, Any], tuned: Mapping[str, Any]) -> list[str]:
    """The keywords of `compress` in which a setting differs from that of tuning, of those that tuned weights depend on.

    Args:
        asked: all keywords of the setting, as `Settings.as_keywords` makes them.
        tuned: those of tuning; what an earlier version did not write down is not compared.
    """
    return [name for name in _KEYWORDS if name != "early_exit" and name in tuned and tuned[name] != asked.get(name)]


def asked_budget(
    dominant: int | None,
    contextual: int | None,
    keep: float | None,
    min_tokens: int | None,
    max_tokens: int | None,
    merge: str,
    budget_per: str,
    policy: str = "attention",
    keep_cls: bool = True,
) -> Budget | Share:
    """The budget that these arguments of `compress` ask for; without any, the paper's 54 + 10.

    Raises:
        TypeError: a share and fixed numbers at once, or bounds without a share; and as `Budget` and `Share`.
        ValueError: as `Budget` and `Share`; `keep` with `budget_per`.
    """
    if keep is None:
        for name, bound in (("min_tokens", min_tokens), ("max_tokens", max_tokens)):
            if bound is not None:
                raise TypeError(f"{name}={bound!r} bounds the tokens that a share keeps; give keep= as well")
        dominant, contextual = 54 if dominant is None else dominant, 10 if contextual is None else contextual
        return Budget(dominant, contextual, merge, budget_per, policy, keep_cls)
    for name, number in (("dominant", dominant), ("contextual", contextual)):
        if number is not None:
            raise TypeError(
                f"got both keep={keep!r} and {name}={number!r}; give keep= for a share of each image's tokens, or "
                "dominant= and contextual= for the same number of every image"
            )
    if budget_per != "tile":
        raise ValueError(f"budget_per={budget_per!r} is for dominant= and contextual=; keep is a share of every frame")
    return Share(keep, 1 if min_tokens is None else min_tokens, max_tokens, merge, policy, keep_cls)
