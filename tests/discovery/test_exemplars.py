"""Exemplars: beside what a forward hook sees, sorted by numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import neurograph as ng
from neurograph.activations.extremes import Extremes
from neurograph.discovery.exemplars import Exemplars
from neurograph.errors import DataError, OptionError
from neurograph.model.layers import Neuron


def seen(model: nn.Module, layer: str, *inputs: Tensor) -> NDArray[Any]:
    """What a hook sees of a layer."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).detach())

    handle = model.get_submodule(layer).register_forward_hook(keep)
    with torch.no_grad():
        model(*inputs)
    handle.remove()
    return found[0].numpy()


def wanted(high: NDArray[Any], low: NDArray[Any], count: int) -> list[tuple[str, int, float]]:
    """Ends, samples and values of one neuron, from its extremes in every sample."""
    numbers = np.arange(len(high))
    up, down = np.lexsort((numbers, -high))[:count], np.lexsort((numbers, low))[:count]
    return [
        *(("highest", int(i), float(high[i])) for i in up),
        *(("lowest", int(i), float(low[i])) for i in down),
    ]


def listed(table: pd.DataFrame) -> list[tuple[str, int, float]]:
    assert all(
        rows["rank"].tolist() == [*range(1, len(rows) + 1)] for _, rows in table.groupby("end")
    )
    return [(row.end, row.sample, row.value) for row in table.itertuples()]


def same(found: list[tuple[str, int, float]], known: list[tuple[str, int, float]]) -> None:
    assert [one[:2] for one in found] == [one[:2] for one in known]
    np.testing.assert_allclose([x[2] for x in found], [x[2] for x in known], rtol=1e-5)


def drawn(samples: int) -> list[int]:
    """The random few over which features are correlated."""
    extremes = Extremes(1, 1, reservoir=512)
    extremes.update(torch.zeros(samples, 1), torch.zeros(samples, 1), 0)
    found: list[int] = extremes.drawn[0].tolist()
    return found


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 6, batch_first=True)
        self.out = nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.lstm(self.embedding(input_ids))[0]
        if attention_mask is None:
            return self.out(states[:, -1])  # type: ignore[no-any-return]
        last = attention_mask.sum(1) - 1
        return self.out(states[torch.arange(len(states)), last])  # type: ignore[no-any-return]


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))


ROWS = torch.randn(700, 5, generator=torch.Generator().manual_seed(1))


def test_the_rows_of_a_table_in_which_neurons_are_highest_and_lowest() -> None:
    model, names = perceptron(), list("abcde")
    frame = pd.DataFrame(ROWS.numpy(), columns=names)
    labels = np.arange(700) % 2
    study = ng.Study(model, (frame, labels), 1, class_names=["no", "yes"], progress=False)
    found = study.exemplars(count=4, between=0)
    values = seen(model, "0", ROWS)
    for index in range(4):
        own = found.of(("0", index))
        same(listed(own), wanted(values[:, index], values[:, index], 4))
        assert own["label"].tolist() == [["no", "yes"][i % 2] for i in own["sample"]]
        assert own["place"].isna().all()
        for row in own.itertuples():
            away = (ROWS[row.sample] - ROWS.mean(0)) / ROWS.std(0)
            some = drawn(700)
            both = np.corrcoef(ROWS[some].numpy().T, values[some, index])
            pushes = away * torch.from_numpy(both[-1, :-1])
            pushes = pushes if row.end == "highest" else -pushes
            order = pushes.argsort(descending=True)[:3].tolist()
            shown = found.shown[Neuron("0", index), row.sample]
            assert [feature[0] for feature in shown.features] == [names[i] for i in order]
            for (_, value, z), i in zip(shown.features, order, strict=True):
                assert value == pytest.approx(float(ROWS[row.sample, i]), rel=1e-6)
                assert z == pytest.approx(float(away[i]), rel=1e-5)
            np.testing.assert_array_equal(shown.inputs["input"], ROWS[row.sample].numpy())
    first = found.of(("0", 0)).iloc[0]
    assert f"0[0]\n  highest: {first['value']:.3g} in sample {first['sample']}" in repr(found)
    json.dumps(found.provenance)


def test_labels_of_several_numbers_are_no_classes_and_bfloat16_is_shown() -> None:
    model = perceptron().bfloat16()
    several = ng.Study(model, (ROWS.bfloat16(), torch.rand(700, 3)), 1, progress=False)
    found = several.exemplars(neurons="0", count=2)
    assert found.table["label"].isna().all()
    shown = found.shown[Neuron("0", 0), int(found.table["sample"][0])]
    np.testing.assert_array_equal(
        shown.inputs["input"], ROWS[found.table["sample"][0]].bfloat16().float().numpy()
    )
    data = {"input_ids": torch.randint(20, (9, 4))}
    study = ng.Study(Sentences(), data, 1, tokenizer=lambda i: 1 / 0, progress=False)  # type: ignore[arg-type, return-value]
    with pytest.raises(OptionError, match="tokenizer raised ZeroDivisionError for the token"):
        study.exemplars(neurons="lstm")


def test_those_between_are_spread_evenly_by_rank() -> None:
    data = ROWS[:400]  # all of them are kept
    model = perceptron()
    found = ng.Study(model, data, 1, progress=False).exemplars(neurons=("0", 2), between=3)
    values = seen(model, "0", data)[:, 2]
    order = np.argsort(-values)
    own = found.of(("0", 2))
    assert own[own["end"] == "between"]["sample"].tolist() == order[[100, 200, 300]].tolist()


@pytest.mark.parametrize("size", [1, 7, 300, 700])
def test_batches_make_no_difference(size: int) -> None:
    batches = DataLoader(TensorDataset(ROWS), batch_size=size)
    whole = ng.Study(perceptron(), ROWS, 1, progress=False).exemplars(between=2)
    cut = ng.Study(perceptron(), [x for (x,) in batches], 1, progress=False).exemplars(between=2)
    same(listed_all(cut), listed_all(whole))


def listed_all(found: Exemplars) -> list[tuple[str, int, float]]:
    return [(row.end, row.sample, row.value) for row in found.table.itertuples()]


def test_maps_are_shown_where_they_peak() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 2))
    images = torch.rand(40, 1, 7, 7)
    found = ng.Study(model, images, 1, progress=False).exemplars(neurons="0", count=2, between=0)
    maps = seen(model, "0", images)
    for index in range(3):
        own = found.of(("0", index))
        flat = maps[:, index].reshape(40, -1)
        same(listed(own), wanted(flat.max(1), flat.min(1), 2))
        for row in own.itertuples():
            assert maps[row.sample, index][row.place] == pytest.approx(row.value, rel=1e-6)
            values = found.shown[Neuron("0", index), row.sample].values
            np.testing.assert_allclose(values, maps[row.sample, index], rtol=1e-5)


def test_tokens_are_snippets_and_padding_is_never_a_place() -> None:
    torch.manual_seed(0)
    model, ids = Sentences(), torch.randint(20, (30, 9))
    mask = (torch.arange(9) < torch.randint(3, 10, (30, 1))).long()
    data = {"input_ids": ids, "attention_mask": mask}
    study = ng.Study(model, data, 1, tokenizer=lambda i: chr(97 + i), progress=False)
    found = study.exemplars(neurons="lstm", count=2, between=0)
    states = seen(model, "lstm", ids, mask)
    there = mask.bool().numpy()
    for index in range(6):
        own = states[..., index]
        high, low = (np.where(there, own, fill) for fill in (-np.inf, np.inf))
        rows = found.of(("lstm", index))
        same(listed(rows), wanted(high.max(1), low.min(1), 2))
        for row in rows.itertuples():
            (place,) = row.place
            assert there[row.sample, place]
            assert f"«{chr(97 + int(ids[row.sample, place]))}»" in row.shows


@pytest.mark.parametrize(("positions", "place"), [("last", 8), (3, 3), ("each", 5)])
def test_neurons_of_positions_are_read_there(positions: Any, place: int) -> None:
    torch.manual_seed(0)
    model, ids = Sentences(), torch.randint(20, (30, 9))
    study = ng.Study(model, ids, 1, positions=positions, progress=False)
    neuron = ("lstm", 2, place) if positions == "each" else ("lstm", 2)
    own = study.exemplars(neurons=[neuron], count=2, between=0).of(neuron)
    values = seen(model, "lstm", ids)[:, place, 2]
    same(listed(own), wanted(values, values, 2))
    assert set(own["place"]) == {(place,)}


def test_neurons_of_several_channels_and_of_directions() -> None:
    model, turn = perceptron(), torch.linalg.qr(torch.randn(4, 4))[0][:2]
    based = ng.Study(model, ROWS, 1, basis={"0": turn}, progress=False)
    grouped = ng.Study(model, ROWS, 1, groups={"0": [[0, 3], [1, 2]]}, progress=False)
    values = seen(model, "0", ROWS)
    along = values @ turn.numpy().T
    rest = np.linalg.norm(values - along @ turn.numpy(), axis=1)
    means = values[:, [[0, 3], [1, 2]]].mean(2)
    for study, known in ((based, np.c_[along, rest]), (grouped, means)):
        found = study.exemplars(neurons="0", count=2, between=0)
        for index in range(known.shape[1]):
            same(listed(found.of(("0", index))), wanted(known[:, index], known[:, index], 2))


def test_of_equal_values_the_first_samples() -> None:
    constant = torch.ones(6, 5)
    found = ng.Study(perceptron(), constant, 1, progress=False).exemplars(neurons=("0", 0), count=2)
    assert found.table["sample"].tolist() == [0, 1, 3]  # none twice for the same value


def test_extremes_merge_as_one_stream() -> None:
    values = torch.randint(9, (50, 3), generator=torch.Generator().manual_seed(0)).double()
    whole = Extremes(3, 4, reservoir=60)
    whole.update(values, values, 0)
    parts = [Extremes(3, 4, reservoir=60, stream=i) for i in range(2)]
    parts[1].update(values[20:], values[20:], 20)
    parts[0].update(values[:20], values[:20], 0)
    parts[1].merge_state(parts[0])
    for neuron in range(3):
        assert parts[1].highest(neuron) == whole.highest(neuron)
        assert parts[1].lowest(neuron) == whole.lowest(neuron)
        assert parts[1].between(neuron, 4) == whole.between(neuron, 4)
    with pytest.raises(OptionError, match="another count"):
        whole.merge_state(Extremes(3, 5, reservoir=60))


def test_data_that_cannot_be_read_again_are_refused() -> None:
    shuffled = DataLoader(TensorDataset(ROWS), batch_size=64, shuffle=True)
    study = ng.Study(perceptron(), shuffled, 1, progress=False)
    with pytest.raises(DataError, match="shuffle"):
        study.exemplars()
    study = ng.Study(perceptron(), ROWS, 1, memory=2000, progress=False)
    with pytest.raises(OptionError, match="memory="):
        study.exemplars(count=60)
    with pytest.raises(OptionError, match="count=0"):
        study.exemplars(count=0)
    with pytest.raises(OptionError, match=r"no exemplars of \('0', 9\)"):
        study.exemplars(neurons=("0", 1), count=1).of(("0", 9))


def test_a_circuit_is_explained_by_exemplars_and_composition_where_its_study_is_at_hand() -> None:
    study = ng.Study(perceptron(), ROWS, 1, basis={"0": torch.eye(4)[:2]}, progress=False)
    circuit = study.search(keep="top:3")
    own = study.exemplars(neurons=("0", 0), count=2).of(("0", 0))
    text = circuit.explain(("0", 0), exemplars=2)
    assert "made of: 0[0] 100%" in text
    assert all(f"in sample {sample}" in text for sample in own["sample"])
    assert "in sample" not in circuit.explain(("0", 0))
    with pytest.raises(OptionError, match="attach"):
        circuit.detach().explain(("0", 0), exemplars=2)


def test_composition_is_what_the_channels_change_by() -> None:
    rows = torch.tensor([[3.0, 0.0, -4.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    study = ng.Study(perceptron(), ROWS, 1, basis={"0": rows}, progress=False)
    table = study.composition("0")
    assert table["channel"].tolist() == [2, 0, 1]
    assert table["weight"].tolist() == [-4.0, 3.0, 1.0]
    np.testing.assert_allclose(table["share"], [0.64, 0.36, 1.0])
    families = ng.Families([{0: 1, 2: -1}, {1: 1}, {3: 1}])
    made = ng.Study(perceptron(), ROWS, 1, basis={"0": families}, progress=False).composition("0")
    assert made["weight"].tolist() == [1.0, -1.0, 1.0, 1.0]
    for layer in ("2", "nowhere"):
        with pytest.raises(OptionError, match="has no basis"):
            study.composition(layer)


def test_of_two_sentences_none_is_shown_as_the_one_that_a_layer_reads() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(9, 4), nn.Linear(4, 1)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            both = self.embedding(first).mean(1) - self.embedding(second).mean(1)
            return self.out(both)  # type: ignore[no-any-return]

    ids = torch.randint(9, (20, 5))
    study = ng.Study(Pair(), {"first": ids, "second": ids.flip(0)}, None, progress=False)
    found = study.exemplars(neurons=["embedding", "embedding#1"], count=1)
    assert set(found.table["shows"]) == {""}
