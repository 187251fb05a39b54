"""Data, targets, masks and outputs as users have them: each works, or is refused by name."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

import neurograph as ng
from neurograph.activations.values import class_values
from neurograph.data.source import Source, concatenate
from neurograph.errors import DataError, OptionError
from neurograph.questions.study import Study

QUIET: dict[str, Any] = {"progress": False}
EXACT: dict[str, Any] = {"scorer": "exact", "progress": False}
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(50, 4, generator=GENERATOR).double()
WORDS = np.array(["no", "yes"])[(ROWS[:, 0] > 0).long()]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def mlp(inputs: int = 4, outputs: int = 2) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, outputs)))


def effects(model: nn.Module, data: Any, target: Any = 1, **options: Any) -> dict[Any, float]:
    """Total effects, by layer and index."""
    table = ng.score(model, data, target, **EXACT, **options).table
    places = zip(table["layer"], table["index"], strict=True)
    return dict(zip(places, table["effect"], strict=True))


def by_hand(run: Callable[[Tensor], Tensor], X: Tensor) -> list[float]:
    """Total effect of each feature: all samples with it at its two quantiles."""
    low, high = X.quantile(torch.tensor([0.05, 0.95], dtype=X.dtype), dim=0)
    found = []
    with torch.no_grad():
        for j in range(X.shape[-1]):
            ends = []
            for end in (low, high):
                moved = X.clone()
                moved[..., j] = end[..., j]
                ends.append(run(moved))
            found.append(float((ends[1] - ends[0]).mean()))
    return found


def notes(model: nn.Module, data: Any, target: Any = 1, **options: Any) -> str:
    study = Study(model, data, target, **QUIET, **options)
    assert study.provenance["notes"] == list(study.notes)
    return "\n".join(study.notes)


# -- kinds of data ---------------------------------------------------------------------------------


class Table:
    """Rows of dicts by number, as a `datasets.Dataset` has them."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: values[i] for name, values in self.columns.items()}


class Rows(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


Pair = namedtuple("Pair", "x y")
CLASSES = (ROWS[:, 0] > 0).long().tolist()
KINDS: dict[str, Any] = {
    "rows": list(ROWS),
    "arrays": list(ROWS.numpy()),
    "numbers": ROWS.tolist(),
    "pairs": [(row, label) for row, label in zip(ROWS, CLASSES, strict=True)],
    "pairs of words": [(row, str(word)) for row, word in zip(ROWS.numpy(), WORDS, strict=True)],
    "pairs of numbers": [(row.tolist(), label) for row, label in zip(ROWS, CLASSES, strict=True)],
    "dicts": [{"x": row, "label": label} for row, label in zip(ROWS, CLASSES, strict=True)],
    "named tuples": [Pair(row, torch.tensor(y)) for row, y in zip(ROWS, CLASSES, strict=True)],
    "list and labels": (list(ROWS), CLASSES),
    "lists of numbers and words": (ROWS.tolist(), WORDS.tolist()),
    "table of lists": Table({"x": ROWS.tolist(), "label": CLASSES}),
    "table of tensors": Table({"x": ROWS, "label": torch.tensor(CLASSES)}),
    "table of words": Table({"x": ROWS.numpy(), "label": WORDS.tolist()}),
    "dataset of dicts": Rows(lambda i: {"x": ROWS[i], "label": CLASSES[i]}),
    "dataset of words": Rows(lambda i: (ROWS[i].numpy(), str(WORDS[i]))),
    "loader of dicts": DataLoader(Rows(lambda i: {"x": ROWS[i], "y": CLASSES[i]}), batch_size=8),
    "loader of words": DataLoader(Rows(lambda i: (ROWS[i], str(WORDS[i]))), batch_size=8),
    "named tuple": Pair(ROWS, torch.tensor(CLASSES)),
    "batches of words": [(ROWS[:20], WORDS[:20]), (ROWS[20:], WORDS[20:])],
    "categories": (ROWS, pd.Series(WORDS, dtype="category")),
    "nullable labels": (ROWS, pd.Series(CLASSES, dtype="Int64")),
    "labels in an index": (ROWS, pd.Index(WORDS)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_samples(kind: str) -> None:
    source = Source(KINDS[kind], Named().double(), batch_size=16)
    for _ in range(2):
        whole = concatenate(list(source))
        (x,) = (*whole.args, *whole.kwargs.values())
        assert torch.equal(x, ROWS)
        if kind not in ("rows", "arrays", "numbers"):
            assert whole.labels.tolist() == CLASSES
    words = "words" in kind or kind in ("categories", "labels in an index")
    assert source.classes == (("no", "yes") if words else None)


@pytest.mark.parametrize("kind", ["rows", "pairs of words", "table of lists", "dataset of dicts"])
def test_every_kind_of_data_gives_the_same_effects(kind: str) -> None:
    model = Named().double()
    found = effects(model, KINDS[kind], reference=50)
    wanted = by_hand(lambda x: model(x)[:, 1], ROWS)
    layer = next(name for name, _ in found if name.startswith("input"))
    assert [found[layer, j] for j in range(4)] == pytest.approx(wanted, rel=1e-9)


def test_items_that_the_model_takes_either_way_are_batches_and_it_is_said() -> None:
    model, items = mlp(), [ROWS[:25], ROWS[25:]]
    (first, _) = source = Source(items, model)
    assert first.size == 25
    assert "taken for batches of 25 samples" in source.notes[0]
    single = Source([row[None] for row in ROWS[:3]], model)
    assert [batch.size for batch in single] == [1, 1, 1]
    with pytest.raises(DataError, match=r"different shapes \(3 and 4\): pad them.*attention_mask"):
        list(Source([ROWS[0, :3], ROWS[0], ROWS[1], ROWS[1]], model))


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2, 3], [4, 5]],
        [(torch.ones(n), 0) for n in (2, 3)],
        [torch.ones(n).long() for n in (2, 3, 4, 2)],
        Table({"ids": [[1, 2], [1]], "label": [0, 1]}),
        Rows(lambda i: torch.ones(1 + i % 3)),
        ([[1, 2], [1]], [0, 1]),
    ],
)
def test_ragged_samples_are_told_to_be_padded(data: Any) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.EmbeddingBag(9, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.e(ids)  # type: ignore[no-any-return]

    with pytest.raises(DataError, match=r"samples have different .*pad them to one length"):
        list(Source(data, Bag()))


def test_labels_that_are_words_are_classes_in_sorted_order_with_their_names() -> None:
    for labels in (WORDS, WORDS.tolist(), pd.Series(WORDS), pd.Categorical(WORDS)):
        table = ng.separation(mlp(), (ROWS, labels))
        assert len(table)
        assert list(class_values(mlp(), (ROWS, labels)).counts) == ["no", "yes"]
        given = class_values(mlp(), ROWS, labels=labels)
        assert list(given.counts) == ["no", "yes"]
    asked = ng.profile(mlp(), (ROWS, WORDS), labels=True, **QUIET)
    assert list(asked.nodes["0"]["classes"]) == ["no", "yes"]

    def own(output: Tensor, batch: Any) -> Tensor:
        return output.gather(1, batch.labels[:, None])[:, 0]

    words, numbers = (effects(mlp(), (ROWS, y), own) for y in (WORDS, torch.tensor(CLASSES)))
    assert words == numbers
    with pytest.raises(DataError, match="no class for sample 2"):
        list(Source((ROWS[:3], ["a", "b", None]), mlp()))


# -- columns ---------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"age": [1, 2, 3, 4] * 10, "sex": [0, 1] * 20, "smokes": [True, False] * 20})
FRAMES = {
    "whole numbers and booleans": FRAME,
    "whole numbers": FRAME.astype(int),
    "nullable": FRAME.astype({"age": "Int64", "sex": "Float64", "smokes": "boolean"}),
    "objects": FRAME.astype(object),
    "mixed": FRAME.assign(age=FRAME["age"].astype(float)),
    "unsigned": FRAME.astype("uint16"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_columns_of_any_numbers_are_features(kind: str) -> None:
    model = mlp(3)
    found = effects(model, FRAMES[kind], reference=40)
    plain = torch.from_numpy(FRAME.astype(float).to_numpy())
    wanted = by_hand(lambda x: model(x)[:, 1], plain)
    assert [found["input", j] for j in range(3)] == pytest.approx(wanted, rel=1e-9)
    circuit = ng.search(model, FRAMES[kind], 1, keep="share:1", **QUIET)
    names = {str(circuit.name(n)) for n in circuit.graph if n.layer == "input"}
    assert names <= {"age", "sex", "smokes"}
    assert names


def test_whole_numbers_are_converted_where_the_model_needs_it_and_it_is_said() -> None:
    whole = FRAME.astype(int)
    assert "converted to float64" in notes(mlp(3), whole)
    assert "converted to float64" in notes(mlp(4), ROWS.float())
    ids = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(9, 2)).double()
    assert notes(ids, whole) == ""
    (batch,) = Source(whole, ids)
    assert batch.args[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (FRAME.assign(name="x"), r"columns that are not numbers: 'name' \(.*\); encode them"),
        (FRAME.assign(a="x", b=pd.Categorical(["u"] * 40)), "'a' .*'b' .*category"),
        (FRAME.assign(age=pd.array([1, None] * 20, dtype="Int64")), "column 'age' has no value in"),
        (FRAME.assign(smokes=pd.array([None, True] * 20, dtype="boolean")), "'smokes'.*row 0"),
    ],
)
def test_columns_that_are_no_numbers_or_have_none_are_named(frame: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        ng.search(mlp(3), frame, 1, **QUIET)


@pytest.mark.filterwarnings("error")
def test_memory_that_may_not_be_written_to_is_no_matter() -> None:
    array = ROWS.numpy().copy()
    array.flags.writeable = False
    (batch,) = Source(array[::-1], mlp())
    assert torch.equal(batch.args[0], ROWS.flip(0))
    (batch,) = Source((array, pd.Series(WORDS)), mlp())
    assert torch.equal(batch.args[0], ROWS)


# -- what forward takes ----------------------------------------------------------------------------


class Gated(nn.Module):
    """Takes a second input that is called as labels often are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.a(x)
        return self.o(torch.relu(h if y is None else h * torch.sigmoid(self.b(y))))  # type: ignore[no-any-return]


def test_what_forward_takes_is_an_input_whatever_it_is_called() -> None:
    model = seeded(Gated)
    second = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double()
    graph = ng.layer_graph(model, {"x": ROWS, "y": second})
    assert list(graph.edges) == list(ng.layer_graph(model, ((ROWS, second), None)).edges)
    assert ("input.y", "b") in graph.edges
    found = effects(model, {"x": ROWS, "y": second}, reference=50)
    wanted = by_hand(lambda y: model(ROWS, y)[:, 1], second)
    assert [found["input.y", j] for j in range(3)] == pytest.approx(wanted, rel=1e-9)
    assert "'y' of the data is passed to the model" in notes(model, {"x": ROWS, "y": second})
    (batch,) = Source({"x": ROWS, "y": second}, model)
    assert batch.labels is batch.kwargs["y"] or torch.equal(batch.labels, second)
    (batch,) = Source(({"x": ROWS, "y": second}, CLASSES), model)
    assert batch.labels.tolist() == CLASSES
    (batch,) = Source({"x": ROWS, "y": second, "labels": torch.tensor(CLASSES)}, model)
    assert batch.labels.tolist() == CLASSES
    assert set(batch.kwargs) == {"x", "y"}


class Open(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(4, 2)

    def forward(self, x: Tensor, **_rest: Any) -> Tensor:
        return self.o(x)  # type: ignore[no-any-return]


def test_labels_beside_an_open_signature_are_kept_apart_and_it_is_said() -> None:
    data = {"x": ROWS, "labels": torch.tensor(CLASSES)}
    (batch,) = Source(data, Open().double())
    assert set(batch.kwargs) == {"x"}
    assert "not passed to the model" in notes(Open().double(), data)


class Whole(nn.Module):
    """Takes its batch as one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(7, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.o(torch.cat([batch["x"], batch["z"]], 1))  # type: ignore[no-any-return]


def test_one_dict_may_be_the_only_argument() -> None:
    model = seeded(Whole)
    d = {"x": ROWS, "z": ROWS[:, :3]}
    loader = DataLoader(Rows(lambda i: {k: v[i] for k, v in d.items()}), batch_size=16)
    for data in (d, (d, torch.zeros(50)), {"batch": d}, ((d,), None), loader):
        assert list(ng.layer_graph(model, data)) == ["input.batch.x", "input.batch.z", "o"]
    found = effects(model, d, reference=50)
    wanted = by_hand(lambda x: model({"x": x, "z": d["z"]})[:, 1], ROWS)
    assert [found["input.batch.x", j] for j in range(4)] == pytest.approx(wanted, rel=1e-9)
    assert "passed to the model whole, as its argument 'batch'" in notes(model, d)
    with pytest.raises(DataError, match="key 'features', which the model's forward does not take"):
        ng.layer_graph(Named().double(), {"features": ROWS})


class Maskable(nn.Module):
    """Takes a mask by keyword, in a form of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.e(x))
        there = x.new_ones(x.shape[:2]) if mask is None else mask.flatten(1)[:, -x.shape[1] :].exp()
        return self.o((hidden * there[..., None]).sum(1))  # type: ignore[no-any-return]


def test_what_may_be_an_input_but_is_read_as_labels_is_told() -> None:
    X = torch.randn(30, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    model, mask = seeded(Maskable), PAD[:30].double() * -30
    wanted = "'mask' of forward is left out: pass ((inputs, mask), None)"
    assert wanted in notes(model, (X, mask))
    assert wanted not in notes(model, ((X, mask), None))
    assert wanted not in notes(model, (X, torch.arange(30) % 2))


def test_masks_and_lengths_that_are_not_read_are_told() -> None:
    X = torch.randn(30, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    model, mask = seeded(Maskable), PAD[:30].double() * -30
    for additive in (mask, mask[:, None, None]):
        assert "'mask' is not read as a mask" in notes(model, {"x": X, "mask": additive})
    assert "not read as a mask" not in notes(model, X)
    lengths = torch.arange(30) % 6 + 1
    assert "'lengths' is not read" in notes(seeded(Packing), {"x": X, "lengths": lengths})


def test_positions_that_there_are_not_are_told() -> None:
    assert "changes nothing" in notes(mlp(), ROWS, positions="each")
    assert "changes nothing" not in notes(seeded(Maskable), ROWS[:, None, :3], positions="each")


def test_numbers_are_not_explained_as_a_binary_logit() -> None:
    model = mlp(outputs=1)
    with pytest.raises(OptionError, match=r"target=0 .*labels are no 0 and 1.*target=None"):
        ng.search(model, (ROWS, ROWS[:, 1]), 0, **QUIET)
    assert effects(model, (ROWS, ROWS[:, 1]), None) == effects(
        model, ROWS, "price", class_names=["price"]
    )
    assert ng.search(model, (ROWS, (ROWS[:, 1] > 0).long()), 0, **QUIET).target.startswith("-")


def test_names_are_different_and_on_one_line() -> None:
    frame = pd.DataFrame(ROWS.numpy(), columns=["a", "b", "a", "c"])
    with pytest.raises(OptionError, match="the columns of data: 'a' stands there 2 times"):
        ng.search(mlp(), frame, 1, **QUIET)
    with pytest.raises(DataError, match=r"not alike \(50×4, 50\).*tuple \(X, y\)"):
        ng.search(mlp(), [frame, frame["c"]], 1, **QUIET)
    names = ["two\nlines", "\u202eturned", "plain", "d"]
    circuit = ng.search(mlp(), ROWS, 1, feature_names=names, keep="top:4", **QUIET)
    assert {r"two\nlines", r"\u202eturned", "plain"} < set(circuit.features()["name"])
    assert circuit.explain("two\nlines") == circuit.explain(r"two\nlines")


@pytest.mark.parametrize("names", [["a", "c", "b", "d"], ["b", "x", "y", "z"]])
def test_given_names_do_not_contradict_the_columns(names: list[str]) -> None:
    frame = pd.DataFrame(ROWS.numpy(), columns=list("abcd"))
    with pytest.raises(OptionError, match=r"feature_names\[\d\] is '[bc]', but the data have that"):
        ng.search(mlp(), frame, 1, feature_names=names, **QUIET)
    renamed = ng.search(mlp(), frame, 1, feature_names=["a", "x", "y", "z"], **QUIET)
    assert set(renamed.features()["name"]) == {"a", "x", "y", "z"}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["same", "same"], "'same' stands there 2 times"),
        ([torch.tensor(0), torch.tensor(1)], r"tensor\(0\) is no name"),
        ([None, "yes"], "None is no name"),
    ],
)
def test_class_names_are_names_and_different(names: Any, told: str) -> None:
    with pytest.raises(OptionError, match=f"class_names: {told}"):
        ng.search(mlp(), ROWS, 1, class_names=names, **QUIET)
    assert ng.search(mlp(), ROWS, 1, class_names=[0, np.int64(1)], **QUIET).target == "1"


def test_an_index_of_a_sample_of_the_batch_is_refused() -> None:
    class Similarity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) @ self.other(x).T

    with pytest.raises(OptionError, match=r"2×2 and 3×3 for batches of 2 and 3 samples"):
        ng.search(Similarity().double(), ROWS, 1, **QUIET)


def test_quantiles_of_a_sample_of_the_rows_are_told() -> None:
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(2)).double()
    sampled = "quantiles of input, 0, 2 are of rows drawn at random"
    assert any(sampled in note for note in ng.search(mlp(), rows, 1, **QUIET).notes)
    for data, contrast in ((rows[:2000], "quantiles"), (rows, "mean"), (rows, (0, 1))):
        circuit = ng.search(mlp(), data, 1, contrast=contrast, **QUIET)
        assert not any("drawn at random" in note for note in circuit.notes)


def test_a_set_of_names_has_no_order() -> None:
    with pytest.raises(OptionError, match=r"feature_names=.* has no order"):
        ng.search(mlp(), ROWS, 1, feature_names={"a", "b", "c", "d"}, **QUIET)  # type: ignore[arg-type]


def test_twins_are_paired_or_refused() -> None:
    model, twins = mlp(), ROWS + 1.0
    wanted = effects(model, ROWS, contrast=ng.Counterfactual(twins))
    chosen, theirs = ROWS[[5, 3, 9]], ng.Counterfactual(twins[[5, 3, 9]])
    some = effects(model, ROWS, contrast=theirs, reference=chosen)
    one = ROWS[[5, 3, 9]].clone()
    one[:, 0] = twins[[5, 3, 9], 0]
    by_hand = (model(ROWS[[5, 3, 9]]) - model(one))[:, 1].mean().item()
    assert some["input", 0] == pytest.approx(by_hand, rel=1e-9)
    with pytest.raises(DataError, match="50 samples, not 3"):
        effects(model, ROWS, contrast=ng.Counterfactual(twins), reference=chosen)
    more = torch.cat([twins, twins[:1]])
    with pytest.raises(DataError, match="51 samples, not 50"):
        effects(model, ROWS, contrast=ng.Counterfactual(more))
    loaders = [
        DataLoader(TensorDataset(ROWS), batch_size=8, shuffle=True),
        DataLoader(TensorDataset(ROWS), 8, sampler=WeightedRandomSampler([1.0] * 50, 50)),
    ]
    for loader in loaders:
        with pytest.raises(DataError, match="shuffles or draws"):
            effects(model, loader, contrast=ng.Counterfactual(twins))
        with pytest.raises(DataError, match="shuffles or draws"):
            effects(model, ROWS, contrast=ng.Counterfactual(loader))
    in_order = DataLoader(TensorDataset(ROWS), batch_size=8)
    assert effects(model, in_order, contrast=ng.Counterfactual(twins)) == wanted


def test_columns_in_another_order_are_refused() -> None:
    frame = pd.DataFrame(ROWS.numpy(), columns=list("abcd"))
    turned = frame[list("abdc")]
    assert effects(mlp(), frame, reference=frame[:8])
    for options in ({"reference": turned}, {"contrast": ng.Counterfactual(turned)}):
        with pytest.raises(DataError, match=r"columns are not those of the data.*'d'"):
            effects(mlp(), frame, **options)


def test_targets_must_repeat_and_tell_of_each_sample_alone() -> None:
    calls = []

    def counted(output: Tensor, _batch: Any) -> Tensor:
        calls.append(1)
        return output[:, 0] * len(calls)

    model = mlp()
    before = torch.get_rng_state()
    odd = {
        "called again": [counted, lambda o, _: nn.functional.dropout(o)[:, 0]],
        "others of its batch": [
            lambda o, _: o[:, 0] - o[:, 0].mean(0),
            lambda o, _: o.softmax(0)[:, 1],
            lambda o, _: o[:, 0].argsort().argsort().double(),
        ],
    }
    for told, targets in odd.items():
        for target in targets:
            for ask in (ng.score, ng.search, ng.response_curves):
                with pytest.raises(OptionError, match=told):
                    ask(model, ROWS, target, **QUIET)
    assert torch.equal(before, torch.get_rng_state())


def test_labels_may_be_those_of_the_reference_samples_alone() -> None:
    def own(output: Tensor, batch: Any) -> Tensor:
        return output[torch.arange(len(output)), torch.as_tensor(batch.labels)]

    labels = (ROWS[:, 0] > 0).long()
    found = effects(mlp(), ROWS, own, reference=(ROWS[:9], labels[:9]))
    assert found == effects(mlp(), (ROWS, labels), own, reference=(ROWS[:9], labels[:9]))
    with pytest.raises(OptionError, match="hold no labels"):
        effects(mlp(), ROWS, own)


def test_numbers_without_a_second_dimension_are_told() -> None:
    with pytest.raises(ng.NeurographError, match=r"pass X\[:, None\]"):
        ng.search(mlp(1), ROWS[:, 0], 1, **QUIET)
    with pytest.raises(ng.NeurographError, match=r"A single sample: pass X\[None\]"):
        ng.search(mlp(), ROWS[0], 1, **QUIET)


def test_an_argument_that_nobody_gives_is_named() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    with pytest.raises(DataError, match=r"forward needs 'b' .*pass several inputs as a dict"):
        list(Source((ROWS, ROWS), Two()))


def test_tuples_of_tuples_and_fields_reach_the_model() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.o = nn.Linear(4, 2)

        def forward(self, x: Tensor, more: tuple[Tensor, tuple[Tensor, Tensor]]) -> Tensor:
            one, (two, _) = more
            return self.o(x + one * two)  # type: ignore[no-any-return]

    model, ones = seeded(Nested), torch.ones(50, 4).double()
    found = effects(model, ((ROWS, (ones, (ones, ones))), None), reference=50)
    wanted = by_hand(lambda x: model(x, (ones, (ones, ones)))[:, 1], ROWS)
    assert [found["input.x", j] for j in range(4)] == pytest.approx(wanted, rel=1e-9)
    assert {name for name, _ in found} >= {"input.more.0", "input.more.1.0", "o"}


# -- samples in dimension 0 ------------------------------------------------------------------------


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.LSTM(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x)[0][-1])  # type: ignore[no-any-return]


class SamplesFirst(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", [(7, 64), (8, 4), (8, 8), (2, 2), (3, 2), (1, 5)])
@pytest.mark.parametrize("target", [1, lambda out, _: out[:, 1]], ids=["index", "callable"])
def test_samples_that_do_not_lie_in_dimension_0_are_refused_alike(
    shape: tuple[int, int], target: Any
) -> None:
    model, X = seeded(TimeFirst), torch.randn(*shape, 3).double()
    for run in (ng.search, ng.score):
        with pytest.raises(DataError, match=r"dimension 0 of the inputs is .*transpose") as told:
            run(model, X, target, **QUIET)
    if shape == (7, 64):
        assert "is 7 (7×64×3)" in str(told.value)
        assert ("the output is 64×2" if target == 1 else "returns 64:") in str(told.value)
    right = SamplesFirst(model)
    found = effects(right, X.transpose(0, 1), target, reference=64)
    wanted = by_hand(lambda x: right(x)[:, 1], X.transpose(0, 1))
    assert [found["input", j] for j in range(3)] == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_a_mean_over_the_batch_is_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.o = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(x).mean(0)  # type: ignore[no-any-return]

    for target in (0, 1):
        with pytest.raises(DataError, match=r"is 50 \(50×4\) but the output is 2: samples must"):
            ng.search(seeded(Mean), ROWS, target, **QUIET)
    with pytest.raises(DataError, match=r"the target '<lambda>' returns 2: samples must lie"):
        ng.search(mlp(), ROWS, lambda output, _: output.mean(0), **QUIET)


class Nodes(nn.Module):
    """Node features and an edge list; `whole` graphs are samples, else nodes are."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.a, self.o, self.whole = nn.Linear(3, 5), nn.Linear(5, 2), whole

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h, dim = torch.relu(self.a(x)), int(self.whole)
        assert len(edge_index) == 2
        source, sink = edge_index.unbind(0)
        h = h + torch.zeros_like(h).index_add_(dim, sink, h.index_select(dim, source))
        return self.o(h.sum(1) if self.whole else h)  # type: ignore[no-any-return]


def test_what_has_no_row_for_each_sample_is_the_same_for_all_or_named() -> None:
    edges = torch.randint(7, (2, 20), generator=torch.Generator().manual_seed(0))
    X = torch.randn(40, 7, 3, generator=torch.Generator().manual_seed(1)).double()
    model = seeded(lambda: Nodes(True))
    found = effects(model, {"x": X, "edge_index": edges}, reference=40)
    wanted = by_hand(lambda x: model(x, edges)[:, 1], X)
    assert [found["input.x", j] for j in range(3)] == pytest.approx(wanted, rel=1e-9)
    said = notes(model, {"x": X, "edge_index": edges})
    assert "'edge_index' (2×20) has no row for each of the 40 samples: it is the same for" in said
    nodes = seeded(lambda: Nodes(False))
    data = {"x": X[0].repeat(3, 1), "edge_index": torch.randint(21, (2, 30))}
    with pytest.raises(DataError, match=r"'edge_index' \(2×30\) has no row .*whole graph"):
        ng.search(nodes, data, 1, **QUIET)
    batches = [{"x": X[:20], "edge_index": edges}, {"x": X[20:], "edge_index": edges.flip(0)}]
    with pytest.raises(DataError, match="not the same in all batches"):
        ng.search(model, batches, 1, **QUIET)


def test_a_bag_of_ids_and_offsets_is_refused_and_one_of_rows_works() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.EmbeddingBag(30, 5), nn.Linear(5, 2)

        def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
            return self.o(self.e(ids, offsets))  # type: ignore[no-any-return]

    ids = torch.randint(30, (100,), generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match=r"'offsets' \(25\) has no row for each of the 100 samples"):
        ng.search(seeded(Bag), ((ids, torch.arange(0, 100, 4)), None), 1, **QUIET)
    found = effects(seeded(Bag), ids.view(25, 4))
    assert all(abs(found["e", j]) > 0 for j in range(5))


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Any, lengths: Tensor | None = None) -> Tensor:
        packed = x
        if lengths is not None:
            options = {"batch_first": True, "enforce_sorted": False}
            packed = pack_padded_sequence(x, lengths.cpu(), **options)
        return self.o(self.r(packed)[1][0][-1])  # type: ignore[no-any-return]


def test_packed_sequences_are_packed_inside_forward() -> None:
    model = seeded(Packing)
    X = torch.randn(30, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    lengths = torch.arange(30) % 6 + 1
    lengths[:3] = 1  # not in all a whole number of steps a sample
    found = effects(model, {"x": X, "lengths": lengths}, reference=30)
    wanted = by_hand(lambda x: model(x, lengths)[:, 1], X)
    assert [found["input.x", j] for j in range(3)] == pytest.approx(wanted, rel=1e-9)
    packed = pack_padded_sequence(X, lengths, batch_first=True, enforce_sorted=False)
    for data in (packed, (packed, None), {"x": packed}, [(packed, None)]):
        with pytest.raises(DataError, match=r"a PackedSequence, which has no row .*padded tensor"):
            ng.search(model, data, 1, **QUIET)


# -- outputs and targets ---------------------------------------------------------------------------


class Outputs(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any], outputs: int = 2) -> None:
        super().__init__()
        self.a, self.o, self.make = nn.Linear(4, 6), nn.Linear(6, outputs), make

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        return self.make(h, self.o(h))


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


@dataclass
class Scored:
    hidden: Tensor
    answer: Answer


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda h, o: {"embedding": h, "logits": o},
    "dataclass": Answer,
    "nested dict": lambda h, o: {"embedding": h, "head": {"logits": o}},
    "nested dataclass": lambda h, o: Scored(h, Answer(h, o)),
    "nested tuple": lambda h, o: (h, {"logits": o}),
    "loss first": lambda h, o: (o.mean(), o),
    "loss and logits": lambda h, o: {"loss": o.mean(), "logits": o, "hidden": h},
    "weights first": lambda h, o: {"batch mean": h.mean(0), "answer": o},
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_logits_are_found_wherever_they_are(kind: str) -> None:
    model = seeded(lambda: Outputs(OUTPUTS[kind]))
    plain = seeded(lambda: Outputs(lambda h, o: o))
    found, wanted = effects(model, ROWS), effects(plain, ROWS)
    assert found == pytest.approx(wanted, rel=1e-9)
    assert wanted["a", 1] != 0
    assert "several tensors" not in notes(model, ROWS)
    best = ng.strongest_paths(model, ROWS, 1, k=3, **QUIET)
    same = ng.strongest_paths(plain, ROWS, 1, k=3, **QUIET)
    assert best.certain
    assert [p.effect for p in best.paths] == pytest.approx([p.effect for p in same.paths])


def test_which_of_several_tensors_is_explained_is_said() -> None:
    model = seeded(lambda: Outputs(lambda h, o: {"embedding": h, "score": o}))
    said = notes(model, ROWS)
    assert "'embedding' (32×6), 'score' (32×2); explained is 'embedding'" in said
    circuit = ng.search(model, ROWS, 1, **QUIET)
    assert said in circuit.provenance["notes"]
    assert said in repr(ng.score(model, ROWS, 1, **QUIET))


@pytest.mark.parametrize(
    "target", [1, np.int64(1), np.uint8(1), torch.tensor(1), "leave"], ids=repr
)
def test_an_index_may_come_from_any_library_or_be_a_class_name(target: Any) -> None:
    names = ["stay", "leave"]
    circuit = ng.search(mlp(), ROWS, target, class_names=names, **QUIET)
    assert circuit.target == "leave"
    assert circuit.provenance["target"] == {"name": "leave", "index": 1, "kind": "index"}
    assert effects(mlp(), ROWS, target, class_names=names) == effects(mlp(), ROWS, 1)


@pytest.mark.parametrize("outputs", [(50, 1), (50,)])
def test_a_single_output_is_explained_as_it_is(outputs: tuple[int, ...]) -> None:
    make = (lambda h, o: o) if len(outputs) == 2 else (lambda h, o: o[:, 0])
    model = seeded(lambda: Outputs(make, 1))
    plain, up, down = (effects(model, ROWS, target, reference=50) for target in (None, 1, 0))
    wanted = by_hand(lambda x: model(x).reshape(-1), ROWS)
    assert [plain["input", j] for j in range(4)] == pytest.approx(wanted, rel=1e-9)
    assert plain == up
    assert down == {key: -value for key, value in plain.items()}
    circuit = ng.search(model, ROWS, None, **QUIET)
    assert circuit.target == "output"
    assert circuit.provenance["target"] == {"name": "output", "index": None, "kind": "output"}
    lower = ng.search(model, ROWS, 0, **QUIET)
    assert lower.target == "-output (target 0 of a binary logit)"
    assert "target 0 is minus the output" in "".join(lower.provenance["notes"])
    assert "minus" not in notes(model, ROWS, None) + notes(model, ROWS, 1)


def test_of_several_outputs_one_must_be_chosen() -> None:
    for run in (ng.score, ng.response_curves, ng.strongest_paths):
        with pytest.raises(OptionError, match="the model has 2 outputs: pass target=, one of 0…1"):
            run(mlp(), ROWS, **QUIET)


# -- masks -----------------------------------------------------------------------------------------


class Text(nn.Module):
    """Reads a mask whose True means padding, as PyTorch's own layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(30, 8), nn.Linear(8, 2)
        self.t = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def read(self, ids: Tensor, padding: Tensor) -> Tensor:
        h, k = self.t(self.e(ids), src_key_padding_mask=padding), (~padding)[..., None]
        return self.o((h * k).sum(1) / k.sum(1))  # type: ignore[no-any-return]


class Inverted(Text):
    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.read(ids, attention_mask)


class Renamed(Text):
    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        return self.read(ids, padding)


class Plain(Text):
    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.read(ids, attention_mask == 0)


class Kept(Text):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.read(ids, ~mask)


IDS = torch.randint(1, 30, (60, 6), generator=torch.Generator().manual_seed(0))
PAD = torch.arange(6) >= torch.randint(2, 6, (60, 1), generator=torch.Generator().manual_seed(1))


def moved_at_tokens(model: nn.Module, data: tuple[Tensor, Tensor], layer: str) -> list[float]:
    """Effects of a layer's channels by a hook: at tokens alone, between quantiles over tokens."""
    module, seen = model.get_submodule(layer), []
    with torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        handle = module.register_forward_hook(lambda *a: seen.append(a[2].clone()))
        model(*data)
        handle.remove()
        (values,) = seen
        ends = np.quantile(values[~PAD].numpy(), (0.05, 0.95), axis=0)
        found = []
        for channel in range(values.shape[-1]):
            outputs = []
            for end in ends:
                changed = values.clone()
                changed[..., channel][~PAD] = float(end[channel])
                handle = module.register_forward_hook(lambda *_, new=changed: new)
                outputs.append(model(*data)[:, 1])
                handle.remove()
            found.append(float((outputs[1] - outputs[0]).mean()))
        torch.backends.mha.set_fastpath_enabled(True)
    return found


MASKED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "inverted": (Inverted, PAD, "'attention_mask' is not 0 where padding is"),
    "inverted, of numbers": (Renamed, PAD, "'padding' is not 0 where padding is"),
    "as it is": (Plain, (~PAD).long(), "'attention_mask' is read as a mask that is 0 where"),
    "another name": (Kept, ~PAD, "'mask' is read as a mask that is 0 where padding is"),
}


@pytest.mark.parametrize("kind", MASKED)
def test_a_mask_means_what_it_is_shown_to_mean(kind: str) -> None:
    make, mask, told = MASKED[kind]
    model = seeded(make)
    found = effects(model, ((IDS, mask), None), reference=60)
    for layer in ("e", "t.linear1", "t.linear2"):
        wanted = moved_at_tokens(model, (IDS, mask), layer)
        assert [found[layer, j] for j in range(len(wanted))] == pytest.approx(wanted, rel=1e-9)
        assert max(map(abs, wanted)) > 0.01
    said = notes(model, ((IDS, mask), None))
    assert told in said


def test_what_is_called_padding_but_moves_the_output_is_not_padding() -> None:
    class Mean(Text):
        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            h = self.e(ids)
            return self.o(h.sum(1) + 0 * attention_mask.sum(1, keepdim=True))  # type: ignore[no-any-return]

    model = seeded(Mean)
    found = effects(model, ((IDS, (~PAD).long()), None), reference=60)
    values = model.e(IDS).detach()
    low, high = values.quantile(torch.tensor([0.05, 0.95], dtype=values.dtype), dim=0)
    wanted = ((high - low).sum(0) * model.o.weight[1]).tolist()
    assert [found["e", j] for j in range(8)] == pytest.approx(wanted, rel=1e-9)
    said = notes(model, ((IDS, (~PAD).long()), None))
    assert "what 'attention_mask' calls padding moves the output" in said
    assert "no position is padding there" in said


class TwoSequences(nn.Module):
    """Tokens with a mask beside patches that are as many and have none."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.patches, self.o = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, text: Tensor, image: Tensor, attention_mask: Tensor) -> Tensor:
        there = attention_mask[..., None]
        words = (torch.tanh(self.words(text)) * there).sum(1) / there.sum(1)
        return self.o(words + torch.tanh(self.patches(image)).mean(1))  # type: ignore[no-any-return]


def test_a_mask_is_for_the_sequence_that_it_belongs_to() -> None:
    model = seeded(TwoSequences)
    draw = torch.Generator().manual_seed(0)
    text, image = (torch.randn(60, 6, n, generator=draw).double() for n in (3, 4))
    data = {"text": text, "image": image, "attention_mask": (~PAD).long()}
    found = effects(model, data, reference=60)
    wanted = by_hand(lambda x: model(text, x, ~PAD)[:, 1], image)
    assert [found["input.image", j] for j in range(4)] == pytest.approx(wanted, rel=1e-9)
    ends = np.quantile(text[~PAD].numpy(), (0.05, 0.95), axis=0)
    for j in range(3):
        low, high = (text.clone() for _ in ends)
        for moved, end in zip((low, high), ends, strict=True):
            moved[..., j][~PAD] = float(end[j])
        up, down = (model(x, image, ~PAD)[:, 1] for x in (high, low))
        assert found["input.text", j] == pytest.approx((up - down).mean().item(), rel=1e-9)
    said = notes(model, data)
    assert "in the layers input.image, patches: no position is padding there" in said


def test_a_difference_of_logits_is_read_at_the_last_token_whichever_way_the_mask_is() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Embedding(30, 5), nn.Linear(5, 7)

        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.o(self.e(ids).cumsum(1))  # type: ignore[no-any-return]

    class Other(Words):
        def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(ids, attention_mask == 0)

    target = ng.logit_difference(4, 1)
    plain, other = (
        effects(seeded(make), {"ids": IDS, "attention_mask": mask}, target)
        for make, mask in ((Words, (~PAD).long()), (Other, PAD.long()))
    )
    assert plain == pytest.approx(other, rel=1e-9)
    assert plain["e", 0] != 0


# -- attached circuits -----------------------------------------------------------------------------


def top(output: Tensor, _batch: Any) -> Tensor:
    return output[:, 1]


def bottom(output: Tensor, _batch: Any) -> Tensor:
    return output[:, 0]


def test_a_circuit_is_attached_with_the_target_that_it_was_found_with() -> None:
    model = mlp()
    circuit = ng.search(model, ROWS, top, **QUIET)
    again = circuit.attach(model, ROWS, target=top)
    assert again.measure(circuit.strongest) == list(circuit.strongest)
    path = max((p for p in circuit.strongest if p.effect > 0), key=lambda p: p.effect)
    with pytest.raises(
        OptionError, match=r"the effect of .* was measured as .* and is .* now"
    ) as told:
        circuit.attach(model, ROWS, target=bottom)
    assert " → ".join(map(str, path.names)) in str(told.value)
    assert f"{path.effect:+.4g}" in str(told.value)


def test_an_index_a_name_and_none_agree_with_what_is_stored() -> None:
    names = ["stay", "leave"]
    circuit = ng.search(mlp(), ROWS, "leave", class_names=names, **QUIET)
    for given in ({}, {"target": 1}, {"target": "leave"}, {"target": np.int64(1)}):
        assert circuit.attach(mlp(), ROWS, **given).measure(circuit.strongest[:1])
    with pytest.raises(OptionError, match="the circuit explains 'leave', target= says 'stay'"):
        circuit.attach(mlp(), ROWS, target=0)
    one = mlp(outputs=1)
    whole = ng.search(one, ROWS, None, **QUIET)
    assert whole.attach(one, ROWS).measure(whole.strongest) == list(whole.strongest)
    with pytest.raises(OptionError, match=r"was measured as|the circuit explains"):
        whole.attach(one, ROWS, target=0)


# -- little data -----------------------------------------------------------------------------------


def test_one_reference_sample_has_no_errors_and_it_is_said() -> None:
    scores = ng.score(mlp(), ROWS, 1, reference=1, **EXACT)
    assert scores.table["stderr"].isna().all()
    assert scores.table["effect"].abs().max() > 0
    assert "one reference sample: effects have no standard error" in repr(scores)


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("contrast", ["quantiles", "mean", "resample"])
def test_data_that_do_not_vary_are_told(count: int, contrast: str) -> None:
    data = ROWS[:1].repeat(count, 1)
    if count == 1 and contrast == "resample":
        with pytest.raises((OptionError, DataError)):
            ng.search(mlp(), data, 1, contrast=contrast, **QUIET)
        return
    circuit = ng.search(mlp(), data, 1, contrast=contrast, **QUIET)
    said = "\n".join(circuit.provenance["notes"])
    assert "no neuron of layer 'input' moves: its values are the same at both ends" in said
    assert not circuit.strongest
    assert ("one reference sample" in said) == (count == 1)


def test_one_class_cannot_be_separated() -> None:
    for labels in (np.zeros(50), ["yes"] * 50):
        with pytest.raises(DataError, match=r"all labels are .*at least 2 classes"):
            ng.separation(mlp(), (ROWS, labels))


# -- words as labels and the order of the outputs --------------------------------------------------


def by_first(batch: Any) -> torch.Tensor:
    return (batch.args[0][:, 0] > 0.5).long()


@pytest.mark.parametrize("kind", ["pair", "given"])
def test_words_are_numbered_in_the_order_of_the_class_names(kind: str) -> None:
    x = torch.rand(80, 2, generator=torch.Generator().manual_seed(0))
    words = np.where(x[:, 0] > 0.5, "young", "old")
    model = nn.Linear(2, 2)
    names = ["young", "old"]  # the other way round than sorted
    data, labels = ((x, words), True) if kind == "pair" else (x, words)
    table = ng.separation(model, data, labels, class_names=names, progress=False)
    means = {"young": x[words == "young"].mean(0), "old": x[words == "old"].mean(0)}
    with torch.no_grad():
        wanted = {name: float(model(mean)[0]) for name, mean in means.items()}
    for row in table[(table["layer"] == "output") | (table["index"] == 0)].itertuples():
        if row.layer != "input":
            at = table.loc[row.Index]
            assert at["mean"] == pytest.approx(wanted[at["class"]], rel=1e-4)
            assert at["mean_rest"] == pytest.approx(wanted[at["rest"]], rel=1e-4)

    def own(output: torch.Tensor, batch: Any) -> torch.Tensor:
        assert torch.equal(batch.labels, 1 - by_first(batch))  # young is output 0
        return output.gather(1, batch.labels[:, None])[:, 0]

    if kind == "pair":
        ng.score(model, data, own, class_names=names, scorer="exact", progress=False)


def test_words_that_are_no_class_names_are_named() -> None:
    x, words = torch.rand(20, 2), np.array(["young", "old"] * 10)
    with pytest.raises(DataError, match="labels hold 'old', which is none of class_names"):
        ng.search(nn.Linear(2, 2), (x, words), 1, class_names=["a", "b"], progress=False)
    with pytest.raises(DataError, match="labels hold 'old', which is none of class_names"):
        ng.separation(nn.Linear(2, 2), x, words, class_names=["a", "b"], progress=False)


def test_a_profile_of_other_weights_is_refused() -> None:
    x = torch.rand(30, 2)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    profiled = ng.profile(model, x)
    ng.search(model, x, 1, profile=profiled, progress=False)
    with torch.no_grad():
        model[0].weight.mul_(3)
    with pytest.raises(OptionError, match="made of another model, or of other weights"):
        ng.search(model, x, 1, profile=profiled, progress=False)


def test_a_list_of_inputs_and_labels_is_told_from_batches() -> None:
    x, y = torch.rand(30, 3), torch.arange(30) % 2
    with pytest.raises(DataError, match=r"\(X, y\)"):
        ng.search(nn.Linear(3, 2), [x, y], 1, progress=False)


# -- what numbers may look like --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [">f8", "longdouble"])
def test_numbers_in_other_bytes_are_the_same_numbers(kind: str) -> None:
    torch.manual_seed(0)
    model, X = nn.Linear(3, 2).double(), np.random.default_rng(0).normal(size=(20, 3))
    found = [
        ng.score(model, data, 1, reference=20, progress=False).table["effect"].tolist()
        for data in (X, X.astype(kind))
    ]
    assert found[0] == found[1]


def test_what_has_no_value_or_is_not_real_is_told() -> None:
    model, X = nn.Linear(3, 2), np.random.default_rng(0).normal(size=(20, 3))
    masked = np.ma.masked_less(X, 0)
    for data, told in (
        (masked, "masked at position"),
        ((X, np.ma.masked_less((X[:, 0] > 0).astype(int), 1)), "masked at position"),
        (torch.from_numpy(X).to_sparse(), "to_dense"),
        (torch.from_numpy(X).to("meta"), "meta device"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.quint8), "dequantize"),
        (pd.DataFrame(X.astype(complex), columns=list("abc")), "'a' .complex128."),
    ):
        with pytest.raises(DataError, match=told):
            ng.score(model, data, 1, progress=False)


def test_an_additive_mask_is_named() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (self.one(x) * (mask == 0)[..., None]).sum(1)

    mask = torch.zeros(20, 4).index_fill(1, torch.tensor([3]), -torch.inf)
    with pytest.raises(DataError, match=r"input 'mask' is a mask that adds -infinity"):
        ng.score(Masked(), {"x": torch.rand(20, 4, 3), "mask": mask}, 1, progress=False)
    X = torch.rand(20, 4, 3)
    X[0, 1, 2] = torch.nan
    with pytest.raises(DataError, match=r"of input 'x' at position \[0, 1, 2\]"):
        ng.score(Masked(), {"x": X, "mask": torch.zeros(20, 4)}, 1, progress=False)


def test_a_target_of_what_is_true_is_a_share_and_a_complex_one_is_refused() -> None:
    torch.manual_seed(0)
    model, X = nn.Linear(3, 2), torch.randn(40, 3)
    table = ng.score(model, X, lambda o, _: o[:, 1] > 0, reference=40, progress=False).table
    ends = X.quantile(torch.tensor([0.05, 0.95]), dim=0)
    for index in range(3):
        at = torch.tensor([index])
        low, high = (model(X.index_fill(1, at, float(end))) for end in ends[:, index])
        wanted = ((high[:, 1] > 0).float() - (low[:, 1] > 0).float()).mean().item()
        here = table[(table["layer"] == "input") & (table["index"] == index)]
        assert here["effect"].item() == pytest.approx(wanted)
    assert table["effect"].abs().max() > 0.1
    with pytest.raises(OptionError, match="complex"):
        ng.score(model, X, lambda o, _: o[:, 0].to(torch.complex64), progress=False)


class Noisy(Dataset[Any]):
    """Rows with noise of its own kind on them, drawn anew each time one is read."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, i: int) -> Tensor:
        return ROWS[i] + float(self.draw())


NOISE: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.randn(()),
    "random": random.random,
    "numpy": np.random.random,
}


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("shuffle", [False, True])
def test_data_drawn_at_random_are_the_same_each_time_and_no_generator_moves(
    kind: str, shuffle: bool
) -> None:
    model, own = mlp(), torch.Generator().manual_seed(3)
    loader = DataLoader(Noisy(NOISE[kind]), 16, shuffle=shuffle, generator=own if shuffle else None)
    torch.manual_seed(1)
    states = [torch.get_rng_state(), own.get_state()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    source = Source(loader, model)
    once, again = (concatenate(list(source)).args[0] for _ in range(2))
    assert torch.equal(once, again)
    assert (once.sum(1).sort().values != ROWS.sum(1).sort().values).any()
    first, second = (effects(model, loader, reference=20) for _ in range(2))
    assert first == second
    assert all(map(torch.equal, states, (torch.get_rng_state(), own.get_state())))
    assert random.getstate() == python
    assert all(map(np.array_equal, np.random.get_state(), numpy))  # noqa: NPY002
    if kind == "torch":  # the caller's seed still says what is drawn
        torch.manual_seed(2)
        assert effects(model, loader, reference=20) != first


def test_data_that_are_others_each_time_are_told() -> None:
    own = np.random.default_rng(0)
    circuit = ng.search(mlp(), Noisy(own.normal), 1, **QUIET)
    assert any("others each time they are read" in note for note in circuit.notes)
    plain = ng.search(mlp(), Noisy(lambda: 0.0), 1, **QUIET)
    assert not any("others each time" in note for note in plain.notes)


class Own(IterableDataset[Any]):
    """Rows in an order of its own each time."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(ROWS[torch.from_numpy(self.generator.permutation(len(ROWS)))])


def test_labels_beside_data_of_no_order_are_refused() -> None:
    with pytest.raises(DataError, match=r"cannot be matched.*IterableDataset"):
        ng.separation(mlp(), Own(), labels=(ROWS[:, 0] > 0).long().tolist(), progress=False)


@pytest.mark.parametrize("lengths", [[5, 2, *[3] * 21, 2], [*[3] * 22, 2, 4], [4, 2] * 12])
def test_steps_packed_inside_forward_are_right_whatever_their_number(lengths: list[int]) -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.rnn, self.two = nn.Linear(3, 4), nn.GRU(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            h = self.one(x)
            packed = pack_padded_sequence(h, n.cpu(), batch_first=True, enforce_sorted=False)
            return self.two(self.rnn(packed)[1][0])

    model, n = seeded(Packs), torch.tensor(lengths)
    X = torch.randn(len(n), 5, 3, generator=torch.Generator().manual_seed(5)).double()
    found = effects(model, {"x": X, "n": n}, contrast="zero", reference=len(n))
    for j in range(4):
        handle = model.one.register_forward_hook(
            lambda _m, _a, out, j=j: out.index_fill(2, torch.tensor([j]), 0.0)
        )
        with torch.no_grad():
            without = model(X, n)[:, 1]
            handle.remove()
            wanted = float((model(X, n)[:, 1] - without).mean())
        assert found["one", j] == pytest.approx(wanted, rel=1e-9, abs=1e-12)
