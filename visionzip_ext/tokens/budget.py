"""How many visual tokens an image may have, checked once, in the words of the person who asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from visionzip_ext.tokens.allocation import allocate_budgets, as_int

MERGE_RULES = ("residual", "mean")
POLICIES = ("attention", "distinct")
PER = ("tile", "image")


@dataclass(frozen=True)
class Rule:
    """By what rule tokens are kept and merged: the words that `visionzip_ext.zip` takes, where they are described.

    Raises:
        TypeError: `keep_cls` is not a bool.
        ValueError: `merge` or `policy` is neither of its two words.
    """

    merge: str = "residual"
    policy: str = "attention"
    keep_cls: bool = True

    def __post_init__(self) -> None:
        """Check the three."""
        if self.merge not in MERGE_RULES:
            raise ValueError(f'merge must be "residual" or "mean", got {self.merge!r}')
        if self.policy not in POLICIES:
            raise ValueError(f'policy must be "attention" or "distinct", got {self.policy!r}')
        if not isinstance(self.keep_cls, bool):
            kind = type(self.keep_cls).__name__
            raise TypeError(f"keep_cls must be True or False, got {self.keep_cls!r} of type {kind}")


class TileBudget(NamedTuple):
    """Tokens of one tile: `dominant` kept (CLS among them, unless it takes no row), `contextual` merged."""

    dominant: int
    contextual: int

    @property
    def tokens(self) -> int:
        """Rows that the tile becomes."""
        return self.dominant + self.contextual

    def at_most(self, tokens: int) -> TileBudget:
        """The budget of a tile that has so many tokens."""
        dominant = min(self.dominant, tokens)
        return TileBudget(dominant, min(self.contextual, tokens - dominant))


@dataclass(frozen=True)
class Budget:
    """The token budget of a tile or image and the rule by which its tokens are kept and merged.

    A tile is what the encoder sees at a time: an image, a tile of a large image, a frame of a video. Newlines that a
    model writes between rows of a tiled image or after a video are not counted: they come on top of the budget, see
    `TiledImages` on its layout "native".

    Attributes:
        dominant: tokens kept as they are; where the encoder has a CLS token that takes a row, it is one of them.
        contextual: tokens that the rest is merged into.
        merge: "residual" or "mean", see `visionzip_ext.zip`.
        per: "tile": both numbers are for each tile; "image": for a whole image or video, spread over its tiles.
        policy: "attention" or "distinct", see `visionzip_ext.zip`.
        keep_cls: CLS, where there is one, takes a row.

    Raises:
        TypeError: `dominant` or `contextual` is not an integer, `keep_cls` not a bool.
        ValueError: one of them is too small, or `merge`, `per` or `policy` is neither word.
    """

    dominant: int
    contextual: int
    merge: str = "residual"
    per: str = "tile"
    policy: str = "attention"
    keep_cls: bool = True

    def __post_init__(self) -> None:
        """Check them on their own; `check_fits` checks them against an encoder."""
        for name, value, least in (("dominant", self.dominant, 1), ("contextual", self.contextual, 0)):
            number = as_int(name, value)
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
            object.__setattr__(self, name, number)  # a plain int, which the model's config can hold
        _ = self.rule
        if self.per not in PER:
            raise ValueError(f'budget_per must be "tile" or "image", got {self.per!r}')

    def __str__(self) -> str:
        """In the words of an error."""
        return f"{self.dominant} + {self.contextual}"

    @property
    def rule(self) -> Rule:
        """By what rule tokens are kept and merged."""
        return Rule(self.merge, self.policy, self.keep_cls)

    @property
    def tokens(self) -> int:
        """Visual tokens of one tile, or of one image, as `per` says."""
        return self.dominant + self.contextual

    def of_tiles(self, tiles: int, tile_tokens: int) -> list[TileBudget]:
        """The budget of each of an image's tiles. Shares of an image's budget differ by one at most, first tiles first.

        Args:
            tiles: how many the image has.
            tile_tokens: tokens of a tile that can be left, CLS included if it takes a row. A large budget of an image
                with few tiles is not used up.

        Raises:
            ValueError: an image's budget has fewer dominant tokens than the image has tiles.
        """
        if self.per == "tile":
            return [TileBudget(self.dominant, self.contextual)] * tiles
        if self.dominant < tiles:
            raise ValueError(
                f'dominant={self.dominant} with budget_per="image" is less than one token for each of {tiles} tiles '
                f"(or frames); make it at least {tiles}"
            )
        shares = (
            TileBudget(self.dominant // tiles + (tile < self.dominant % tiles), self._contextual_of(tile, tiles))
            for tile in range(tiles)
        )
        return [share.at_most(tile_tokens) for share in shares]

    def check_fits(self, encoder_tokens: int, encoder: str, *, fewest_tiles: int = 1) -> None:
        """Raise ValueError unless an encoder with this many tokens a tile has enough of them.

        Args:
            encoder_tokens: of a tile, CLS included if it takes a row.
            encoder: its name, for the message.
            fewest_tiles: that an image has.
        """
        available = encoder_tokens * (fewest_tiles if self.per == "image" else 1)
        if self.tokens > available:
            of_what = "a tile" if fewest_tiles > 1 and self.per == "tile" else "an image"
            raise ValueError(
                f"dominant={self.dominant} and contextual={self.contextual} ask for {self.tokens} tokens of {of_what}, "
                f"but {encoder} makes {available}; lower them so that dominant + contextual <= {available}"
            )

    def _contextual_of(self, tile: int, tiles: int) -> int:
        # The last tiles first, so that no tile is rounded up twice.
        return self.contextual // tiles + (tiles - 1 - tile < self.contextual % tiles)


@dataclass(frozen=True)
class Share:
    """A share of the tokens of each image, tile of a large image, or frame of a video.

    Of the tokens that a tile may have, 10 in 64 are contextual, the paper's 54 + 10 (section 4).

    Attributes:
        keep: the share, above 0 and at most 1; rounded to the nearest token.
        min_tokens: dominant + contextual of a tile at least, as far as it has so many.
        max_tokens: dominant + contextual of a tile at most; None: no bound.
        merge: "residual" or "mean", see `visionzip_ext.zip`.
        policy: "attention" or "distinct", see `visionzip_ext.zip`.
        keep_cls: CLS, where there is one, takes a row.

    Raises:
        TypeError: an argument is not of the type said.
        ValueError: `keep` is not in (0, 1], the bounds are below 1 or cross, or `merge` or `policy` is neither word.
    """

    keep: float
    min_tokens: int = 1
    max_tokens: int | None = None
    merge: str = "residual"
    policy: str = "attention"
    keep_cls: bool = True

    def __post_init__(self) -> None:
        """Check them."""
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
            raise TypeError(f"keep must be a float, got {self.keep!r} of type {type(self.keep).__name__}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, a share of each image's tokens, got {self.keep}")
        for name in ("min_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is None and name == "max_tokens":
                continue
            number = as_int(name, value)
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
            object.__setattr__(self, name, number)  # a plain int, which the model's config can hold
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens={self.max_tokens} is below min_tokens={self.min_tokens}")
        _ = self.rule

    def __str__(self) -> str:
        """In the words of an error."""
        return f"keep={self.keep}"

    @property
    def rule(self) -> Rule:
        """By what rule tokens are kept and merged."""
        return Rule(self.merge, self.policy, self.keep_cls)

    def of_tiles(self, tiles: int, tile_tokens: int) -> list[TileBudget]:
        """The budget of each of so many tiles, or frames, of so many tokens."""
        (k,), (m,) = allocate_budgets([tile_tokens], ratio=self.keep)
        tokens = max(k + m, self.min_tokens)
        if self.max_tokens is not None:
            tokens = min(tokens, self.max_tokens)
        (k,), (m,) = allocate_budgets([min(tokens, tile_tokens)], ratio=1.0)
        return [TileBudget(k, m)] * tiles

    def as_budget(self, tile_tokens: int) -> Budget:
        """The fixed budget that this is where all tiles have so many tokens, CLS included if it takes a row."""
        (tile,) = self.of_tiles(1, tile_tokens)
        return Budget(*tile, self.merge, policy=self.policy, keep_cls=self.keep_cls)
