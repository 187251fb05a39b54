"""A study is prepared once, and answers as functions do that prepare anew."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.effects.contrast import FromZero
from neurograph.effects.gradient import Integrated
from neurograph.effects.selection import TopK
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.preparation.options import OPTIONS, StudyOptions

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR, dtype=torch.float64)
Y = (X[:, 0] > 0).long()


class Counted(nn.Module):
    """A small network that counts how often it is run with every layer at work."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.second = nn.Linear(4, 6).double(), nn.Linear(6, 1).double()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double()

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x).tanh()
        out: Tensor = self.second(hidden)
        return out


def test_a_circuit_is_copied_with_its_study_and_pickled_without() -> None:
    circuit = ng.search(Counted(), X, 1, progress=False)
    other = copy.deepcopy(circuit)
    assert other.study is circuit.study
    assert [path.effect for path in other.paths(3)] == [path.effect for path in circuit.paths(3)]
    with pytest.raises(TypeError, match=r"pass on circuit.detach\(\)"):
        pickle.dumps(circuit)
    assert pickle.dumps(circuit.detach())


@contextmanager
def counting(model: nn.Module) -> Iterator[list[int]]:
    """Count runs of the model without stand-ins, but for an audit's, which are of the answer."""
    count = [0]

    def note(module: nn.Module, _inputs: Any) -> None:
        audited = any("audit" in str(frame.filename) for frame in traceback.extract_stack())
        count[0] += "forward" not in vars(module.first) and not audited  # type: ignore[operator]

    handle = model.register_forward_pre_hook(note)
    try:
        yield count
    finally:
        handle.remove()


ASKED: dict[str, Callable[[ng.Study], Any]] = {
    "search": lambda study: study.search(keep="top:3", paths=4),
    "score": lambda study: study.score(scorer="exact"),
    "edges": lambda study: study.score(of="edges", scorer="gradient"),
    "strongest paths": lambda study: study.strongest_paths(5),
    "responses": lambda study: study.responses(neurons=["first"]),
    "faithfulness": lambda study: study.faithfulness(
        study.score(scorer="gradient").ranking(), draws=1, sizes=(0.5, 1)
    ),
}
FUNCTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "search": lambda model: ng.search(model, (X, Y), 1, keep="top:3", paths=4, progress=False),
    "score": lambda model: ng.score(model, (X, Y), 1, scorer="exact", progress=False),
    "edges": lambda model: ng.score(
        model, (X, Y), 1, of="edges", scorer="gradient", progress=False
    ),
    "strongest paths": lambda model: ng.strongest_paths(model, (X, Y), 1, 5, progress=False),
    "responses": lambda model: ng.response_curves(
        model, (X, Y), 1, neurons=["first"], progress=False
    ),
    "faithfulness": lambda model: ng.faithfulness(
        model,
        (X, Y),
        1,
        ng.score(model, (X, Y), 1, scorer="gradient", progress=False).ranking(),
        draws=1,
        sizes=(0.5, 1),
        reference=32,
        progress=False,
    ),
}


def tables(result: Any) -> list[pd.DataFrame]:
    """All numbers of a result."""
    if isinstance(result, ng.Circuit):
        paths = [(str(path.names), path.effect, path.stderr) for path in result.strongest]
        return [result.neurons(), result.edges(), result.features(), pd.DataFrame(paths)]
    if hasattr(result, "draws"):
        return [result.draws, result.ends]
    return [result.to_frame() if hasattr(result, "to_frame") else result.table]


def test_nothing_is_run_until_something_is_asked() -> None:
    model = Counted()
    with counting(model) as runs:
        study = ng.Study(model, (X, Y), 1, progress=False)
        assert "nothing was asked" in repr(study)
        assert runs == [0]
        assert study.target.name == "output"
        assert runs[0] > 0


@pytest.mark.parametrize("second", ASKED)
@pytest.mark.parametrize("first", ["search", "faithfulness"])
def test_a_second_question_prepares_nothing(first: str, second: str) -> None:
    model = Counted()
    study = ng.Study(model, (X, Y), 1, progress=False)
    ASKED[first](study)
    _ = study.statistics
    with counting(model) as runs:
        known = study.experiment, study.wiring
        ASKED[second](study)
    # One run a question, which tells whether the model still is the same; none prepares anything.
    assert runs == [2 if second == "faithfulness" else 1]
    assert (study.experiment, study.wiring) == known


@pytest.mark.parametrize("question", ASKED)
def test_a_study_answers_as_the_function_does(question: str) -> None:
    study = ng.Study(Counted(), (X, Y), 1, progress=False)
    wanted = tables(FUNCTIONS[question](Counted()))
    for _ in range(2):  # the second time with all that the first has left
        for one, other in zip(tables(ASKED[question](study)), wanted, strict=True):
            pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_a_study_holds_what_was_found_of_the_model() -> None:
    model = Counted()
    study = ng.Study(model, (X, Y), 1, progress=False)
    graph = ng.layer_graph(model, X)
    assert dict(study.layer_graph.nodes(data=True)) == dict(graph.nodes(data=True))
    assert study.layer_graph.edges == graph.edges
    wanted = ng.profile(model, X)
    for name, data in study.profile.nodes(data=True):
        for key in ("mean", "std", "quantiles"):
            assert torch.equal(data[key], wanted.nodes[name][key])
    table = ng.separation(model, (X, Y))
    pd.testing.assert_frame_equal(study.separation(), table)
    audit = study.audit(6)
    assert audit.agrees
    assert set(audit.layers) == {"input", "first", "second"}


def test_a_circuit_holds_its_study() -> None:
    circuit = ng.search(Counted(), (X, Y), 1, keep="top:3", paths=4, progress=False)
    again = circuit.study.search(keep="top:3", paths=4)
    pd.testing.assert_frame_equal(again.neurons(), circuit.neurons())
    assert circuit.study.strongest_paths(1).paths[0].effect == pytest.approx(
        circuit.strongest[0].effect
    )


def test_weights_that_changed_since_are_refused() -> None:
    model = Counted()
    study = ng.Study(model, (X, Y), 1, progress=False)
    study.score()
    with torch.no_grad():
        model.first.weight.add_(1.0)
    for question in ASKED.values():
        with pytest.raises(ModelError, match="weights have changed"):
            question(study)
    with pytest.raises(ModelError, match="weights have changed"):
        study.audit()


def test_a_profile_is_not_of_other_weights_than_the_layer_graph() -> None:
    model = Counted()
    study = ng.Study(model, (X, Y), 1, progress=False)
    _ = study.layer_graph
    with torch.no_grad():
        model.first.weight.add_(1.0)
    with pytest.raises(ModelError, match="weights have changed"):
        _ = study.profile
    with pytest.raises(ModelError, match="weights have changed"):
        study.score()


def test_views_of_a_study_are_told_apart_by_all_that_they_change() -> None:
    study = ng.Study(Counted(), (X, Y), 1, progress=False)
    zero = study.at(contrast="zero", routed=False)
    assert zero.at(routed=True).contrast == FromZero()
    assert zero.at(contrast="quantiles", routed=True) is not zero
    assert study.at() is study
    scores = study.score(scorer="exact").ranking()
    wanted = ng.score(Counted(), (X, Y), 1, scorer="exact", contrast="zero", progress=False)
    pd.testing.assert_series_equal(zero.score(scorer="exact").ranking(), wanted.ranking())
    pd.testing.assert_series_equal(study.score(scorer="exact").ranking(), scores)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: ng.Study(Counted(), X, 1, scorer="exact"), "scorer= is no option of a study"),  # type: ignore[call-arg]
        (lambda: ng.Study(Counted(), X, 1).search(seed=3), "seed= is an option of a study"),  # type: ignore[call-arg]
        (lambda: ng.search(Counted(), X, 1, bugdet=3), "did you mean budget"),  # type: ignore[call-arg]
        (lambda: ng.score(Counted(), X, 1, keep="top:1"), "keep= is no option of score"),  # type: ignore[call-arg]
    ],
)
def test_an_option_that_there_is_not_is_refused(ask: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ask()


def test_options_are_typed_and_explained_by_the_same_names() -> None:
    for kind, options in OPTIONS.items():
        assert list(kind.__annotations__) == list(options)
    for function in (ng.search, ng.score, ng.faithfulness, ng.response_curves, ng.Study):
        shown = inspect.signature(function).parameters
        for name, option in OPTIONS[StudyOptions].items():
            wanted = 128 if (function, name) == (ng.faithfulness, "reference") else option.default
            assert shown[name].default == wanted
    assert inspect.signature(ng.Study.search).parameters["keep"].default == "quantile:0.95"
    for name in OPTIONS[StudyOptions]:
        assert f"{name}" in (ng.Study.__doc__ or "")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.second.register_forward_hook(lambda *args: args[2] * 3),
        lambda model: setattr(model, "second", Doubled(model.second)),
        lambda model: setattr(model, "forward", lambda x: model.second(model.first(x))),
    ],
)
def test_a_model_that_does_something_else_by_now_is_refused(change: Callable[[Any], Any]) -> None:
    model = Counted()
    study = ng.Study(model, (X, Y), 1, progress=False)
    study.score()
    change(model)
    for question in ASKED.values():
        with pytest.raises(ModelError, match=r"something else for the reference|have changed"):
            question(study)


class Doubled(nn.Linear):
    """A layer with the weights of another that returns twice as much."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__(other.in_features, other.out_features, dtype=torch.float64)
        self.weight, self.bias = other.weight, other.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_data_that_changed_are_not_mixed_with_what_was_recorded() -> None:
    data = X.clone()
    study = ng.Study(Counted(), data, 1, contrast="zero", reference=data, progress=False)
    before = study.score(scorer="exact").ranking()
    data.mul_(3)
    pd.testing.assert_series_equal(study.score(scorer="exact").ranking(), before)
    for ask in (
        lambda: study.at(contrast="mean").score(),
        lambda: study.responses(),
        lambda: study.profile,
        lambda: study.faithfulness(before, draws=1),
        lambda: study.separation(Y),
    ):
        with pytest.raises(DataError, match="data have changed"):
            ask()


def test_an_interrupted_pass_over_the_data_leaves_the_study_as_it_was() -> None:
    class Once(torch.utils.data.Dataset[Tensor]):
        fails = False

        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, index: int) -> Tensor:
            if Once.fails and index == 50:
                raise KeyboardInterrupt
            return X[index]

    study = ng.Study(Counted(), Once(), 1, progress=False)
    study.score()
    Once.fails = True
    with pytest.raises(KeyboardInterrupt):
        study.at(contrast=(0.2, 0.8)).score()
    Once.fails = False
    found = study.at(contrast=(0.2, 0.8)).score(scorer="exact").table
    wanted = ng.score(Counted(), X, 1, contrast=(0.2, 0.8), scorer="exact", progress=False).table
    pd.testing.assert_frame_equal(found, wanted)


def test_questions_of_several_threads_wait_for_each_other() -> None:
    study = ng.Study(Counted(), (X, Y), 1, progress=False)
    wanted = study.score(scorer="exact").ranking()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(lambda: study.score(scorer="exact").ranking()) for _ in range(8)]
        for one in found:
            pd.testing.assert_series_equal(one.result(), wanted)
    with torch.no_grad():
        study.model.first.weight.add_(1.0)
    with pytest.raises(ModelError, match="weights have changed"):
        study.score()


def test_options_are_those_that_were_given_whatever_becomes_of_them() -> None:
    groups, contrast = {"first": np.int64(2)}, [0.1, 0.9]
    study = ng.Study(Counted(), X, 1, groups=groups, contrast=contrast, progress=False)  # type: ignore[arg-type]
    groups["first"], contrast[0] = np.int64(3), 0.5
    circuit = study.search(keep=TopK(np.int64(2)), scorer=Integrated(steps=np.int64(2)))
    assert circuit.provenance["options"]["groups"] == {"first": 2}
    assert circuit.provenance["options"]["contrast"]["levels"] == [0.1, 0.9]
    json.dumps(circuit.provenance)
    again = circuit.detach().attach(study.model, X)
    assert again.measure(circuit.strongest[:1])[0].effect == circuit.strongest[0].effect
    with pytest.raises(TypeError):
        study.options["seed"] = 3  # type: ignore[index]
    with pytest.raises(TypeError):
        study.at(seed=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"contrast": "mean"}, "contrast= says"),
        ({"background": "zero"}, "background= says"),
        ({"reference": 8}, "reference samples are not those"),
        ({"target": lambda output, _batch: -5 * output[:, 0]}, "explains 'output'|was measured as"),
    ],
)
def test_a_circuit_without_paths_is_attached_to_what_it_was_found_with(
    given: dict[str, Any], message: str
) -> None:
    model = Counted()
    circuit = ng.search(model, X, 1, paths=0, progress=False).detach()
    assert circuit.attach(model, X).is_attached
    with pytest.raises(OptionError, match=message):
        circuit.attach(model, X, **given)


def test_a_result_of_another_study_is_not_audited() -> None:
    one, other = (ng.Study(Counted(), X, 1, contrast=c, progress=False) for c in ("zero", "mean"))
    with pytest.raises(OptionError, match="of another study: its contrast differs"):
        one.audit(of=other.score())
    with pytest.raises(OptionError, match="of=3"):
        one.audit(of=3)  # type: ignore[arg-type]
