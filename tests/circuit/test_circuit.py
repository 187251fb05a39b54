"""A circuit answers queries as its graph does, and works wherever a networkx graph does."""

from __future__ import annotations

import ast
import io
import itertools
import json
import math
import time
from typing import Any

import networkx as nx
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph
from neurograph import Circuit, Neuron, Path
from neurograph.circuit.paths import format_effect
from neurograph.errors import DataError, ModelError, OptionError

FEATURES = ["age", "<b>sex</b>", "[red]bp", "chol"]


class Skips(nn.Module):
    """Two hidden layers, both read by the last: three kinds of paths."""

    def __init__(self, activation: Any = torch.tanh) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 5)
        self.c = nn.Linear(11, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        a = self.activation(self.a(x))
        b = self.activation(self.b(a))
        logit: Tensor = self.c(torch.cat([a, b], dim=1))
        return logit


def model(activation: Any = torch.tanh, seed: int = 0) -> Skips:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Skips(activation).double()


def data(seed: int = 0, rows: int = 120) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 4, generator=generator, dtype=torch.float64)


def find(network: nn.Module | None = None, **options: Any) -> Circuit:
    chosen: dict[str, Any] = {"keep": "top:4", "paths": 5, "reference": 8} | options
    return neurograph.search(
        network or model(),
        data(),
        target=1,
        feature_names=FEATURES,
        class_names=["well", "ill"],
        **chosen,
    )


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return find()


@pytest.fixture(scope="module")
def loaded(circuit: Circuit, tmp_path_factory: pytest.TempPathFactory) -> Circuit:
    file = tmp_path_factory.mktemp("saved") / "x.circuit"
    circuit.save(file)
    return neurograph.load(file)


@pytest.fixture(scope="module")
def everything(circuit: Circuit) -> list[Path]:
    """Every path of the graph from an input to the target, measured, strongest first."""
    graph = circuit.graph
    starts = [n for n in graph if n.layer == "input"]
    ends = [n for n, is_end in graph.nodes(data="target") if is_end]
    pairs = itertools.product(starts, ends)
    found = [tuple(p) for a, b in pairs for p in nx.all_simple_paths(graph, a, b)]
    return sorted(circuit.measure(found), key=lambda p: -abs(p.effect))


def estimates(circuit: Circuit, sign: Any = None) -> list[Path]:
    """Every path as its edges promise, as a circuit without model and measured paths has them."""
    return list(Circuit(circuit.graph, circuit.layers, "bare").paths(10_000, sign=sign))


def same(some: Any, others: Any) -> None:
    """Check that paths are equal, in order where their effects differ."""
    some, others = list(some), list(others)
    assert {p.neurons for p in some} == {p.neurons for p in others}
    strengths = [abs(p.effect) for p in some]
    assert strengths == sorted(strengths, reverse=True)
    by_neurons = {p.neurons: p for p in others}
    for path in some:
        assert path.effect == pytest.approx(by_neurons[path.neurons].effect, rel=1e-9)
        assert path.stderr == pytest.approx(by_neurons[path.neurons].stderr, rel=1e-6, abs=1e-12)


# -- paths ---------------------------------------------------------------------------------------


def test_the_fixture_has_paths_of_all_kinds(everything: list[Path]) -> None:
    kinds = {tuple(n.layer for n in p.neurons) for p in everything}
    assert kinds == {("input", "a", "c"), ("input", "a", "b", "c")}
    assert {p.effect > 0 for p in everything} == {True, False}
    assert len(everything) > 40


def test_paths_are_all_the_graphs_paths_measured_and_in_order(
    circuit: Circuit, everything: list[Path]
) -> None:
    found = list(circuit.paths(10_000))
    same(found, everything)
    assert all(p.measured for p in found)


@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_k_paths_are_the_first_k_of_what_the_search_measured(circuit: Circuit, k: int) -> None:
    assert list(circuit.paths(k)) == list(circuit.strongest[:k])


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_a_sign_keeps_the_paths_of_that_sign(
    circuit: Circuit, everything: list[Path], sign: Any
) -> None:
    sense = 1 if sign == "positive" else -1
    found = list(circuit.paths(10_000, sign=sign))
    # A path whose estimate has the other sign is not among the candidates.
    promising = {p.neurons for p in estimates(circuit, sign)}
    promising |= {p.neurons for p in circuit.strongest}
    same(found, [p for p in everything if p.effect * sense > 0 and p.neurons in promising])
    assert len(found) > 10


def test_source_through_and_layers_keep_what_they_say(
    circuit: Circuit, everything: list[Path]
) -> None:
    first, middle = everything[0].neurons[0], everything[-1].neurons[1]
    deep = next(p for p in everything if len(p.neurons) == 4).neurons
    queries: list[tuple[dict[str, Any], Any]] = [
        ({"source": first}, lambda p: p.neurons[0] == first),
        ({"source": "input"}, lambda p: True),
        ({"through": middle}, lambda p: middle in p.neurons),
        ({"through": tuple(middle)}, lambda p: middle in p.neurons),
        ({"through": [deep[1], deep[2]]}, lambda p: {deep[1], deep[2]} <= set(p.neurons)),
        ({"through": "b"}, lambda p: len(p.neurons) == 4),
        ({"layers": ["input", "a", "c"]}, lambda p: len(p.neurons) == 3),
        ({"source": first, "through": middle}, lambda p: {first, middle} <= set(p.neurons)),
    ]
    for options, belongs in queries:
        wanted = [p for p in everything if belongs(p)]
        assert wanted
        same(circuit.paths(10_000, **options), wanted)


def test_paths_may_begin_in_the_middle(circuit: Circuit) -> None:
    graph = circuit.graph
    ends = [n for n, is_end in graph.nodes(data="target") if is_end]
    starts = [n for n in graph if n.layer == "b"]
    wanted = {(a, z) for a in starts for z in ends if graph.has_edge(a, z)}
    assert {p.neurons for p in circuit.paths(100, source="b")} == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"sign": "up"},
        {"source": "nowhere"},
        {"source": Neuron("a", 99)},
        {"through": "nowhere"},
        {"through": Neuron("nowhere", 0)},
        {"through": [Neuron("a", 99)]},
        {"layers": ["input", "nowhere"]},
    ],
)
def test_an_unknown_name_in_a_query_is_told(circuit: Circuit, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"up|nowhere|a\[99\]"):
        list(circuit.paths(3, **options))


def test_estimates_are_exact_where_the_model_is_linear() -> None:
    circuit = find(model(lambda x: x), keep="quantile:0")
    promised = estimates(circuit)
    assert len(promised) > 25
    for estimate, path in zip(promised, circuit.measure(promised), strict=True):
        assert estimate.effect == pytest.approx(path.effect, rel=1e-9, abs=1e-12)
        assert not estimate.measured
        assert math.isnan(estimate.stderr)


def test_the_target_may_read_a_layer_that_others_read_too() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 1), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            total: Tensor = a + self.b(a)
            return total

    network = Residual().double()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        network.b.weight.fill_(-0.5)
    circuit = neurograph.search(network, data(), 1, keep="quantile:0", paths=0)
    promised = estimates(circuit)
    layers = {tuple(n.layer for n in p.neurons) for p in promised}
    assert layers == {("input", "a"), ("input", "a", "b")}
    for estimate, path in zip(promised, circuit.measure(promised), strict=True):
        assert estimate.effect == pytest.approx(path.effect, rel=1e-9)
    low, high = torch.quantile(data()[:, 3], torch.tensor([0.05, 0.95], dtype=torch.float64))
    by_layers = {p.neurons: p.effect for p in circuit.paths(100)}
    move = float(high - low)
    assert by_layers[Neuron("input", 3), Neuron("a", 0)] == pytest.approx(4 * move)
    ends = (Neuron("input", 3), Neuron("a", 0), Neuron("b", 0))
    assert by_layers[ends] == pytest.approx(-2 * move)


def test_the_best_paths_of_a_vast_graph_come_at_once() -> None:
    graph = nx.DiGraph()
    layers = nx.DiGraph()
    depth, width = 20, 12
    for step, index in itertools.product(range(depth), range(width)):
        graph.add_node(Neuron(f"l{step}", index), name="n", effect=1.0, target=step == depth - 1)
        layers.add_node(f"l{step}", type="Linear" if step else "Input")
        for other in range(width if step else 0):
            ends = Neuron(f"l{step - 1}", other), Neuron(f"l{step}", index)
            graph.add_edge(*ends, transfer=1 / (1 + index + other))
    circuit = Circuit(graph, layers, "t")
    start = time.perf_counter()
    first, second = circuit.paths(2)
    assert time.perf_counter() - start < 2
    assert {n.index for n in first.neurons} == {0}
    assert first.effect == 1.0
    assert second.effect == 0.5
    assert not first.measured


# -- the model again -----------------------------------------------------------------------------


def test_a_loaded_circuit_follows_its_measured_paths_with_estimates(
    circuit: Circuit, loaded: Circuit, everything: list[Path]
) -> None:
    found = list(loaded.paths(10_000))
    stored = len(circuit.strongest)
    assert found[:stored] == list(circuit.strongest)
    assert all(not p.measured and math.isnan(p.stderr) for p in found[stored:])
    assert {p.neurons for p in found} == {p.neurons for p in everything}
    strengths = [abs(p.effect) for p in found[stored:]]
    assert strengths == sorted(strengths, reverse=True)
    with pytest.raises(OptionError, match="attach"):
        loaded.measure(found)


def test_an_attached_circuit_gives_the_same_numbers_bit_for_bit(
    circuit: Circuit, loaded: Circuit
) -> None:
    attached = loaded.attach(model(), data())
    assert list(attached.paths(10_000)) == list(circuit.paths(10_000))
    assert attached.measure(circuit.strongest) == circuit.measure(circuit.strongest)


def test_another_model_or_other_data_are_refused(loaded: Circuit) -> None:
    with pytest.raises(ModelError, match="not the model of the circuit"):
        loaded.attach(model(seed=1), data())
    with pytest.raises(DataError, match="not the data of the circuit"):
        loaded.attach(model(), data(seed=1))


def test_what_no_file_can_hold_is_asked_for(loaded: Circuit, tmp_path: Any) -> None:
    network, X = model(), data()

    def logit(output: Tensor, batch: object) -> Tensor:
        return output[:, 0]

    twins = neurograph.Counterfactual(X.flip(0))
    options: dict[str, dict[str, Any]] = {
        "target": {"target": logit},
        "contrast": {"target": 1, "contrast": twins},
        "reference": {"target": 1, "reference": X[:5]},
    }
    for name, given in options.items():
        found = neurograph.search(network, X, keep="top:2", paths=3, **given)
        found.save(tmp_path / "x.circuit")
        again = neurograph.load(tmp_path / "x.circuit")
        with pytest.raises(OptionError, match=f"pass {name}="):
            again.attach(network, X)
        attached = again.attach(network, X, **{name: given[name]})
        assert attached.measure(found.strongest) == found.measure(found.strongest)


def test_paths_that_the_model_does_not_have_are_refused(circuit: Circuit) -> None:
    for path, reason in (
        ([("input", 0), ("c", 0)], "does not read"),
        ([("input", 0), ("a", 99), ("c", 0)], "no neuron"),
        ([("input", 0), ("a", 0)], "ends in"),
    ):
        with pytest.raises(OptionError, match=reason):
            circuit.measure([[Neuron(*n) for n in path]])


def test_a_seed_makes_two_searches_equal_bit_for_bit(circuit: Circuit) -> None:
    again = find()
    assert equal_graphs(again.graph, circuit.graph)
    assert again.strongest == circuit.strongest
    assert again.provenance == circuit.provenance
    for layer, table in circuit.scores.items():
        for key, values in table.items():
            assert values.tobytes() == again.scores[layer][key].tobytes()


def test_another_seed_draws_other_samples(circuit: Circuit) -> None:
    other = find(seed=1)
    assert other.provenance["data"]["reference"] != circuit.provenance["data"]["reference"]
    assert other.strongest != circuit.strongest


def equal_graphs(some: nx.DiGraph, other: nx.DiGraph) -> bool:
    """Whether graphs are equal in order, attributes and numbers, where NaN equals NaN."""
    return repr([*some.nodes(data=True), *some.edges(data=True)]) == repr(
        [*other.nodes(data=True), *other.edges(data=True)]
    )


# -- tables and texts ----------------------------------------------------------------------------


def test_the_table_of_neurons_is_that_of_the_graph(circuit: Circuit) -> None:
    table = circuit.neurons()
    numbers = ["effect", "stderr", "sign", "total_effect", "total_stderr"]
    assert list(table.columns) == ["layer", "index", "name", *numbers]
    assert len(table) == len(circuit.graph)
    assert table["effect"].abs().is_monotonic_decreasing
    for row in table.itertuples():
        node = circuit.graph.nodes[row.layer, row.index]
        assert [getattr(row, key) for key in ("name", *numbers)] == [
            node[key] for key in ("name", *numbers)
        ]
    assert set(circuit.neurons(layer="a")["layer"]) == {"a"}
    assert "<b>sex</b>" in set(table["name"])
    assert "ill" in set(table["name"])


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_neurons_of_a_sign_are_those_whose_effect_has_it(circuit: Circuit, sign: Any) -> None:
    table = circuit.neurons(sign=sign)
    sense = 1 if sign == "positive" else -1
    kept = {n for n, d in circuit.graph.nodes(data=True) if d["effect"] * sense > 0}
    assert {Neuron(r.layer, r.index) for r in table.itertuples()} == kept
    assert set(table["sign"]) == {sign}


def test_the_table_of_edges_is_that_of_the_graph(circuit: Circuit) -> None:
    table = circuit.edges()
    ends = ["source_layer", "source_index", "target_layer", "target_index"]
    totals = ["total_effect", "total_stderr"]
    assert list(table.columns) == [*ends, "effect", "stderr", "sign", *totals]
    assert len(table) == circuit.graph.number_of_edges()
    assert table["effect"].abs().is_monotonic_decreasing
    for row in table.itertuples():
        source, target = (row.source_layer, row.source_index), (row.target_layer, row.target_index)
        edge = circuit.graph.edges[source, target]
        assert (row.effect, row.sign) == (edge["effect"], edge["sign"])
        assert (row.effect > 0) == (row.sign == "positive")
        node = circuit.graph.nodes[source]
        assert (row.total_effect, row.total_stderr) == tuple(node[key] for key in totals)
    parts = [circuit.edges(sign=sign) for sign in ("positive", "negative")]
    assert [len(part) for part in parts] == [
        int((table["effect"] > 0).sum()),
        int((table["effect"] < 0).sum()),
    ]
    with pytest.raises(OptionError, match="up"):
        circuit.edges(sign="up")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="up"):
        circuit.neurons(sign="up")  # type: ignore[arg-type]


def test_a_subgraph_is_a_circuit_of_the_chosen_neurons(circuit: Circuit) -> None:
    chosen = circuit.strongest[0].neurons
    part = circuit.subgraph([tuple(n) for n in chosen])
    assert set(part.graph) == set(chosen)
    assert [p.neurons for p in part.strongest] == [
        p.neurons for p in circuit.strongest if set(p.neurons) <= set(chosen)
    ]
    assert set(part.graph.edges) == {
        (u, v) for u, v in circuit.graph.edges if u in chosen and v in chosen
    }
    part.graph.remove_node(chosen[0])
    assert chosen[0] in circuit.graph
    with pytest.raises(OptionError, match=r"a\[99\]"):
        circuit.subgraph([("a", 99)])


def test_a_neuron_is_explained(circuit: Circuit) -> None:
    path = circuit.strongest[0]
    neuron = path.neurons[1]
    text = circuit.explain(neuron)
    node = circuit.graph.nodes[neuron]
    assert text.startswith(f"{neuron} ({neuron}), {node['sign']}")
    assert f"{format_effect(node['effect'], node['stderr'])} through the circuit" in text
    assert f"{format_effect(node['total_effect'], node['total_stderr'])} in total" in text
    assert ("the signs disagree" in text) == (node["effect"] * node["total_effect"] < 0)
    assert f"mean {node['mean']:.3g}" in text
    assert str(path) in text
    strongest = max(circuit.graph.in_edges(neuron, data="effect"), key=lambda e: abs(e[2]))
    assert f"reads: {circuit.name(strongest[0])} " in text
    with pytest.raises(OptionError, match=r"there is no a\[99\]"):
        circuit.explain(("a", 99))


def test_a_neuron_that_was_not_kept_is_explained_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 2))
    names = ["age", "sex", "dose"]
    X = torch.rand(40, 3)
    circuit = neurograph.search(model, X, 1, keep="top:1", feature_names=names, progress=False)
    kept, table = {n.index for n in circuit.graph if n.layer == "0"}, circuit.scores["0"]
    index = next(i for i in range(9) if i not in kept)
    through, total = (
        format_effect(table[f"{kind}effect"][index], table[f"{kind}stderr"][index])
        for kind in ("", "total_")
    )
    text = circuit.explain(("0", index))
    assert text.startswith(f"0[{index}] (0[{index}]), not kept\n")
    assert f"{through} through the circuit, {total} in total" in text
    opposite = table["effect"][index] * table["total_effect"][index] < 0
    assert ("the signs disagree" in text) == opposite
    for name in names:
        assert circuit.explain(name).startswith(name)


def test_its_repr_says_what_it_is(circuit: Circuit, loaded: Circuit) -> None:
    head, *paths, audit = repr(circuit).splitlines()
    assert audit == f"  {circuit.audited}"
    graph = circuit.graph
    assert head.startswith(f"Circuit of 'ill': {len(graph)} neurons (")
    assert f"in 4 layers, {graph.number_of_edges()} edges" in head
    features, *paths = paths
    best = circuit.features().iloc[0]
    strongest = format_effect(best["total_effect"], best["total_stderr"])
    assert features.startswith(f"  features by total effect: {best['name']} {strongest}, ")
    notes, paths = paths[: len(circuit.notes)], paths[len(circuit.notes) :]
    assert notes == [f"  note: {note}" for note in circuit.notes]
    assert paths[0].strip() == str(next(circuit.paths(1, sign="positive")))
    assert len(paths) == 6
    assert str(circuit) == repr(circuit) == repr(loaded)


def test_html_in_a_name_is_escaped(circuit: Circuit) -> None:
    through = circuit.graph.nodes[Neuron("input", 1)]["name"]
    assert through == "<b>sex</b>"
    named = next(circuit.paths(1, source=Neuron("input", 1)))
    page = Circuit(circuit.graph, circuit.layers, "<i>t", (named,))._repr_html_()
    assert "&lt;b&gt;sex&lt;/b&gt; → " in page
    assert "&lt;i&gt;t" in page
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.parametrize(
    ("effect", "stderr", "text"),
    [
        (0.41234, 0.0211, "+0.412 ± 0.021"),
        (-12345.6, 120.0, "-12346 ± 120"),
        (0.0, 0.0, "+0 ± 0"),
        (0.5, float("nan"), "+0.5"),
    ],
)
def test_effects_are_written_to_their_errors_precision(
    effect: float, stderr: float, text: str
) -> None:
    assert format_effect(effect, stderr) == text


# -- networkx ------------------------------------------------------------------------------------


def test_nodes_are_plain_tuples_with_plain_values(circuit: Circuit) -> None:
    assert circuit.graph.nodes["c", 0] is circuit.graph.nodes[Neuron("c", 0)]
    plain = (str, int, float, bool)
    for _, attributes in circuit.graph.nodes(data=True):
        assert all(type(value) in plain for value in attributes.values())
    for *_, attributes in circuit.graph.edges(data=True):
        assert set(attributes) == {"effect", "stderr", "measured", "sign", "transfer"}
        assert all(type(value) in plain for value in attributes.values())


@pytest.mark.parametrize("kind", ["graphml", "gexf", "gml"])
def test_networkx_writes_and_reads_the_graph(circuit: Circuit, kind: str) -> None:
    graph = circuit.graph
    buffer = io.BytesIO()
    getattr(nx, f"write_{kind}")(graph, buffer)
    buffer.seek(0)
    back = getattr(nx, f"read_{kind}")(buffer)
    text = {str(n): n for n in graph}
    if kind == "gml":
        text = {label: Neuron(*ast.literal_eval(label)) for label in back}
    assert {text[n] for n in back} == set(graph)
    assert {(text[u], text[v]) for u, v in back.edges} == set(graph.edges)
    for u, v, effect in back.edges(data="effect"):
        assert effect == graph.edges[text[u], text[v]]["effect"]
    for node, attributes in back.nodes(data=True):
        assert attributes["mean"] == graph.nodes[text[node]]["mean"]


def test_the_graph_survives_json(circuit: Circuit) -> None:
    linked = json.loads(json.dumps(nx.node_link_data(circuit.graph, edges="edges")))
    back = nx.node_link_graph(linked, edges="edges")
    assert dict(back.nodes(data=True)) == dict(circuit.graph.nodes(data=True))
    assert sorted(back.edges(data="effect")) == sorted(circuit.graph.edges(data="effect"))
    adjacent = json.loads(json.dumps(nx.adjacency_data(circuit.graph)))
    assert len(adjacent["nodes"]) == len(circuit.graph)
    assert json.dumps(nx.cytoscape_data(circuit.graph))


def test_networkx_algorithms_take_the_graph_as_it_is(circuit: Circuit) -> None:
    graph = circuit.graph
    path = circuit.strongest[0].neurons
    assert nx.is_path(graph, path)
    assert nx.shortest_path(graph, path[0], path[-1])[0] == path[0]
    order = list(nx.topological_sort(graph))
    assert all(order.index(u) < order.index(v) for u, v in graph.edges)
    matrix = nx.to_numpy_array(graph, weight="effect", nodelist=order)
    assert matrix[order.index(path[0]), order.index(path[1])] == graph.edges[path[:2]]["effect"]
    assert matrix.shape == nx.adjacency_matrix(graph).shape
    table = nx.to_pandas_edgelist(graph)
    assert isinstance(table, pd.DataFrame)
    assert set(zip(table["source"], table["target"], strict=True)) == set(graph.edges)
    assert len(nx.dag_longest_path(graph, weight="effect")) > 1
    assert nx.pagerank(graph, weight=None)
    assert nx.transitive_closure(graph).has_edge(path[0], path[-1])


def test_graphml_is_written_for_other_programs(circuit: Circuit, tmp_path: Any) -> None:
    circuit.to_graphml(tmp_path / "x.graphml")
    back = nx.read_graphml(tmp_path / "x.graphml")
    assert set(back) == set(map(str, circuit.graph))
    for neuron, name in circuit.graph.nodes(data="name"):
        assert back.nodes[str(neuron)]["name"] == name


def test_public_names_are_there_whatever_is_imported_first() -> None:
    import neurograph.activations.profile
    import neurograph.discovery.search

    for name in neurograph.__all__:
        assert getattr(neurograph, name).__name__ == name
        assert name in dir(neurograph)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = neurograph.nonsense


def test_names_that_xml_cannot_hold_can_be_read_back(tmp_path: Any) -> None:
    torch.manual_seed(0)
    names = ["nul\x00", "bell\x07 <b>&amp;", "line\nbreak", "\ud800"]
    circuit = neurograph.search(
        nn.Linear(4, 2), torch.rand(30, 4), 1, feature_names=names, progress=False, keep="top:9"
    )
    circuit.to_graphml(tmp_path / "x.graphml")
    read = nx.read_graphml(tmp_path / "x.graphml")
    assert (len(read), read.number_of_edges()) == (
        len(circuit.graph),
        circuit.graph.number_of_edges(),
    )
    found = {data["name"] for _, data in read.nodes(data=True)}
    wanted = {r"nul\x00", r"bell\x07 <b>&amp;", r"line\nbreak", r"\ud800"}
    assert wanted <= found


def test_tiny_and_huge_effects_are_written_with_digits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    model = model.double()
    for scale in (1e-30, 1e30):
        X = torch.rand(30, 4, dtype=torch.float64) * scale
        circuit = neurograph.search(model, X, 1, progress=False)
        text = str(next(circuit.paths(1)))
        assert ("e-3" if scale < 1 else "e+") in text
        assert len(text) < 80
