"""What can go wrong at the user's end."""

from __future__ import annotations


class DemoError(Exception):
    """Something that the user can mend; its message is one line that says how."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
