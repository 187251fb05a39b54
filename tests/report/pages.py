"""Pages read back, their data and their words; and what is done with open ones."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

HOSTILE = "</script><img src=x onerror=alert(1)>"


def data_of(page: str) -> Any:
    """Read back the data of a page, refusing what strict JSON does not know."""
    found = re.search(r'<script type="application/json" id="[\w-]+-data">(.*?)</script>', page)
    assert found is not None

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    return json.loads(found.group(1), parse_constant=refuse)


def markup_of(page: str) -> str:
    """Give a page without its scripts' and its styles' text."""
    return re.sub(r"(<(script|style)[^>]*>).*?(</\2>)", r"\1\3", page, flags=re.DOTALL)


def words_of(page: str) -> str:
    """Give the words of a page, without scripts, styles and tags."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", markup_of(page))))


def assert_asks_for_nothing(page: str) -> None:
    """Assert that a page names no other file, and forbids its browser to run or fetch any."""
    markup = markup_of(page)
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", markup)
    assert not re.search(r"@import|url\(", page.split("<style>")[1].split("</style>")[0])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', markup)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.group(1).split("style-src")[0]


def settle(page: Any) -> None:
    """Wait until what was asked of an open page is painted."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def drag_and_zoom(page: Any) -> None:
    """Move the graph of an open page with the mouse, and look at it from nearer."""
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 360, box["y"] + 340, steps=4)
    page.mouse.up()
    page.mouse.wheel(0, -300)
