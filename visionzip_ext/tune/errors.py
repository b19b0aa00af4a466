"""What can go wrong at the user's end."""

from __future__ import annotations


class TuneError(Exception):
    """Something that the user can mend; the last line of its message says how.

    A data loader's worker process puts its traceback before the message.
    """
