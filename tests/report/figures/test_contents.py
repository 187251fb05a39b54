"""What is drawn equals what it is drawn from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

import neurograph as ng
from neurograph.ablation.rankings import ORDERS
from neurograph.errors import OptionError
from neurograph.report import figures
from neurograph.report.figures import style
from tests.report.figures import drawn
from tests.report.figures.drawn import Values, legend, title, titles


def lines(ax: Axes, colour: str | None = None) -> list[Line2D]:
    return [line for line in ax.lines if colour in (None, line.get_color())]


def points(ax: Axes) -> np.ndarray:
    """All points scattered in a panel, `[points, 2]`."""
    found = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    return np.concatenate([np.empty((0, 2)), *found])


def written(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


# -- responses -----------------------------------------------------------------------------------


def test_responses_are_the_curves() -> None:
    curves = drawn.curves()
    figure = figures.responses(curves)
    summary = curves.summary()
    assert titles(figure) == list(summary["name"])
    for ax, (_, told) in zip(figure.axes, summary.iterrows(), strict=True):
        rows = curves.table[curves.table["index"] == told["index"]]
        (line,) = lines(ax)
        np.testing.assert_array_equal(line.get_xdata(), rows["level"])
        np.testing.assert_array_equal(line.get_ydata(), rows["target"])
        (band,) = ax.patches
        box = band.get_extents().transformed(ax.transData.inverted())
        assert (box.y0, box.y1) == pytest.approx((told["low"], told["high"]))
        assert told["shape"] in title(ax)
    assert {title(ax).split("\n")[1].split()[0].strip(",") for ax in figure.axes} == {
        "bent",
        "rising",
        "falling",
        "flat",
    }
    looks = {(line.get_color(), line.get_marker()) for ax in figure.axes for line in lines(ax)}
    assert len(looks) == 4
    scales = {ax.get_ylim() for ax in figure.axes}
    assert len(scales) == 1
    assert "'output'" in figure.get_suptitle()
    assert "quantile" in figure.get_supxlabel()


def test_responses_shows_the_widest() -> None:
    curves = drawn.curves()
    figure = figures.responses(curves, most=2)
    assert titles(figure) == list(curves.summary()["name"][:2])
    assert "the widest 2 of 5 curves" in figure.get_suptitle()


def test_responses_of_layers_with_and_without_positions() -> None:
    """Where only some layers have positions, the others' are missing in the table."""
    curves = drawn.curves()
    table, summary = curves.table.copy(), curves.summary()
    for frame in (table, summary):
        frame["position"] = np.where(frame["index"] == 1, 3, np.nan)
    figure = figures.responses(replace(curves, table=table, _summary=summary))
    assert [len(lines(ax)[0].get_xdata()) for ax in figure.axes] == [7] * 5


# -- quantile bands ------------------------------------------------------------------------------


def test_quantile_bands_are_the_quantiles() -> None:
    graph = drawn.profiled()
    figure = figures.quantile_bands(graph)
    assert titles(figure) == ["input, 1 neuron", "0, 4 neurons", "3, 3 neurons"]
    for ax, layer in zip(figure.axes, graph, strict=True):
        table = graph.nodes[layer]["quantiles"].double().numpy()
        table = table.reshape(*table.shape[:2], -1).mean(axis=2)
        table = table[:, table[3].argsort()]
        *bands, median = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
        np.testing.assert_allclose(median.get_data().values, table[3])
        assert len(bands) == 3
        for i, band in enumerate(bands):
            data = band.get_data()
            np.testing.assert_allclose(data.baseline, table[i])
            np.testing.assert_allclose(data.values, table[-1 - i])
        low, high = ax.get_ylim()
        assert low <= table.min() <= table.max() <= high
    told = ["0–100 % of the data", "5–95 % of the data", "25–75 % of the data", "median"]
    assert legend(figure) == told


def test_quantile_bands_of_chosen_layers_and_levels() -> None:
    sample = drawn.Waves()
    X = np.random.default_rng(0).normal(size=(50, 5)).astype("float32")
    graph = ng.profile(sample, X, levels=(0.1, 0.2, 0.5, 0.9), progress=False)
    figure = figures.quantile_bands(graph, layers=["hidden"])
    assert titles(figure) == ["hidden, 5 neurons"]
    assert legend(figure) == ["10–90 % of the data", "median"]
    assert titles(figures.quantile_bands(graph, layers="hidden")) == ["hidden, 5 neurons"]


# -- distributions -------------------------------------------------------------------------------


def test_distributions_are_densities_of_shared_bins() -> None:
    values = drawn.values(2)
    figure = figures.distributions(
        values, [("hidden", 0), ng.Neuron("hidden", 3)], class_names=["well", "ill"]
    )
    assert titles(figure) == ["hidden[0]", "hidden[3]"]
    assert legend(figure) == ["well", "ill", "middle 90 %, middle 50 %, median"]
    for ax, index in zip(figure.axes, (0, 3), strict=True):
        outlines = [p for p in ax.patches if isinstance(p, StepPatch) and not p.get_fill()]
        edges = outlines[0].get_data().edges
        assert len(outlines) == 2
        for label, outline in enumerate(outlines):
            column = values.values["hidden"][label][:, index]
            heights = outline.get_data().values
            np.testing.assert_array_equal(outline.get_data().edges, edges)
            assert (heights * np.diff(edges)).sum() == pytest.approx(1)
            np.testing.assert_allclose(heights, np.histogram(column, edges, density=True)[0])
            wide, half, middle = lines(ax, style.PALETTE[label])
            np.testing.assert_allclose(wide.get_xdata(), np.quantile(column, (0.05, 0.95)))
            np.testing.assert_allclose(half.get_xdata(), np.quantile(column, (0.25, 0.75)))
            np.testing.assert_allclose(middle.get_xdata(), [np.median(column)])
        assert ax.get_ylabel() == ("density" if index == 0 else "")
        assert ax.get_xlabel() == "activation"


def test_distributions_take_the_values_own_names() -> None:
    values = replace(drawn.values(2), names={"hidden": ("age", "dose", "mass", "sex")})
    assert titles(figures.distributions(values, [("hidden", 1)])) == ["dose"]
    assert titles(figures.distributions(values, [("hidden", 1)], names=["x"])) == ["x"]


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30, 1e30])
def test_a_neuron_that_never_varies_has_a_distribution(value: float) -> None:
    rows = np.full((20, 1), value, dtype="float32")
    figure = figures.distributions(Values({"a": {"x": rows, "y": rows[:5]}}), [("a", 0)])
    edges = figure.axes[0].patches[0].get_data().edges  # type: ignore[attr-defined]
    assert edges[0] < value < edges[-1]
    figure.draw_without_rendering()


def test_labels_of_any_kind_name_classes() -> None:
    rows = np.arange(6.0)[:, None]
    found = Values({"a": {"yes": rows, 2: rows, np.int64(0): rows}})
    figure = figures.distributions(found, [("a", 0)], class_names=["zero", "one"])
    assert legend(figure)[:3] == ["yes", "2", "zero"]


# -- masking -------------------------------------------------------------------------------------


def test_masking_is_the_summary() -> None:
    curves = drawn.masked()
    figure = figures.masking(curves)
    assert titles(figure) == ["by effect", "by gradient"]
    assert legend(figure) == ["important", "unimportant", "random", "whole model"]
    colours = {"important": style.VERMILLION, "unimportant": style.BLUE, "random": style.GREY}
    for ax, ranking in zip(figure.axes, ("effect", "gradient"), strict=True):
        assert lines(ax, "black")[0].get_ydata() == [0.9, 0.9]
        for band, (group, colour) in zip(ax.collections, colours.items(), strict=True):
            table = curves.table
            rows = table[(table["ranking"] == ranking) & (table["group"] == group)]
            (line,) = lines(ax, colour)
            np.testing.assert_allclose(line.get_xdata(), [10, 30, 50, 70, 90])
            np.testing.assert_array_equal(line.get_ydata(), rows["mean"])
            edge = band.get_paths()[0].vertices
            assert to_hex(band.get_facecolor()[0][:3]).upper() == colour  # type: ignore[index]
            assert edge[:, 1].max() == pytest.approx(rows["high"].max())
            assert edge[:, 1].min() == pytest.approx(rows["low"].min())
    looks = {(ln.get_linestyle(), ln.get_marker()) for ln in lines(figure.axes[0])}
    assert len(looks) == 4
    assert figure.get_suptitle().startswith("Binary accuracy with neurons ablated (how='zero')")
    assert "95 % confidence" in figure.get_suptitle()
    assert figure.axes[0].get_ylabel() == "binary accuracy"
    assert "%" in figure.axes[0].get_xlabel()


def test_a_single_draw_has_no_interval() -> None:
    curves = drawn.masked()
    table = curves.table.assign(low=np.nan, high=np.nan)
    figure = figures.masking(replace(curves, table=table, metric="AUROC", how="mean"))
    figure.draw_without_rendering()
    (line,) = lines(figure.axes[0], style.BLUE)
    assert np.isfinite(line.get_ydata()).all()
    assert figure.get_suptitle().startswith("AUROC with")


# -- faithfulness --------------------------------------------------------------------------------


def test_faithfulness_is_the_curves() -> None:
    found = drawn.kept()
    figure = figures.faithfulness(found)
    table = found.curves()
    places = list(itertools.product(("keep", "knock_out"), ("mean", "zero")))
    assert titles(figure)[0] == "kept alone, others mean"
    assert titles(figure)[3] == "ablated, zero"
    looks = set()
    for ax, (direction, ablation) in zip(figure.axes, places, strict=True):
        here = table[(table["direction"] == direction) & (table["ablation"] == ablation)]
        assert ax.get_xscale() == "log"
        assert [ln.get_ydata() for ln in lines(ax, "black")] == [[0, 0], [1, 1]]
        random = here[here["order"] == "random"]
        (band,) = ax.collections
        edge = band.get_paths()[0].vertices
        assert edge[:, 1].max() == pytest.approx(random["faithfulness_high"].max())
        assert edge[:, 1].min() == pytest.approx(random["faithfulness_low"].min())
        (line,) = lines(ax, style.GREY)
        np.testing.assert_allclose(line.get_ydata(), random["faithfulness"])
        for name, colour in (("exact", style.BLUE), ("gradient", style.VERMILLION)):
            for line, order in zip(lines(ax, colour), ("signed", "absolute", "kept"), strict=False):
                rows = here[(here["ranking"] == name) & (here["order"] == order)]
                np.testing.assert_allclose(line.get_xdata(), 100 * rows["share"])
                np.testing.assert_allclose(line.get_ydata(), rows["faithfulness"])
                looks.add((line.get_color(), line.get_linestyle(), line.get_marker()))
    assert len(looks) == 5
    told = {f"{name}, {order}" for name in ("exact", "gradient") for order in ORDERS}
    assert set(legend(figure)) == told | {"exact, kept", "random", "whole model and nothing"}
    assert figure.get_suptitle().startswith("Faithfulness to 'well' of circuits of neurons")
    assert "cut at" not in figure.get_suptitle()
    assert figure.axes[-1].get_xlabel() == "share of the neurons, %"


def test_faithfulness_of_one_ablation_and_some_rankings() -> None:
    found = drawn.kept()
    one = found.draws[found.draws["ablation"] == "zero"]
    wild = one.assign(faithfulness=one["faithfulness"].where(one["share"] > 0.01, -40.0))
    figure = figures.faithfulness(drawn.kept(draws=wild), rankings=["gradient"])
    figure.draw_without_rendering()
    assert len(figure.axes) == 2
    assert "cut at -1 and 2" in figure.get_suptitle()
    assert figure.axes[0].get_ylim()[0] > -1.2
    told = {"gradient, signed", "gradient, absolute", "random", "whole model and nothing"}
    assert set(legend(figure)) == told


def test_faithfulness_that_is_none_is_said() -> None:
    found = drawn.kept()
    flat = found.draws["faithfulness"].where(found.draws["ablation"] != "mean")
    figure = figures.faithfulness(drawn.kept(draws=found.draws.assign(faithfulness=flat)))
    assert [bool(written(ax)) for ax in figure.axes] == [True, False] * 2


# -- separation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["cohens_d", "auc"])
def test_separation_is_the_table(size: Any) -> None:
    table = drawn.separations()
    figure = figures.separation(table, alpha=0.01, effect_size=size)
    assert figure.get_suptitle() == "Neurons that separate 'ill' from 'well' at q < 0.01"
    assert legend(figure) == [*dict.fromkeys(table["test"]), "q = 0.01"]
    for ax, (layer, rows) in zip(figure.axes, table.groupby("layer"), strict=True):
        wanted = np.column_stack([rows[size], -np.log10(rows["q"])])
        got = points(ax)
        np.testing.assert_allclose(got[got[:, 0].argsort()], wanted[wanted[:, 0].argsort()])
        (line,) = [ln for ln in lines(ax) if ln.get_linestyle() == "--"]
        assert line.get_ydata() == pytest.approx([2, 2])
        certain = (rows["q"] < 0.01).sum()
        assert title(ax) == f"{layer}\n{certain} of {len(rows)} separate"
        named = rows[rows["q"] < 0.01].sort_values(size)["name"]
        ends = {*named[:2], *named[-2:]} if layer == "first" else set(named[-2:])
        assert set(written(ax)) <= ends
        assert written(ax)


def test_tests_differ_in_colour_and_marker() -> None:
    table = drawn.separations()
    (ax, *_) = figures.separation(table[table["layer"] == "first"]).axes
    scattered = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert len({to_hex(c.get_facecolor()[0]) for c in scattered}) == 2  # type: ignore[index]
    assert len({len(c.get_paths()[0].vertices) for c in scattered}) == 2


def test_a_q_of_zero_is_drawn_at_the_edge_and_counted() -> None:
    table = drawn.separations().query("layer == 'first'").reset_index(drop=True)
    table.loc[:2, "q"] = 0.0
    table.loc[5, "q"] = 5e-324  # the smallest float is drawn where it is
    (ax,) = figures.separation(table).axes
    got = points(ax)
    assert np.isfinite(got).all()
    assert len(got) == len(table)
    top = got[:, 1].max()
    assert (got[:, 1] == top).sum() == 3
    assert top > 323.3 == pytest.approx(np.sort(got[:, 1])[-4], abs=0.01)
    assert "3 with q below 5e-324" in written(ax)
    assert max(ax.get_yticks()) < top


def test_what_cannot_be_placed_is_counted() -> None:
    table = drawn.separations().query("layer == 'first'").reset_index(drop=True)
    table.loc[0, ["q", "test"]] = np.nan, "constant"
    table.loc[1, "cohens_d"] = -np.inf
    (ax,) = figures.separation(table).axes
    got = points(ax)
    assert len(got) == 39
    assert np.isfinite(got).all()
    assert got[:, 0].min() < table["cohens_d"][2:].min()
    assert title(ax).endswith(" separate, 1 untested, 1 at ±∞")


def test_neurons_are_counted_once_over_several_classes() -> None:
    table = pd.DataFrame(
        {
            "layer": "a",
            "index": [0, 0, 0, 1, 1, 1],
            "name": ["x"] * 3 + ["y"] * 3,
            "class": ["p", "q", "r"] * 2,
            "rest": "rest",
            "test": "welch",
            "q": [0.01, 0.02, 1, 1, 1, 1],
            "cohens_d": 1.0,
        }
    )
    figure = figures.separation(table)
    assert title(figure.axes[0]) == "a\n1 of 2 separate"
    assert figure.get_suptitle() == "Neurons that separate a class from the rest at q < 0.05"
    assert written(figure.axes[0]) == ["x"]


# -- shift ---------------------------------------------------------------------------------------


def test_shift_is_the_table() -> None:
    table = drawn.shifts()
    table.loc[3, "wasserstein_std"] = np.nan
    figure = figures.shift(table, named=1)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    got = points(ax)
    np.testing.assert_allclose(np.sort(got[:, 0]), table["wasserstein_std"].dropna())
    rows = table[table["layer"] == "second"]
    inside = got[got[:, 1] > 0.5]
    assert len(inside) == len(rows)
    medians = sorted(
        c.get_segments()[0][0, 0] for c in ax.collections if hasattr(c, "get_segments")
    )
    wanted = table.groupby("layer")["wasserstein_std"].median()
    np.testing.assert_allclose(medians, np.sort(wanted))
    assert set(written(ax)) == {"[19]", "[9]"}
    assert legend(figure) == ["mean rises", "mean falls", "same"]
    assert "without 1 that did not vary" in figure.get_suptitle()


# -- what cannot be drawn ------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no curves": (lambda: figures.responses(drawn.curves(), most=0), "most=0"),
    "too many curves": (
        lambda: figures.responses(drawn.straight(40), most=31),
        "31 panels do not fit one figure: choose at most 30 with most=",
    ),
    "no quantiles": (
        lambda: figures.quantile_bands(nx.DiGraph()),
        "no quantiles: make it with profile",
    ),
    "no layer": (
        lambda: figures.quantile_bands(drawn.profiled(), layers=["9"]),
        "no quantiles of '9'; the graph has input, 0, 3",
    ),
    "layers empty": (lambda: figures.quantile_bands(drawn.profiled(), layers=[]), "layers= is"),
    "no median": (
        lambda: figures.quantile_bands(
            ng.profile(drawn.Waves(), np.eye(5, dtype="float32"), levels=(0, 1), progress=False)
        ),
        "bands need 0.5",
    ),
    "no neurons": (lambda: figures.distributions(drawn.values(), []), "neurons= is empty"),
    "too many neurons": (
        lambda: figures.distributions(drawn.values(), [("hidden", 0)] * 31),
        "31 panels do not fit one figure: choose at most 30 with neurons=",
    ),
    "unknown layer": (
        lambda: figures.distributions(drawn.values(), [("x", 0)]),
        "no values of layer 'x'; there are those of hidden",
    ),
    "unknown neuron": (
        lambda: figures.distributions(drawn.values(), [("hidden", 4)]),
        r"no neuron hidden\[4\]: 'hidden' has values of 4",
    ),
    "names": (
        lambda: figures.distributions(drawn.values(), [("hidden", 0)], names=["a", "b"]),
        "names has 2 names for 1 neurons",
    ),
    "empty class": (
        lambda: figures.distributions(Values({"a": {0: np.ones((0, 1))}}), [("a", 0)]),
        "class 0 has no values",
    ),
    "nan": (
        lambda: figures.distributions(Values({"a": {0: np.full((2, 1), np.nan)}}), [("a", 0)]),
        "not finite",
    ),
    "no class": (lambda: figures.distributions(Values({"a": {}}), [("a", 0)]), "no class"),
    "too many classes": (
        lambda: figures.distributions(drawn.values(25), [("hidden", 0)]),
        "25 classes cannot be told apart",
    ),
    "empty summary": (
        lambda: figures.masking(drawn.Curves(drawn.masked().table[:0])),
        "the table of masking curves is empty",
    ),
    "no circuits": (
        lambda: figures.faithfulness(drawn.kept(draws=drawn.kept().draws[:0])),
        "the table of faithfulness is empty",
    ),
    "no such ranking": (
        lambda: figures.faithfulness(drawn.kept(), rankings=["other"]),
        "'other', which is none of exact, gradient",
    ),
    "many rankings": (
        lambda: figures.faithfulness(drawn.kept(list("abcdefg"))),
        "7 rankings cannot be told apart",
    ),
    "summary lacks": (
        lambda: figures.masking(drawn.Curves(drawn.masked().table.drop(columns="low"))),
        "lacks the columns low",
    ),
    "unknown group": (
        lambda: figures.masking(drawn.Curves(drawn.masked().table.replace("random", "other"))),
        "group 'other' is none of important",
    ),
    "empty table": (
        lambda: figures.separation(drawn.separations()[:0]),
        "the table of separations is empty",
    ),
    "table lacks": (
        lambda: figures.separation(drawn.separations().drop(columns=["q", "auc"])),
        "lacks the columns q",
    ),
    "alpha": (lambda: figures.separation(drawn.separations(), alpha=1), "alpha=1"),
    "effect size": (
        lambda: figures.separation(drawn.separations(), effect_size="p"),  # type: ignore[arg-type]
        "effect_size='p' is none of auc, cohens_d",
    ),
    "q": (lambda: figures.separation(drawn.separations().assign(q=2)), "outside"),
    "shift empty": (lambda: figures.shift(drawn.shifts()[:0]), "the table of shifts is empty"),
    "shift lacks": (lambda: figures.shift(drawn.separations()), "lacks the columns mean_shift"),
    "shift negative": (
        lambda: figures.shift(drawn.shifts().assign(wasserstein_std=-1.0)),
        "negative or infinite",
    ),
    "named": (lambda: figures.shift(drawn.shifts(), named=-1), "named=-1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused(case: str) -> None:
    draw, message = REFUSED[case]
    with pytest.raises(ng.NeurographError, match=message):
        draw()


# -- history -------------------------------------------------------------------------------------


def test_history_is_what_circuits_share_with_one() -> None:
    found = drawn.checkpoints()
    figure = figures.history(found, measures=["edge_jaccard", "spearman"], at=[0, 10, 20, 40, 50])
    assert titles(figure) == ["edge jaccard", "spearman"]
    for ax, measure in zip(figure.axes, ["edge_jaccard", "spearman"], strict=True):
        told = [found[f"epoch {i}", "epoch 4"].measures.loc[measure] for i in range(4)]
        (line,) = lines(ax)
        np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20, 40])
        np.testing.assert_array_equal(line.get_ydata(), [row["value"] for row in told])
        (band,) = ax.collections
        (path,) = band.get_paths()
        for x, row in zip([0, 10, 20, 40], told, strict=True):
            edges = path.vertices[path.vertices[:, 0] == x, 1]
            assert (edges.min(), edges.max()) == pytest.approx((row["null_low"], row["null_high"]))
        assert ax.get_xlabel() == "circuit"
    assert "'epoch 4'" in figure.get_suptitle()
    assert legend(figure) == ["measured", "by chance"]


def test_history_beside_another() -> None:
    found = drawn.checkpoints(3)
    figure = figures.history(found, beside="epoch 0", xlabel="step")
    (line,) = lines(figure.axes[0])
    assert list(line.get_xdata()) == [1, 2]
    assert figure.axes[0].get_xlabel() == "step"
    table = found.measure()
    assert list(line.get_ydata()) == list(table.loc["epoch 0"][1:])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beside": "epoch 9"}, "beside='epoch 9' is none of epoch 0"),
        ({"at": [1, 2]}, "at has 2 places for 3 circuits"),
        ({"measures": ["likeness"]}, "name='likeness' is none of"),
        ({"measures": []}, "measures is empty"),
    ],
)
def test_history_refuses(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        figures.history(drawn.checkpoints(3), **options)


def test_history_needs_all_pairs() -> None:
    found = drawn.checkpoints(3).circuits()
    some = ng.compare(
        {"first": found["epoch 0"]}, {"last": found["epoch 2"]}, draws=5, progress=False
    )
    with pytest.raises(OptionError, match="all compared with each other"):
        figures.history(some)


# -- signals and exemplars -----------------------------------------------------------------------


def test_signals_are_the_table() -> None:
    found = drawn.signals()
    figure = figures.signals(found)
    assert titles(figure) == ["0", "2", "all layers"]
    kinds = [kind for kind in found.table["parts"].unique() if kind != "none"]
    assert sorted(legend(figure)) == sorted([*kinds, "nothing passes"])
    for ax, layer in zip(figure.axes, ["0", "2", "all layers"], strict=True):
        rows = found.table[found.table["layer"] == layer]
        none, *curves = ax.lines
        assert none.get_ydata()[0] == rows.loc[rows["parts"] == "none", "share"].item()
        for line, kind in zip(curves, kinds, strict=True):
            own = rows[rows["parts"] == kind]
            np.testing.assert_array_equal(line.get_xdata(), own["count"])
            np.testing.assert_array_equal(line.get_ydata(), own["share"])


def test_exemplars_are_drawn_from_the_highest_to_the_lowest() -> None:
    found = drawn.exemplars()
    figure = figures.exemplars(found)
    own = found.of(("0", 0)).sort_values("value", ascending=False)
    heads = [title(ax).split("\n") for ax in figure.axes[: len(own)]]
    wanted = [f"{v:.3g} in {n}" for v, n in zip(own["value"], own["sample"], strict=True)]
    assert [head[1] for head in heads] == wanted
    assert [head[0] for head in heads] == ["0[0]", *[""] * (len(own) - 1)]
    for ax, sample in zip(figure.axes, own["sample"], strict=False):
        features = found.shown[ng.Neuron("0", 0), sample].features
        assert len(written(ax)) == len(features)
    with pytest.raises(OptionError, match="most=0"):
        figures.exemplars(found, most=0)
