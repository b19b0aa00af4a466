"""Every link inside the repository leads somewhere, and every page is found from the index."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.pages import PAGES, ROOT, Page

_BY_PATH = {page.path: page for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_anchors_resolve(page: Page):
    broken = []
    for link in page.links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        if not target.exists() or (anchor and anchor not in _BY_PATH[target].anchors):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index():
    index = _BY_PATH[ROOT / "docs" / "README.md"]
    linked = {Path(index.path.parent, link.partition("#")[0]).resolve() for link in index.links}
    assert not {str(page) for page in PAGES if page.path not in linked | {index.path, ROOT / "README.md"}}
