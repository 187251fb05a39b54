"""Signals of layers: shares beside hooks alone, and where they are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.data.source import Batch
from neurograph.errors import OptionError
from neurograph.model.clusters import Clusters
from neurograph.model.directions import Active, Attributed, Principal
from tests import zoo
from tests.case import as_data

F64 = torch.float64
X = torch.randn(90, 4, generator=torch.Generator().manual_seed(3), dtype=F64)


def perceptron(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2)
    ).double()


@pytest.mark.parametrize("kind", [Active, Principal])
@pytest.mark.parametrize("name", ["perceptron", "resnet", "gpt2"])
def test_shares_are_those_of_hooks(name: str, kind: type[Active]) -> None:
    """The layer passes on its mean over all data, but for the first directions."""
    if name == "perceptron":
        model, data, target, layer = perceptron(), X, 1, "2"
    else:
        network = zoo.WHOLE[name](0)
        model, data, target = network.model, as_data(network.inputs(40, 1)), network.target
        layer = {"resnet": "stage1.0.conv1", "gpt2": "transformer.h.0.mlp.c_fc"}[name]
    study = ng.Study(model, data, target, reference=10, progress=False)
    signals = study.signals(counts=(1, 2), samples=20, draws=2)
    own = (signals.table["layer"] == layer) & (signals.table["parts"] == kind.__name__.lower())
    table = signals.table[own]
    basis = study.find_basis(layer, kind(2, 20))
    dim = 1 if name == "resnet" else -1
    seen: list[Tensor] = []

    def run(rows: Tensor, hook: Any) -> Tensor:
        handle = model.get_submodule(layer).register_forward_hook(hook)
        with torch.no_grad():
            output = model(rows)
        handle.remove()
        return study.target(output, lambda: Batch((rows,), {})).double()

    run(data, lambda _m, _a, out: seen.append(out.detach()))
    mean = seen[0].mean(0)
    rows = data[study.provenance["data"]["reference"]]
    whole = run(rows, lambda _m, _a, out: out)
    for count, share in zip(table["count"], table["share"], strict=True):

        def keep(_m: Any, _a: Any, out: Tensor, count: int = count) -> Tensor:
            own = (out - mean).movedim(dim, -1).double()
            z = own @ basis.reading[:, :count] @ basis.writing[:count]
            return mean + z.movedim(-1, dim).to(out)

        change = run(rows, keep) - whole
        wanted = 1 - (change.square().mean() / whole.var(correction=0)).item()
        assert share == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_one_signal_is_found_and_random_directions_pass_little() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    signals = ng.Study(model, X, None, reference=40, progress=False).signals(counts=(1, 2))
    first = signals.table.query("layer == '0'").set_index(["parts", "count"])
    assert first.loc[("active", 1), "share"] == pytest.approx(1, abs=1e-9)
    assert first.loc[("random", 1), "share"] < 0.5
    assert (first["low"] <= first["share"]).all()
    needed = signals.needed(0.99)
    assert needed.loc["0", "active"] == 1
    assert np.isnan(needed.loc["0", "random"])
    assert "  0: 1 active, " in repr(signals)


@pytest.mark.parametrize("kind", [Active, Attributed])
def test_all_layers_at_once_beside_hooks(kind: type[Active]) -> None:
    model = perceptron()
    study = ng.Study(model, X, 1, reference=12, progress=False)
    signals = study.signals(counts=(1, 3), samples=30, draws=2)
    name = "active" if kind is Active else "neurons"
    table = signals.table.query(f"layer == 'all layers' and parts == '{name}'")
    bases = {layer: study.find_basis(layer, kind(3, 30)) for layer in "02"}
    means: dict[str, Tensor] = {}

    def run(rows: Tensor, change: Any) -> Tensor:
        handles = [
            model.get_submodule(layer).register_forward_hook(
                lambda _m, _a, out, layer=layer: change(layer, out)
            )
            for layer in bases
        ]
        with torch.no_grad():
            output: Tensor = model(rows)[:, 1]
        for handle in handles:
            handle.remove()
        return output

    run(X, lambda layer, out: means.__setitem__(layer, out.mean(0)))
    rows = X[study.provenance["data"]["reference"]]
    whole = run(rows, lambda _layer, out: out)
    for count, share in zip(table["count"], table["share"], strict=True):

        def keep(layer: str, out: Tensor, count: int = count) -> Tensor:
            basis, mean = bases[layer], means[layer]
            return mean + (out - mean) @ basis.reading[:, :count] @ basis.writing[:count]

        wanted = 1 - ((run(rows, keep) - whole).square().mean() / whole.var(correction=0)).item()
        assert share == pytest.approx(wanted, rel=1e-6)


def test_where_nothing_passes_the_layer_says_its_mean_beside_hooks() -> None:
    model = perceptron()
    study = ng.Study(model, X, 1, reference=12, progress=False)
    table = study.signals(parts=("active", "random"), counts=(1,), samples=30, draws=2).table
    rows = X[list(study.provenance["data"]["reference"])]
    whole = model(rows)[:, 1].detach()
    mean = model[0](X).detach().mean(0)
    gone = (model[1:](mean)[1].detach() - whole).square().mean() / whole.var(correction=0)
    (own,) = table.query("layer == '0' and parts == 'none'").itertuples()
    assert (own[3], own.share) == (0, pytest.approx(1 - gone.item(), rel=1e-9))


def test_families_pass_whole_beside_hooks() -> None:
    model = perceptron()
    study = ng.Study(model, X, 1, reference=12, progress=False)
    kinds: Any = ("families", "random families")
    signals = study.signals(parts=kinds, counts=(1, 3), samples=30, draws=2)
    families = study.find_basis("0", Clusters(7, 30), fewer=True)
    hidden = model[0](X).detach()
    mean, rows = hidden.mean(0), hidden[list(study.provenance["data"]["reference"])]

    def read(x: Tensor) -> Tensor:
        return model[1:](x)[:, 1].detach()

    for count in (1, 3):
        kept = [channel for unit in families.units[:count] for channel in unit]
        passed = mean.expand(len(rows), -1).clone()
        passed[:, kept] = rows[:, kept]
        gone = (read(passed) - read(rows)).square().mean() / read(rows).var(correction=0)
        own = signals.table.query(f"layer == '0' and parts == 'families' and count == {count}")
        assert own["share"].item() == pytest.approx(1 - gone.item(), rel=1e-6)


def test_where_families_gain_nothing_over_random_ones_directions_are_offered() -> None:
    """One signal that all channels carry alike: any of them will do."""
    model = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].expand(40, -1))
        model[1].weight.fill_(1.0)
    signals = ng.Study(model, X, None, reference=40, progress=False).signals(draws=2)
    assert "families of '0' bring 80% back no sooner than random ones" in repr(signals)
    assert "basis=Active(k)" in repr(signals)


def test_parts_are_found_on_other_samples_where_enough_are_left() -> None:
    def samples(size: int, reference: int, wanted: int) -> tuple[set[int], set[int], list[str]]:
        study = ng.Study(perceptron(), X[:size], 1, reference=reference, progress=False)
        there = study.where_found(wanted).provenance["data"]["reference"]
        return set(study.provenance["data"]["reference"]), set(there), list(study.notes)

    reference, found, notes = samples(90, 40, 30)
    assert (len(reference), len(found), reference & found) == (40, 30, set())
    assert not any("directions were found" in note for note in notes)
    reference, found, notes = samples(90, 40, 512)  # as many as are left
    assert (found, len(found)) == ({*range(90)} - reference, 50)
    reference, found, notes = samples(90, 80, 30)
    assert len(found) == 30
    assert any("among which the 80 reference samples are" in note for note in notes)


def test_what_does_not_hold_on_others_is_told() -> None:
    """A linear model of noise: of few samples, principal directions fit these best."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 1)).double()
    rows = torch.randn(400, 60, generator=torch.Generator().manual_seed(0), dtype=F64)
    study = ng.Study(model, rows, None, reference=300, progress=False)
    table = study.signals(parts=("principal", "random"), counts=(8,), samples=20, draws=2).table
    own = table.query("layer == '0'").set_index("parts")
    assert own.loc["principal", "found_on"] > own.loc["principal", "high"]
    assert np.isnan(own.loc["random", "found_on"])


def test_intervals_of_found_directions_cover_what_all_samples_say() -> None:
    model = perceptron(1)
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0), dtype=F64)

    def active(reference: Any) -> Any:
        study = ng.Study(model, rows, 1, reference=reference, progress=False)
        table = study.signals(counts=(1,), samples=500, draws=2).table
        return table.query("layer == '2' and parts == 'active'").iloc[0]

    share = active(rows)["share"]
    some = [active(rows[start : start + 100]) for start in range(0, 1000, 100)]
    assert sum(one["low"] <= share <= one["high"] for one in some) >= 8


def test_no_more_directions_than_there_are() -> None:
    table = ng.Study(perceptron(), X, 1, progress=False).signals(counts=(2, 4, 5, 50)).table
    counts = table.groupby(["layer", "parts"])["count"].max()
    assert counts["0", "principal"] == 4  # of four inputs
    assert counts["0", "random"] == 7  # as many as there are, last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": ()}, r"counts=\(\) must be ascending"),
        ({"counts": (2, 1)}, "ascending"),
        ({"counts": (0,)}, "counts=0 must be 1 or more"),
        ({"parts": ()}, "pass some of active"),
        ({"parts": ("active", "heads")}, "parts='heads'"),
        ({"draws": 1}, "draws=1 must be 2 or more"),
        ({"count": 3}, "count= is no option of signals: did you mean counts"),
    ],
)
def test_options_that_mean_nothing_are_told(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ng.Study(perceptron(), X, 1, progress=False).signals(**options)


def test_what_has_no_signals_is_told() -> None:
    with pytest.raises(OptionError, match="signals are those of channels"):
        ng.Study(perceptron(), X, 1, basis={"0": Active(1)}, progress=False).signals()
    with pytest.raises(OptionError, match="no hidden layers"):
        ng.Study(nn.Linear(4, 1).double(), X, None, progress=False).signals()
    signals = ng.Study(perceptron(), X, lambda o, _: o[:, 0] * 0, progress=False).signals(
        counts=(1,)
    )
    assert signals.table["share"].isna().all()  # what never varies cannot come back
    with pytest.raises(OptionError, match="share"):
        signals.needed(1.5)


def test_signals_of_all_outputs() -> None:
    """Three outputs that read a direction each: one suffices for one of them, three for all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3)).double()
    study = ng.Study(model, X, 2, reference=40, progress=False)
    alone = study.signals(parts=("active",), counts=(1, 2, 3), samples=40, draws=2).table
    alone = alone[alone["parts"] == "active"]
    assert alone["share"].tolist() == pytest.approx([1.0])  # there is no second one
    whole = study.signals(of="outputs", parts=("active",), counts=(1, 2, 3), samples=40).table
    whole = whole[whole["parts"] == "active"]
    basis = study.find_basis("0", Active(3, 40, "outputs"))
    hidden = model[0](X).detach()
    rows, mean = hidden[list(study.provenance["data"]["reference"])], hidden.mean(0)
    spread = model[1](rows).var(0, correction=0).sum()
    for count, share in zip(whole["count"], whole["share"], strict=True):
        kept = mean + (rows - mean) @ basis.reading[:, :count] @ basis.writing[:count]
        gone = (model[1](kept) - model[1](rows)).square().mean(0).sum()
        assert share == pytest.approx(1 - (gone / spread).item(), rel=1e-9)
    assert whole["share"].iloc[2] == pytest.approx(1, abs=1e-9)
    assert whole["share"].iloc[0] < 0.95
    wide = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 200)).double()
    with pytest.raises(OptionError, match="at most 100"):
        ng.Study(wide, X, 1, progress=False).signals(of="outputs")
