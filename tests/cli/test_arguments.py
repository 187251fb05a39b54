"""Arguments drawn wrongly: nothing but an error of ours, which names the argument."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

import neurograph as ng
from neurograph.ablation import importance
from neurograph.errors import NeurographError, OptionError

ODD: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "2.5": 2.5,
    "-0.5": -0.5,
    "nan": math.nan,
    "inf": math.inf,
    "empty string": "",
    "'3'": "3",
    "'nope'": "nope",
    "'0[99]'": "0[99]",
    "bytes": b"fc",
    "list": [],
    "tuple": (),
    "dict": {},
    "{'nope': 1}": {"nope": 1},
    "[1]": [1],
    "[None]": [None],
    "['nope']": ["nope"],
    "[['nope', 0]]": [["nope", 0]],
    "('0', -1)": ("0", -1),
    "('0', 1.5)": ("0", 1.5),
    "('0', 99)": ("0", 99),
    "(1.0, 0.0)": (1.0, 0.0),
    "('a', 'b')": ("a", "b"),
    "object": object(),
    "NumPy -3": np.int64(-3),
    "NumPy nan": np.float64("nan"),
    "torch 1.5": torch.tensor(1.5),
    "ones": torch.ones(2, 2),
    "array": np.zeros(3),
    "table": pd.DataFrame({"layer": [1]}),
    "class": int,
    "function": lambda *_: 0,
}
"""What no option takes, and things that some do."""

SAID_OTHERWISE = {
    "data": ("inputs", "a batch", "labels", "no neurons"),
    "example": ("inputs of shape",),
}
"""What errors may speak of instead of an argument."""


@functools.cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(40, 3, generator=generator)
    return X, (X[:, 0] > X[:, 1]).long()


@functools.cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


@functools.cache
def circuit() -> ng.Circuit:
    return ng.search(
        model(),
        data()[0],
        1,
        feature_names=["age", "dose", "sleep"],
        class_names=["stay", "leave"],
        keep="top:3",
        reference=4,
        progress=False,
    )


@functools.cache
def faithful() -> Any:
    return ng.faithfulness(
        model(), data()[0], 1, circuit(), draws=1, reference=4, ablations=["mean"], progress=False
    )


@functools.cache
def compared() -> ng.Comparison:
    return ng.compare(circuit(), circuit(), draws=2, progress=False)


@functools.cache
def many() -> ng.Comparisons:
    return ng.compare({"a": circuit(), "b": circuit()}, draws=2, progress=False)


@functools.cache
def scores() -> Any:
    return ng.score(model(), data()[0], 1, reference=4, progress=False)


@functools.cache
def curves() -> Any:
    return ng.response_curves(model(), data()[0], 1, reference=4, progress=False)


def masked(**options: Any) -> None:
    with ng.mask_neurons(model(), **({"neurons": [("0", 1)]} | options)):
        pass


_SEARCH = (
    "model data target profile layers groups positions contrast background reference keep scorer "
    "budget paths memory seed device feature_names class_names tokenizer"
)
_STUDY = "model data target profile layers groups positions background reference memory seed device"


def _with(function: Callable[..., Any], **usual: Any) -> Callable[..., Any]:
    """Call with arguments that are right, but for those given."""

    def call(**given: Any) -> Any:
        return function(**({name: make() for name, make in usual.items()} | given))

    return call


_GIVEN = {
    "model": model,
    "data": lambda: data()[0],
    "target": lambda: 1,
    "progress": lambda: False,
}
_LABELLED = {"model": model, "data": data, "progress": lambda: False}
_FEW = {"reference": lambda: 4}

CALLS: dict[str, tuple[Callable[..., Any], str]] = {
    "search": (_with(ng.search, **_GIVEN, **_FEW), _SEARCH),
    "score": (_with(ng.score, **_GIVEN, **_FEW), f"{_STUDY} of scorer budget contrast"),
    "strongest_paths": (
        _with(ng.strongest_paths, **_GIVEN, **_FEW),
        f"{_STUDY} k sign sources contrast budget feature_names class_names",
    ),
    "response_curves": (
        _with(ng.response_curves, **_GIVEN, **_FEW),
        f"{_STUDY} neurons levels feature_names class_names",
    ),
    "profile": (
        _with(ng.profile, model=model, data=lambda: data()[0], progress=lambda: False),
        "model data layers levels memory seed device",
    ),
    "layer_graph": (
        _with(ng.layer_graph, model=model, example=lambda: data()[0]),
        "model example layers",
    ),
    "load_dictionary": (ng.load_dictionary, "path"),
    "separation": (
        _with(ng.separation, **_LABELLED),
        "model data labels layers alpha samples memory seed device feature_names class_names",
    ),
    "mask_neurons": (masked, "neurons how data groups seed"),
    "causal_shift": (
        _with(ng.causal_shift, **_LABELLED, neurons=lambda: [("0", 1)]),
        "model data neurons how labels layers samples memory seed device feature_names class_names",
    ),
    "masking_curves": (
        _with(
            ng.masking_curves,
            **_LABELLED,
            metric=lambda: MulticlassAccuracy(num_classes=2),
            importance=circuit,
            draws=lambda: 1,
        ),
        "model data metric importance important shares draws how groups confidence memory seed",
    ),
    "faithfulness": (
        _with(ng.faithfulness, **_GIVEN, **_FEW, ranking=circuit, draws=lambda: 1),
        f"{_STUDY.replace(' background', '')} ranking sizes ablations draws confidence",
    ),
    "compare": (
        _with(ng.compare, a=circuit, b=circuit, draws=lambda: 2, progress=lambda: False),
        "a b names match align across data samples least draws budget transplants ablation "
        "reference seed",
    ),
    "load": (ng.load, "path"),
    "logit_difference": (ng.logit_difference, "correct wrong tokenizer position"),
    "importance.by_effect": (_with(importance.by_effect, ranked=circuit), "ranked"),
    "importance.by_separation": (importance.by_separation, "table"),
    "importance.at_random": (
        _with(importance.at_random, index=lambda: scores().ranking().index),
        "index seed",
    ),
    "Circuit.paths": (lambda **g: list(circuit().paths(**g)), "k sign source through layers"),
    "Circuit.measure": (lambda **g: circuit().measure(**g), "paths"),
    "Circuit.neurons": (lambda **g: circuit().neurons(**g), "sign layer"),
    "Circuit.edges": (lambda **g: circuit().edges(**g), "sign"),
    "Circuit.effects_of": (
        _with(lambda **g: circuit().effects_of(**g), layer=lambda: "0"),
        "layer what",
    ),
    "Circuit.subgraph": (lambda **g: circuit().subgraph(**g), "neurons"),
    "Circuit.explain": (
        _with(lambda **g: circuit().explain(**g), neuron=lambda: next(iter(circuit().graph))),
        "neuron k",
    ),
    "Circuit.name": (lambda **g: circuit().name(**g), "neuron"),
    "Circuit.audit": (lambda **g: circuit().audit(**g), "effects"),
    "Scores.audit": (lambda **g: scores().audit(**g), "effects"),
    "Circuit.attach": (
        _with(lambda **g: circuit().attach(**g), model=model, data=lambda: data()[0]),
        "model data",
    ),
    "Scores.ranking": (lambda **g: scores().ranking(**g), "by"),
    "ResponseCurves.summary": (lambda **g: curves().summary(**g), "shape"),
    "Faithfulness.incompleteness": (
        _with(lambda **g: faithful().incompleteness(**g), size=lambda: 0.5, draws=lambda: 1),
        "size ranking order ablation draws seed",
    ),
    "Faithfulness.minimality": (
        _with(lambda **g: faithful().minimality(**g), size=lambda: 0.5, most=lambda: 2),
        "size ranking order ablation most seed",
    ),
    "Comparison.neurons": (lambda **g: compared().neurons(**g), "status"),
    "Comparison.edges": (lambda **g: compared().edges(**g), "status"),
    "Comparison.paths": (lambda **g: compared().paths(**g), "status"),
    "Comparison.load": (ng.Comparison.load, "path"),
    "Comparisons.measure": (lambda **g: many().measure(**g), "name column"),
    "Comparisons.stable": (lambda **g: many().stable(**g), "of"),
    "Comparisons.load": (ng.Comparisons.load, "path"),
}
"""Each public function with right arguments, and those that are drawn wrongly."""


def drawn() -> Iterator[tuple[str, str, str]]:
    for name, (_, arguments) in CALLS.items():
        for argument in arguments.split():
            for value in ODD:
                yield name, argument, value


def complaint(name: str, argument: str, value: Any) -> str | None:
    """What is wrong with how a call answers; None where it worked or says what is meant."""
    call, _ = CALLS[name]
    try:
        call(**{argument: value})
    except FileNotFoundError:
        return None if argument == "path" else "no file"
    except NeurographError as error:
        told = str(error)
        if "\n" in told:
            return f"several lines: {told}"
        words = (argument.rstrip("s"), *SAID_OTHERWISE.get(argument, ()))
        return None if any(word in told for word in words) else f"does not name it: {told}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@settings(max_examples=200)
@given(st.sampled_from(list(drawn())))
def test_a_wrong_argument_is_named(drawn: tuple[str, str, str]) -> None:
    name, argument, value = drawn
    assert complaint(name, argument, ODD[value]) is None


def test_every_public_function_is_drawn_from() -> None:
    functions = {name for name in ng.__all__ if not isinstance(getattr(ng, name), type)}
    methods = {
        f"{kind.__name__}.{name}"
        for kind in (ng.Circuit, ng.Comparison, ng.Comparisons)
        for name, method in vars(kind).items()
        if callable(method) and not name.startswith("_") and name not in WITHOUT
    }
    assert functions | methods <= set(CALLS)


WITHOUT = {
    *("features", "ranking", "detach", "save", "to_html", "to_graphml", "screened", "to_frame"),
    *("flipped", "circuits"),
}
"""Methods that take nothing, or a file to write."""


@pytest.mark.parametrize("k", [-1, 2.5, "3", True, math.nan, None, [3]])
def test_a_number_of_paths_is_a_number(k: Any) -> None:
    with pytest.raises(OptionError, match="k="):
        circuit().paths(k)
    with pytest.raises(OptionError, match="k="):
        circuit().explain(next(iter(circuit().graph)), k)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    usual = ng.search(
        model(), data()[0], 1, keep="top:3", reference=4, seed=1, paths=2, budget=3, progress=False
    )
    other = ng.search(
        model(),
        data()[0],
        1,
        keep="top:3",
        reference=np.int64(4),
        seed=torch.tensor(1),
        paths=np.uint8(2),
        budget=np.int32(3),
        progress=False,
    )
    assert usual.provenance == other.provenance
    assert list(map(str, usual.paths(np.int64(2)))) == list(map(str, other.paths(2)))
    layer, index = next(iter(usual.graph))
    assert usual.explain((layer, np.int64(index))) == usual.explain((layer, index))


# -- names -----------------------------------------------------------------------------------------


def spellings(neuron: ng.Neuron, name: str) -> list[Any]:
    """All that a neuron is printed as, and its tuples."""
    written = [neuron, tuple(neuron), list(neuron), str(neuron), name]
    written.append((neuron.layer, *map(np.int64, neuron[1:])))
    place = "" if neuron.position is None else f"@{neuron.position}"
    return [*written, f"{neuron.layer}:{neuron.index}{place}"]


def check_spellings(found: ng.Circuit) -> None:
    for neuron, name in found.graph.nodes(data="name"):
        whole = found.explain(neuron)
        through = [p.neurons for p in found.paths(3, through=neuron)]
        begun = [p.neurons for p in found.paths(3, source=neuron)]
        for written in spellings(neuron, name):
            assert found.explain(written) == whole
            assert found.name(written) == name
            assert list(found.subgraph([written]).graph) == [neuron]
            assert [p.neurons for p in found.paths(3, through=written)] == through
            assert [p.neurons for p in found.paths(3, through=[written])] == through
            assert [p.neurons for p in found.paths(3, source=written)] == begun


def test_a_circuit_takes_every_name_it_prints() -> None:
    found = circuit()
    check_spellings(found)
    path = found.strongest[0]
    measured = found.measure([path, list(path.names), [str(n) for n in path.neurons]])
    assert [p.neurons for p in measured] == [path.neurons] * 3
    assert len({p.effect for p in measured}) == 1


def test_positions_and_heads_are_names_too() -> None:
    torch.manual_seed(0)
    sequence = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten())
    X = torch.rand(20, 3, 2)
    for options in ({"positions": "each"}, {"groups": {"0": 2}}, {"positions": "last"}):
        found = ng.search(sequence, X, 5, keep="top:4", reference=4, progress=False, **options)
        check_spellings(found)
        assert len(found.graph) > 3


def test_functions_that_take_neurons_take_every_name() -> None:
    X, y = data()
    frame = pd.DataFrame(X.numpy(), columns=["age", "dose", "sleep"])
    neuron, hidden = ng.Neuron("input", 1), ng.Neuron("0", 2)

    def targets(places: Any, source: Any) -> tuple[Any, ...]:
        told: dict[str, Any] = {"reference": 4, "progress": False}
        curves = ng.response_curves(model(), frame, 1, neurons=places, **told)
        paths = ng.strongest_paths(model(), frame, 1, k=2, sources=source, **told)
        with ng.mask_neurons(model(), places, "mean", data=frame), torch.no_grad():
            output = model()(X).tolist()
        shift = ng.causal_shift(model(), (frame, y), places, progress=False)
        return curves.table["target"].tolist(), list(map(str, paths.paths)), output, shift.neurons

    usual = targets([tuple(neuron), tuple(hidden)], tuple(neuron))
    for one, other in zip(spellings(neuron, "dose"), spellings(hidden, "0[2]"), strict=True):
        assert targets([one, other], one) == usual


def test_names_that_are_none_or_several_are_told() -> None:
    found = circuit()
    with pytest.raises(OptionError, match=r"neuron='ages': .*near it are age"):
        found.explain("ages")
    with pytest.raises(OptionError, match="neuron='0' is a layer"):
        found.explain("0")
    with pytest.raises(OptionError, match=r"neuron='0\[51\]': there is no 0\[51\]"):
        found.explain("0[51]")
    quiet: dict[str, Any] = {"reference": 4, "progress": False}
    twice = ng.search(model(), data()[0], 1, feature_names=["a", "output[1]", "b"], **quiet)
    with pytest.raises(OptionError, match="several neurons are called so"):
        twice.explain("output[1]")
    with pytest.raises(OptionError, match="feature_names: 'a' stands there 2 times"):
        ng.search(model(), data()[0], 1, feature_names=["a", "a", "b"], **quiet)


def test_what_is_no_path_group_option_or_count_is_told() -> None:
    found = circuit()
    with pytest.raises(OptionError, match="path=None is no path"):
        found.save(None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="path=5 is no path"):
        found.to_html(5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="bogus= is no option"):
        found.attach(model(), data()[0], bogus=1)
    with pytest.raises(OptionError, match=r"k=.* must be"):
        next(found.paths(2**70))
    with pytest.raises(OptionError, match="groups=77 matches no layer"):
        ng.search(model(), data()[0], 1, groups={77: 2}, progress=False)  # type: ignore[dict-item]


def test_rankings_begin_with_the_strongest() -> None:
    for series in (circuit().ranking(), scores().ranking(), scores().ranking("rms")):
        assert (series.abs().diff().dropna() <= 0).all()
