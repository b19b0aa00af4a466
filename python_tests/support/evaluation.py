"""Tests that need the quality bench's packages: skipped, with what is missing, where these cannot be fetched."""

from __future__ import annotations

import functools

import pytest

from evaluation.packages import PACKAGES, MissingPackageError


@functools.cache
def _missing() -> str:
    try:
        for package in PACKAGES:
            package.folder()
    except MissingPackageError as error:
        return str(error)
    return ""


def needs_packages(test):
    """A decorator."""

    @functools.wraps(test)
    def with_packages(*args, **kwargs):
        if _missing():
            pytest.skip(_missing())
        return test(*args, **kwargs)

    return with_packages
