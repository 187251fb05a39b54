"""What all figures share: they touch nothing global, and can be read by everyone."""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import sys
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from neurograph.errors import OptionError
from neurograph.report import figures
from neurograph.report.figures import style
from tests.report.figures import drawn
from tests.report.figures.drawn import FIGURES, SHOWN, WILD, texts

every = pytest.mark.parametrize("name", FIGURES)

# Machado, Oliveira & Fernandes (2009): what dichromats see, of linear RGB.
DICHROMATS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = [0.9505, 1.0, 1.089]


@functools.cache
def figure_of(name: str) -> Figure:
    """A figure for tests that only look at it; what matplotlib warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # say, of a layout that does not fit
        figure = FIGURES[name]()
        figure.draw_without_rendering()
    return figure


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    ratio = np.array(XYZ) @ rgb.clip(0, 1) / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@every
def test_nothing_global_is_touched(name: str) -> None:
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    figure.savefig(io.BytesIO(), format="svg")
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


@every
def test_all_text_can_be_read_in_a_readme(name: str) -> None:
    figure = figure_of(name)
    shown = texts(figure)
    width, height = figure.get_size_inches() * figure.dpi
    assert width == 800
    for text in shown:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= -1, text.get_text()
        assert box.x1 <= width + 1, text.get_text()
        assert box.y1 <= height + 1, text.get_text()
        assert text.get_fontsize() >= 9, text.get_text()
    assert figure.get_suptitle()
    for ax in figure.axes:
        assert ax.get_window_extent().height > 80


@every
def test_no_text_lies_on_another(name: str) -> None:
    figure = figure_of(name)
    boxes = {text: text.get_window_extent() for text in texts(figure)}
    for (one, box), (other, its) in itertools.combinations(boxes.items(), 2):
        apart = not box.padded(-1).overlaps(its.padded(-1))
        assert apart, (one.get_text(), other.get_text())


@every
def test_every_panel_says_what_its_axes_are(name: str) -> None:
    figure = figure_of(name)
    down = [ax.get_xlabel() for ax in figure.axes] + [figure.get_supxlabel()]
    across = [ax.get_ylabel() for ax in figure.axes] + [figure.get_supylabel()]
    assert any(down) or name == "exemplars"  # which have none
    assert any(across) or name in ("shift", "exemplars")  # whose rows are named


@every
def test_a_users_own_style_changes_nothing(name: str) -> None:
    def picture() -> bytes:
        file = io.BytesIO()
        FIGURES[name]().savefig(file, format="png", dpi=50)
        return file.getvalue()

    plain = picture()
    # How a file is written is the caller's; older versions of this style paint it black.
    own = {"font.size": 30, "lines.linewidth": 9, "savefig.facecolor": "auto"}
    with plt.style.context(["dark_background", own]):
        assert picture() == plain


def test_colours_differ_for_everyone() -> None:
    used_together = [
        style.PALETTE[:4],
        (style.BLUE, style.VERMILLION, style.PURPLE, style.GREY),
        (style.BLUE, style.VERMILLION, style.GREEN, style.GREY),
    ]
    for colours in used_together:
        for kind, matrix in {"all": np.eye(3), **DICHROMATS}.items():
            seen = [lab(np.array(matrix) @ linear(colour)) for colour in colours]
            gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
            # A just noticeable difference is about 2.
            assert min(gaps) > 9, (kind, colours)


def test_names_are_no_mathematics() -> None:
    values = drawn.values(2)
    figure = figures.distributions(
        values, [("hidden", 0)], names=[WILD], class_names=["_x$^2$", "$\\alpha$"]
    )
    shown = {text.get_text().replace(r"\$", "$") for text in texts(figure)}
    assert {SHOWN, "\xa0_x$^2$", "$\\alpha$"} <= shown
    for text in texts(figure):
        written, kind = text._preprocess_math(text.get_text())  # type: ignore[attr-defined]
        assert kind is False
        assert r"\$" not in written


def test_a_name_keeps_both_ends() -> None:
    assert style.shortened("a" * 50 + "[37]", 20) == "aaaaaa…" + "a" * 9 + "[37]"
    assert style.shortened("short", 5) == "short"
    assert len(style.shortened("x" * 99, 30)) == 30
    assert style.literal("a$" * 3) == r"a\$a\$a\$"


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (7, (3, 3))])
def test_panels_fill_rows_evenly(count: int, shape: tuple[int, int]) -> None:
    figure, axes = style.panels(count, "title")
    assert len(axes) == len(figure.axes) == count
    grid = axes[0].get_subplotspec().get_gridspec()  # type: ignore[union-attr]
    assert (grid.nrows, grid.ncols) == shape


def test_outer_panels_carry_the_labels() -> None:
    _, axes = style.panels(5, "title")  # two rows of three, the last place empty
    told = [(first, lowest) for _, first, lowest in style.outer(axes)]
    assert told == [(True, False), (False, False), (False, True), (True, True), (False, True)]


def test_a_legend_keeps_its_order_and_its_width() -> None:
    for count in (2, 5, 12):
        figure, _ = style.panels(1, "title")
        names = [f"a class called {i}" for i in range(count)]
        style.legend(figure, [style.key(color="black") for _ in names], names)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= 800
        places = {t.get_text(): t.get_window_extent() for t in legend.get_texts()}
        rows = sorted(names, key=lambda name: (-round(places[name].y0), places[name].x0))
        assert rows == names


def test_too_many_panels_are_refused() -> None:
    with pytest.raises(OptionError, match=r"31 panels do not fit one figure: .* with layers="):
        style.panels(31, "title", option="layers")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("neurograph.report.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'neurograph-torch\[plot\]'"):
        importlib.import_module("neurograph.report.figures")
