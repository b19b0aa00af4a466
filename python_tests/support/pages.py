"""The pages of documentation, read as Markdown: their links, headings, commands and code spans."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
_MARKDOWN = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Page:
    """One Markdown file of the repository."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def tokens(self) -> list[Token]:
        """Blocks, with what stands inside paragraphs as children."""
        return _MARKDOWN.parse(self.path.read_text())

    @property
    def inline(self) -> Iterator[Token]:
        """What stands inside paragraphs, headings and cells."""
        for token in self.tokens:
            yield from token.children or ()

    @property
    def links(self) -> list[str]:
        """Targets of links and pictures."""
        return [str(token.attrs[name]) for token in self.inline for name in ("href", "src") if name in token.attrs]

    @property
    def code_spans(self) -> list[str]:
        """What stands between backticks."""
        return [token.content for token in self.inline if token.type == "code_inline"]

    @property
    def anchors(self) -> set[str]:
        """Of all headings, as GitHub makes them: in lower case, without punctuation, hyphens for spaces."""
        headings = (self.tokens[i + 1].content for i, token in enumerate(self.tokens) if token.type == "heading_open")
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    @property
    def shell_lines(self) -> list[str]:
        """The commands of all shell blocks, comments taken off."""
        blocks = (token.content for token in self.tokens if token.type == "fence" and token.info == "sh")
        lines = (line.split("  #")[0].strip() for block in blocks for line in block.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


PAGES = [Page(path) for path in sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))]
