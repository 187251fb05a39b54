"""Which modules are layers: by default, by choice, and which models are refused."""

from __future__ import annotations

import functools
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import neurograph as ng
from neurograph.data.source import Batch
from neurograph.errors import ModelError, OptionError
from neurograph.model.layer_choice import find_sites, matches
from neurograph.replay.recording import capture


class Block(nn.Module):
    """Attention of a kind beside a perceptron, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "o_proj": nn.Linear(4, 4)})
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        x = x + self.self_attn["o_proj"](torch.tanh(self.self_attn["q_proj"](h)))
        return x + self.mlp(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.mlp = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.layers:
            x = block(x)
        return self.head(torch.tanh(self.mlp(x)))


MODEL = Net()
X = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
OWNERS = ["enter", "mlp", "head"]
OWNERS += [
    f"layers.{i}.{name}"
    for i in (0, 1)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.0", "mlp.2")
]


def chosen(layers: Any, model: nn.Module = MODEL) -> set[str]:
    sites = find_sites(model, layers)
    assert sites.left_out <= sites.outputs
    assert sites.paths == sites.outputs | sites.inputs
    return set(sites.outputs - sites.left_out) | {f"{name}:input" for name in sites.inputs}


# -- patterns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("o_proj", {"layers.0.self_attn.o_proj", "layers.1.self_attn.o_proj"}),
        ("self_attn.o_proj", {"layers.0.self_attn.o_proj", "layers.1.self_attn.o_proj"}),
        ("1.self_attn.o_proj", {"layers.1.self_attn.o_proj"}),
        # The very name wins over the same name further in.
        ("mlp", {"mlp"}),
        ("layers.*.mlp", {"layers.0.mlp", "layers.1.mlp"}),
        ("*.mlp", {"layers.0.mlp", "layers.1.mlp"}),
        ("layers.1.mlp", {"layers.1.mlp"}),
        # A star stays within one name.
        ("layers.*", {"layers.0", "layers.1"}),
        ("?_proj", {f"layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qo"}),
        ("0.*.*_proj", {"layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj"}),
        ("[eh]*", {"enter", "head"}),
        ("mlp.[02]", {f"layers.{i}.mlp.{n}" for i in (0, 1) for n in (0, 2)}),
        ("head:input", {"head:input"}),
        ("o_proj:input", {f"layers.{i}.self_attn.o_proj:input" for i in (0, 1)}),
        ("layers.*.mlp:input", {"layers.0.mlp:input", "layers.1.mlp:input"}),
    ],
)
def test_a_pattern_is_compared_with_the_last_names(pattern: str, wanted: set[str]) -> None:
    assert chosen(pattern) == wanted
    assert find_sites(MODEL, pattern).asked == {pattern: wanted}


def test_matches_keep_the_order_of_the_names() -> None:
    names = ["b.fc", "a.fc", "a.fc.fc", "fc2"]
    assert matches("fc", names) == ["b.fc", "a.fc", "a.fc.fc"]
    assert matches("fc*", names) == names
    assert matches("a.fc", names) == ["a.fc"]
    assert matches("FC", names) == []
    assert matches("x.y.z.fc", names) == []


def test_layers_are_chosen_by_type_predicate_and_several() -> None:
    linear = {name for name in OWNERS if not name.startswith("input")}
    assert chosen(nn.Linear) == linear
    assert chosen(nn.LayerNorm) == {"layers.0.norm", "layers.1.norm"}
    assert chosen(lambda name, module: name.endswith("head")) == {"head"}
    assert chosen(lambda name, module: getattr(module, "out_features", 0) == 6) == {
        "layers.0.mlp.0",
        "layers.1.mlp.0",
    }
    several = ["enter", nn.LayerNorm, lambda name, module: name == "head", "head:input"]
    wanted = {"enter", "head", "head:input", "layers.0.norm", "layers.1.norm"}
    assert chosen(several) == chosen(tuple(several)) == wanted
    assert set(find_sites(MODEL, several).asked) == {"enter", "head:input"}


def test_a_module_at_two_places_is_chosen_by_either_path() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 1))
    for path in ("0", "2"):
        assert chosen(path, model) == {"0"}
        assert chosen(f"{path}:input", model) == {"0:input"}
        assert list(ng.layer_graph(model, X, layers=path)) == ["input", "0", "0#1"]


def test_every_owner_but_norms_is_a_layer_by_default() -> None:
    sites = find_sites(MODEL)
    assert sites.outputs == set(OWNERS)
    assert (sites.left_out, sites.inputs, sites.asked) == (frozenset(), frozenset(), {})


def test_what_a_parametrisation_adds_belongs_to_its_owner() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 1))
    assert find_sites(model).outputs == {"0", "1"}


def test_a_whole_block_takes_the_owners_inside_with_it() -> None:
    sites = find_sites(MODEL, "layers.*")
    assert sites.outputs == {"layers.0", "layers.1", *OWNERS[:3]}
    assert sites.left_out == set(OWNERS[:3])
    # Its input side is no layer inside it.
    assert find_sites(MODEL, ["layers.*", "layers.*:input"]).outputs == sites.outputs


def test_a_block_with_a_chosen_layer_inside_is_none_itself() -> None:
    sites = find_sites(MODEL, ["layers.*", "layers.0.mlp.0"])
    inside = {name for name in OWNERS if name.startswith("layers.0.")}
    assert sites.outputs == {"layers.0", "layers.1", *inside, *OWNERS[:3]}


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([], r"layers=\[\] chooses nothing: leave it out"),
        ("o_porj", r"layers='o_porj' matches no module of the model; near it are .*o_proj"),
        ("self_atn.q_proj", r"near it are .*layers\.0\.self_attn\.q_proj"),
        ("oproj", r"near it are layers\.0\.self_attn\.o_proj"),
        ("layer.*.mpl", r"near it are .*layers\.0\.mlp"),
        ("haed:input", r"layers='haed:input' matches no module.*near it are head"),
        ("", "matches no module"),
        ("XXXXXXXX", r"layers='XXXXXXXX' matches no module of the model$"),
        (["head", "nothing"], "layers='nothing' matches no module"),
        (nn.Conv2d, "layers='Conv2d' matches no module of the model$"),
        (lambda name, module: False, "layers='<lambda>' matches no module"),
        (lambda name: True, "layers=.* raised TypeError.*takes the path and the module"),
        (7, "layers=7: pass a list of patterns, types or predicates"),
        (["head", None], "layers=None: pass patterns"),
    ],
)
def test_choices_that_match_nothing_are_told(layers: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        find_sites(MODEL, layers)


# -- the graph of chosen layers --------------------------------------------------------------------


def seen_through(graph: nx.DiGraph, keep: set[str]) -> tuple[set[tuple[str, str]], set[str]]:
    """Who reaches whom, and the output, past the layers that are not kept."""
    rest = graph.subgraph(set(graph) - keep)
    ends = {name for name, is_output in graph.nodes(data="output") if is_output}
    edges, outputs = set(), set()
    for writer in keep:
        front = set(graph.successors(writer))
        front |= set().union(*(nx.descendants(rest, name) for name in front - keep))
        past = {n for name in front - keep for n in graph.successors(name)}
        edges |= {(writer, reader) for reader in (front | past) & keep}
        if writer in ends or (front - keep) & ends:
            outputs.add(writer)
    return edges, outputs


@functools.cache
def whole_graph() -> nx.DiGraph:
    return ng.layer_graph(MODEL, X)


@pytest.mark.parametrize(
    "layers",
    ["o_proj", ["enter", "head"], ["mlp.0", "mlp.2"], ["q_proj", "head"], ["layers.1.mlp.2"]],
)
def test_layers_left_out_are_seen_through(layers: Any) -> None:
    whole = whole_graph()
    graph = ng.layer_graph(MODEL, X, layers=layers)
    keep = chosen(layers) | {"input"}
    assert set(graph) == keep
    edges, outputs = seen_through(whole, keep)
    assert set(graph.edges) == edges
    assert {name for name, is_output in graph.nodes(data="output") if is_output} == outputs


def test_a_block_is_one_layer_of_the_graph() -> None:
    graph = ng.layer_graph(MODEL, X, layers=["layers.*", "enter", "head"])
    assert list(graph.edges) == [
        ("input", "enter"),
        ("enter", "layers.0"),
        ("layers.0", "layers.1"),
        ("layers.1", "head"),
    ]
    assert graph.nodes["layers.0"] == {
        "type": "Block",
        "shape": "4",
        "neurons": 4,
        "parameters": 0,
        "output": False,
    }


def test_norms_and_input_sides_are_layers_on_request() -> None:
    graph = ng.layer_graph(MODEL, X, layers=["layers.0.norm", "0.mlp.2:input", "head"])
    assert set(graph) == {"input", "layers.0.norm", "layers.0.mlp.2:input", "head"}
    assert graph.nodes["layers.0.mlp.2:input"]["neurons"] == 6
    assert set(graph.edges) == {
        ("input", "layers.0.norm"),
        ("input", "layers.0.mlp.2:input"),
        ("input", "head"),
        ("layers.0.norm", "layers.0.mlp.2:input"),
        ("layers.0.norm", "head"),
        ("layers.0.mlp.2:input", "head"),
    }


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ("0.layers.0.self_attn.out_proj", "its kernel may be fused into the module around it"),
        ("out_proj", r"layers='out_proj' matches '0\.layers\.0\.self_attn\.out_proj', which .*nev"),
        (["self_attn", "out_proj"], "layers='(self_attn|out_proj)' matches .* never calls"),
        ("0.layers", r"layers='0\.layers' matches '0\.layers', which the model never calls"),
    ],
)
def test_a_chosen_module_that_is_never_called_is_told(layers: Any, reason: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    x = torch.rand(3, 5, 8)
    with pytest.raises(OptionError, match=reason):
        ng.layer_graph(model, x, layers=layers)
    with pytest.raises(OptionError, match=reason):
        ng.search(model, x, lambda output, _: output[:, 0, 0], layers=layers, progress=False)


def test_a_block_chosen_together_with_its_inside_is_told() -> None:
    with pytest.raises(OptionError, match=r"'layers\.0', which.*layers inside it were chosen too"):
        ng.layer_graph(MODEL, X, layers=["layers.0", "0.mlp.0"])


# -- models that are refused -----------------------------------------------------------------------


class DistributedDataParallel(nn.Module):
    """Of the name, and of nothing else, of what needs a group of processes to exist."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class FullyShardedDataParallel(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class FSDPModule:
    pass


class FSDPLinear(FSDPModule, nn.Linear):
    """What `fully_shard` makes of a module: the same, of one class more."""


class Around(DistributedDataParallel):
    """A user's own class around a wrapper of the name."""


def quantised() -> nn.Module:
    try:
        made: nn.Module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)))
    except (AttributeError, RuntimeError) as error:  # it moves out, and needs an engine
        pytest.skip(f"nothing is quantised here: {error}")
    return made


def compiled_in_place(model: nn.Module, at: str = "") -> nn.Module:
    model.get_submodule(at).compile()
    return model


def linear() -> nn.Module:
    return nn.Linear(3, 2)


REFUSED: dict[str, tuple[Any, str]] = {
    "scripted": (
        lambda: torch.jit.script(nn.Sequential(linear())),
        "the model is a ScriptModule.*pass the eager model it was scripted from",
    ),
    "traced": (lambda: torch.jit.trace(linear(), X), "the model is a ScriptModule"),
    "scripted inside": (
        lambda: nn.Sequential(linear(), torch.jit.script(nn.Linear(2, 1))),
        "module '1' is a ScriptModule",
    ),
    "compiled": (
        lambda: torch.compile(nn.Sequential(linear())),
        r"the model is wrapped in OptimizedModule: pass the model .* \(its \._orig_mod\)",
    ),
    "compiled inside": (
        lambda: nn.Sequential(torch.compile(linear())),
        r"module '0' is wrapped in OptimizedModule",
    ),
    "compiled in place": (
        lambda: compiled_in_place(nn.Sequential(linear())),
        "the model was compiled in place: pass a copy that was not",
    ),
    "compiled in place inside": (
        lambda: compiled_in_place(nn.Sequential(linear()), "0"),
        "module '0' was compiled in place",
    ),
    "quantised": (quantised, r"module '0' \(Linear\) is quantised: pass the float model"),
    "DataParallel": (
        lambda: nn.DataParallel(linear()),
        r"the model is wrapped in DataParallel: pass its \.module instead",
    ),
    "DDP": (
        lambda: DistributedDataParallel(linear()),
        r"wrapped in DistributedDataParallel: pass its \.module instead",
    ),
    "a class of DDP's": (lambda: Around(linear()), "wrapped in DistributedDataParallel"),
    "FSDP": (
        lambda: FullyShardedDataParallel(linear()),
        "wrapped in FullyShardedDataParallel: gather the weights into the plain model",
    ),
    "FSDP2 inside": (
        lambda: nn.Sequential(FSDPLinear(3, 2)),
        "module '0' is wrapped in FSDPModule: gather the weights",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(2)),
        r"module '0' is lazy \(LazyLinear\): run the model once",
    ),
    "without weights": (
        lambda: nn.Sequential(nn.Linear(3, 2, device="meta")),
        "module '0' is on the meta device, without weights: load them",
    ),
    "a function": (lambda: lambda x: x, "model is function, not a torch.nn.Module: pass the"),
    "a class": (lambda: nn.Linear, "model is type, not a torch.nn.Module"),
    "without parameters": (lambda: nn.Sequential(nn.ReLU()), "no module that owns parameters"),
}


# What is refused is partly old, and says so.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_replayed_is_refused_with_the_way_out(kind: str) -> None:
    make, reason = REFUSED[kind]
    model = make()
    for entry in (
        lambda: ng.layer_graph(model, X),
        lambda: ng.profile(model, X, progress=False),
        lambda: ng.search(model, X, 1, progress=False),
    ):
        with pytest.raises(ModelError, match=reason) as caught:
            entry()
        assert "\n" not in str(caught.value)


class Borrowed(nn.Module):
    """Takes the weights of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.proj, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        return self.head(F.linear(h, self.proj.weight, self.proj.bias))


class BorrowedByAContainer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Borrowed()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


def test_weights_that_are_used_without_their_layer_are_refused() -> None:
    for model, path in ((Borrowed(), "proj"), (BorrowedByAContainer(), "inner.proj")):
        reason = rf"module {path!r} owns parameters that the model uses without calling it.*layers="
        for entry in (ng.layer_graph, ng.profile):
            with pytest.raises(ModelError, match=reason):
                entry(model, X)


def test_the_way_out_of_borrowed_weights_works() -> None:
    graph = ng.layer_graph(Borrowed(), X, layers=["enter", "head"])
    assert list(graph.edges) == [("input", "enter"), ("enter", "head")]


def test_a_module_that_uses_its_own_parts_or_shares_weights_is_fine() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.head = attention, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attn(x, x, x)[0]).mean(1)

    assert list(ng.layer_graph(Attends(), torch.rand(3, 5, 4))) == ["input", "attn", "head"]

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(7, 4), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return F.linear(self.mix(self.embed(ids)), self.embed.weight)

    graph = ng.layer_graph(Tied(), torch.randint(7, (3, 5)))
    assert list(graph.edges) == [("input", "embed"), ("embed", "mix")]


def test_weights_that_nothing_uses_are_no_layer_and_no_error() -> None:
    class Spare(Borrowed):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.enter(x)))

    assert list(ng.layer_graph(Spare(), X)) == ["input", "enter", "head"]
    with pytest.raises(OptionError, match=r"'proj', which the model never calls"):
        capture(Spare(), Batch((X,), {}), find_sites(Spare(), "proj"))
