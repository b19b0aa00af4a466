"""What can go wrong at the user's end."""

from __future__ import annotations


class TuneError(Exception):
    """Something that the user can mend; its message is one line that says how."""

    @property
    def line(self) -> str:
        """The message; a data loader's worker process puts its traceback before it."""
        return str(self).splitlines()[-1].rpartition(f"{type(self).__name__}: ")[2]
