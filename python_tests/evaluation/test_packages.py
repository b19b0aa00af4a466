"""What is fetched: by its client, checked, and whole or not at all."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
import zipfile
from dataclasses import replace

import pytest

from evaluation import packages
from evaluation.packages import MissingPackageError, Package


@pytest.fixture
def package(tmp_path, monkeypatch) -> Package:
    """One whose client copies a file."""
    monkeypatch.setattr(packages, "HOME", tmp_path / "home")
    archive = tmp_path / "some.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("inside/one.txt", "1")
    copy = (sys.executable, "-c", f"import shutil; shutil.copy({str(archive)!r}, 'some.zip')")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Package("some", "some pictures", copy, sha256, packages._unzip)


def test_fetched_once(package):
    assert (package.folder() / "inside/one.txt").read_text() == "1"
    broken = replace(package, fetch=("no-such-client",))
    assert broken.folder() == package.folder()  # it is there: nothing is fetched


def test_two_at_a_time_fetch_once(package):
    """The second waits, and finds what the first fetched. Threads take the lock as processes do."""
    slow = replace(package, fetch=(*package.fetch[:2], f"import time; time.sleep(1); {package.fetch[2]}"))
    first = threading.Thread(target=slow.folder)
    first.start()
    time.sleep(0.3)
    assert (replace(package, fetch=("no-such-client",)).folder() / "inside/one.txt").exists()
    first.join()


def test_other_bytes_are_refused(package):
    with pytest.raises(MissingPackageError, match=r"some\.zip, some pictures: sha256 is .*; expected 00"):
        replace(package, sha256="00").folder()
    assert not (packages.HOME / "some").exists()
    assert package.folder().exists()  # and another try is not disturbed by what was left


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("no-such-client", "x"), "some pictures cannot be fetched by `no-such-client x`: .*No such file"),
        (
            (sys.executable, "-c", "raise SystemExit('no network')"),
            "cannot be fetched by .*no network",
        ),
    ],
)
def test_a_client_that_fails_is_named(package, command, words):
    with pytest.raises(MissingPackageError, match=words):
        replace(package, fetch=command).folder()
