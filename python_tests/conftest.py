"""A fresh random seed for every run, told when a test fails; the backends as parameters; Hypothesis' settings."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from support import forced_path, require_cuda
from support.backends import BACKENDS

_SEED_VARIABLE = "VISIONZIP_TEST_SEED"
_SEED = int(os.environ.get(_SEED_VARIABLE) or random.SystemRandom().randrange(2**31))

# Helpers whose assertions tell as much as those of tests.
pytest.register_assert_rewrite("support.bad_input", "support.oracle", "support.packed", "support.torch_checks")

# Time decides nothing: the machine may be busy, and a test's first example pays for what torch sets up lazily.
hypothesis.settings.register_profile(
    "visionzip",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=False,
    print_blob=True,
)
hypothesis.settings.load_profile("visionzip")


@pytest.hookimpl(tryfirst=True)  # before Hypothesis reads its option
def pytest_configure(config: pytest.Config) -> None:
    require_cuda.check()
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(_SEED)


def pytest_report_header() -> str:
    return f"random seed: {_SEED_VARIABLE}={_SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    except Exception as error:
        forced_path.expect_no_room(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    require_cuda.fail_if_skipped(report)
    if report.failed:
        report.sections.append(("random seed", f"to repeat this test: {_SEED_VARIABLE}={_SEED}"))
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend`: each implementation; `bitwise_backend` and `dispatched_backend`: those of which that is true."""
    for name, chosen in (
        ("backend", BACKENDS),
        ("bitwise_backend", [backend for backend in BACKENDS if backend.bitwise]),
        ("dispatched_backend", [backend for backend in BACKENDS if backend.dispatched]),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, chosen, ids=str)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Packaging first: the longest, and its builds, made once a process, are then all in one process's first share."""
    items.sort(key=lambda item: item.path.parent.name != "packaging")


def _seed_of(request: pytest.FixtureRequest) -> int:
    """A test's own: the same in any selection of tests of the same run's seed."""
    return _SEED ^ zlib.crc32(request.node.nodeid.encode())


@pytest.fixture(autouse=True)
def _global_generators(request: pytest.FixtureRequest) -> None:
    """Whoever draws from torch's own generator, or from Python's, repeats as well."""
    random.seed(_seed_of(request))
    torch.manual_seed(_seed_of(request))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """Random numbers of this test alone."""
    return torch.Generator().manual_seed(_seed_of(request))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads; restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
