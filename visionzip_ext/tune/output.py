"""One writer to a folder, which appears when it is whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from visionzip_ext.tune.errors import TuneError

_WHOLE = "whole"
_BEGUN = "begun.json"


class Output:
    """The folder that is asked for, and beside it the one that is worked in until it is done.

    Attributes:
        folder: what appears at the end.
        work: has the checkpoints of an interrupted training, which the next call resumes.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet."""
        self.folder = folder
        self.work = folder.with_name(f"{folder.name}.training")

    @contextlib.contextmanager
    def claimed(self, asked: Mapping[str, Any]) -> Iterator[None]:
        """Keep other processes out. Of a job of several processes, the first alone calls it.

        Args:
            asked: what the weights depend on; an interrupted training is resumed by the same alone.

        Raises:
            TuneError: the folder is there already, another process works on it, or something else was begun.
        """
        self._check_absent()
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.work / "lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise TuneError(f"--output {self.folder}: another process is writing it ({self.work}/lock)") from None
        except OSError as error:
            raise TuneError(f"--output {self.folder}: {error}") from None
        with lock:
            self._check_absent()  # another process may have made it since the first time
            self._check_begun(asked)
            try:
                yield
            finally:
                if not any(self.work.glob("checkpoint-*")):
                    shutil.rmtree(self.work, ignore_errors=True)

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """A folder to write to, which afterwards is the output, at once and whole; what was worked with goes."""
        whole = self.work / _WHOLE
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        yield whole
        whole.rename(self.folder)
        shutil.rmtree(self.work)

    def _check_absent(self) -> None:
        if self.folder.exists():
            raise TuneError(f"--output {self.folder} exists; give another, or remove it")

    def _check_begun(self, asked: Mapping[str, Any]) -> None:
        path = self.work / _BEGUN
        if path.exists():
            begun = json.loads(path.read_text())
            for name in sorted({*begun, *asked}):
                if begun.get(name) != asked.get(name):
                    raise TuneError(
                        f"{self.work} holds a training that was interrupted, with {name} {begun.get(name)!r}, not "
                        f"{asked.get(name)!r}; give the same, or remove that folder"
                    )
            return
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(dict(asked)))
        partial.rename(path)
