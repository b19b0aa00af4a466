"""The Python examples of README and docs run, one after another on each page, on tiny random models."""

from __future__ import annotations

from unittest import SkipTest

import pytest
from support.pages import PAGES, ROOT, Page
from sybil import Sybil
from sybil.example import NotEvaluated
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

_EXAMPLES = Sybil([PythonCodeBlockParser(), SkipParser()], path=str(ROOT))
_WITH_EXAMPLES = [page for page in PAGES if "```python" in page.path.read_text()]


@pytest.mark.parametrize("page", _WITH_EXAMPLES, ids=str)
def test_examples_run(page: Page, request: pytest.FixtureRequest):
    fixture = "migrating_namespace" if page.path.name == "migrating.md" else "namespace"
    document = _EXAMPLES.parse(page.path)
    document.namespace.update(request.getfixturevalue(fixture))
    skipped = []
    for example in document.examples():
        try:
            example.evaluate()
        except NotEvaluated:
            continue
        except SkipTest as reason:
            skipped.append(f"line {example.line}: {reason}")
    if skipped:
        pytest.skip("; ".join(skipped) + "; all other examples ran")
