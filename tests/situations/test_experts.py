"""Experts, layers whose rows are those that values choose: every number as plain hooks have it."""

from __future__ import annotations

import contextlib

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.errors import OptionError
from tests.situations.hooked import (
    SAMPLES,
    by_hooks,
    check,
    first,
    inputs,
    passing,
    scored,
    seeded,
    total,
    values,
)


class Experts(nn.Module):
    """Every sample goes to one expert, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(4, 4), nn.Linear(6, 2)
        self.experts = nn.ModuleList(self.expert() for _ in range(4))

    def expert(self) -> nn.Module:
        return nn.Linear(4, 6)

    def mixed(self, x: Tensor) -> Tensor:
        top, chosen = self.gate(x).softmax(-1).max(-1)
        out = x.new_zeros(len(x), 6)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                out[rows] = top[rows, None] * torch.relu(expert(x[rows]))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(x))


class Added(Experts):
    """Two experts for each sample, added up by index; those nobody chose are called too."""

    def expert(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6))

    def mixed(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = x.new_zeros(len(x), 6)
        for i, expert in enumerate(self.experts):
            rows, which = (chosen == i).nonzero(as_tuple=True)
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, which, None])
        return out


class Sorted(Experts):
    """Samples are sorted by their experts, and back."""

    def mixed(self, x: Tensor) -> Tensor:
        top, chosen = self.gate(x).softmax(-1).max(-1)
        order = chosen.argsort(stable=True)
        parts = x[order].split(chosen.bincount(minlength=4).tolist())
        done = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
        return torch.relu(torch.cat(done)[order.argsort()]) * top[:, None]


class Masked(Experts):
    """Booleans for indices."""

    def mixed(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        out = x.new_zeros(len(x), 6)
        for i, expert in enumerate(self.experts):
            out[chosen == i] = expert(x[chosen == i])
        return out


class Picky(Experts):
    """Experts choose the samples, always as many."""

    def mixed(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        out = x.new_zeros(len(x), 6)
        for i, expert in enumerate(self.experts):
            top, rows = scores[:, i].topk(max(1, len(x) // 4))
            out = out.index_add(0, rows, top[:, None] * expert(x[rows]))
        return out


class Ranked(Experts):
    """All first choices of an expert, then all second ones."""

    def mixed(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = x.new_zeros(len(x), 6)
        for i, expert in enumerate(self.experts):
            which, rows = (chosen == i).T.nonzero(as_tuple=True)
            out = out.index_add(0, rows, torch.tanh(expert(x[rows])) * weights[rows, which, None])
        return out


class Apart(Experts):
    """An expert is called for each sample by itself."""

    def mixed(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1).tolist()
        return torch.cat([self.experts[i](row[None]) for i, row in zip(chosen, x, strict=True)])


def chosen_by(model: nn.Module, args: tuple[Tensor, ...]) -> dict[str, int]:
    """Experts' layers that get any rows, and how many."""
    found: dict[str, int] = {}

    def note(name: str, output: Tensor) -> None:
        found.update({name: found.get(name, 0) + len(output)} if len(output) else {})

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if "experts." in name and isinstance(module, nn.Linear):
                hook = module.register_forward_hook(lambda m, a, o, name=name: note(name, o))
                stack.callback(hook.remove)
        model(*args)
    return found


@pytest.mark.parametrize(
    ("kind", "seed"),
    [(Experts, seed) for seed in range(6)]
    + [(kind, seed) for kind in (Added, Sorted, Masked, Picky, Ranked) for seed in range(2)],
)
def test_experts_give_right_numbers(kind: type[nn.Module], seed: int) -> None:
    model, args = seeded(kind, seed), inputs(4, seed=seed)
    experts = chosen_by(model, args)
    assert len(experts) > 1
    several = [name for name, rows in experts.items() if rows > 1]  # one is at all its quantiles
    found = check(model, args, ["input", "gate", *several, "head"])
    assert set(found) == {"input", "gate", "head", *experts}
    assert all(set(found[name].values()) == {0} for name in set(experts) - set(several))


def test_experts_that_are_called_several_times_are_glue() -> None:
    model, args = seeded(Apart), inputs(4)
    found = check(model, args, ["input", "gate", "head"])
    assert set(found) == {"input", "gate", "head"}
    circuit = ng.search(model, args[0], 1, progress=False, keep="top:2", reference=8)
    assert circuit.strongest
    assert any(note.startswith("glue") and "experts.0" in note for note in circuit.notes)


def test_experts_move_between_quantiles_of_all_their_rows() -> None:
    model, (x,) = seeded(Experts), inputs(4)
    some = x[:16]
    found = scored(model, (x,), reference=some)
    for name in chosen_by(model, (some,)):
        rows = values(model, (x,), name)
        ends = torch.stack([rows.quantile(q, dim=0) for q in (0.05, 0.95)])
        for i in range(6):
            wanted = total(model, (some,), name, i, ends[:, i], first)
            assert found[name][i] == pytest.approx(wanted, rel=1e-9, abs=1e-12)


class Tokens(Experts):
    """Tokens choose, in one flat tensor of all samples."""

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        return self.head(self.mixed(x.reshape(-1, width)).view(samples, length, 6).mean(1))


class RankedTokens(Tokens, Ranked):
    """Each token has two experts."""


class Turned(Experts):
    """All first tokens, then all second ones, and so on."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.transpose(0, 1).reshape(-1, x.shape[2])
        return self.head(self.mixed(flat).view(x.shape[1], len(x), 6).mean(0))


def tokens(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SAMPLES, 3, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Tokens, RankedTokens, Turned])
@pytest.mark.parametrize("seed", range(2))
def test_experts_of_tokens_give_right_numbers(kind: type[nn.Module], seed: int) -> None:
    model, x = seeded(kind, seed), tokens(seed)
    experts = chosen_by(model, (x,))
    assert len(experts) > 1
    found = check(model, (x,), [*experts, "head"])
    assert {name for name in found if "expert" in name} == set(experts)


class Residual(nn.Module):
    """Two mixtures on one stream: what is behind sees them by several ways."""

    def __init__(self, kind: type[Experts]) -> None:
        super().__init__()
        self.enter, self.first, self.second = nn.Linear(4, 6), kind(), kind()
        self.between, self.leave = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + self.first.mixed(torch.tanh(h[:, :4]))
        return self.leave(h + torch.tanh(self.second.mixed(self.between(h))))


@pytest.mark.parametrize("kind", [Added, Ranked])
def test_circuits_hold_neurons_of_experts(kind: type[Experts]) -> None:
    model, args = seeded(lambda: Residual(kind)), inputs(4)
    experts = chosen_by(model, args)
    assert {name.split(".")[0] for name in experts} == {"first", "second"}
    circuit = ng.search(
        model, args[0], 1, scorer="exact", keep="top:2", reference=SAMPLES, progress=False
    )
    kept = {neuron.layer for neuron in circuit.graph} & set(experts)
    assert {name.split(".")[0] for name in kept} == {"first", "second"}
    assert not any(circuit.graph.in_degree(n) for n in circuit.graph if n.layer in experts)
    assert any(circuit.graph.out_degree(n) for n in circuit.graph if n.layer in experts)
    for name in kept:
        wanted = by_hooks(model, args, name, first)
        assert dict(enumerate(circuit.scores[name]["total_effect"])) == pytest.approx(
            wanted, rel=1e-9, abs=1e-12
        )
    audit = circuit.audit(60)
    assert not audit.failed
    assert audit.largest < 1e-12
    assert kept <= set(audit.layers)
    assert audit.counts["node"] > len(kept)


@pytest.fixture(scope="module")
def exact_scores() -> dict[str, dict]:
    return scored(seeded(lambda: Residual(Added)), inputs(4))


@pytest.mark.parametrize("scorer", ["gradient", "integrated", "hybrid", "auto"])
def test_experts_are_measured_whatever_the_scorer(
    scorer: str, exact_scores: dict[str, dict]
) -> None:
    model, args = seeded(lambda: Residual(Added)), inputs(4)
    exact, found = exact_scores, scored(model, args, scorer=scorer)
    for name in chosen_by(model, args):
        if scorer == "hybrid":  # it measures what readers see of it, and estimates the rest
            assert list(found[name]) == sorted(found[name], key=lambda i: -abs(found[name][i]))
        else:
            assert found[name] == pytest.approx(exact[name], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("options", [{"contrast": "zero"}, {"background": "mean"}])
def test_experts_under_other_contrasts_and_backgrounds(options: dict[str, str]) -> None:
    model, args = seeded(lambda: Residual(Added)), inputs(4)
    scores = ng.score(
        model, args[0], 1, scorer="exact", reference=SAMPLES, progress=False, **options
    )
    audit = scores.audit(400)
    assert not audit.failed
    assert set(chosen_by(model, args)) <= set(audit.layers)


def test_experts_are_glue_where_values_of_other_samples_are_taken() -> None:
    model, (x,) = seeded(Experts), inputs(4)
    for contrast in ("resample", ng.Counterfactual(x.flip(0))):
        scores = ng.score(model, x, 1, contrast=contrast, reference=8, progress=False)
        assert set(scores.table["layer"]) == {"input", "gate", "head"}
        assert any(note.startswith("glue") for note in scores.provenance["notes"])


def test_experts_are_told_by_name() -> None:
    model, (x,) = seeded(Experts), inputs(4)
    experts = chosen_by(model, (x,))
    (never,) = {f"experts.{i}" for i in range(4)} - set(experts)
    scores = ng.score(model, x, 1, scorer="exact", reference=SAMPLES, progress=False)
    assert set(scores.provenance["model"]["routed"]) == set(experts)
    some, none = scores.provenance["notes"]
    assert some.endswith(", ".join(experts))
    assert none.endswith(f"no neurons: {never}")


def test_one_expert_may_be_asked_for() -> None:
    model, args = seeded(Added), inputs(4)
    wanted = by_hooks(model, args, "experts.1", first)
    found = scored(model, args, layers=["experts.1"])
    assert found["experts.1"] == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert set(found) == {"input", "experts.1"}
    with pytest.raises(OptionError, match=r"experts\.0"):
        ng.search(seeded(Apart), args[0], 1, layers=["experts.0"], progress=False)


def test_what_needs_a_row_of_each_sample_leaves_experts_out() -> None:
    model, (x,) = seeded(Experts), inputs(4)
    scores = ng.score(model, x, 1, scorer="exact", reference=8, progress=False)
    ranking = scores.ranking()
    without = ranking[[not name.startswith("experts") for name, _ in ranking.index]]
    assert len(without) < len(ranking)
    told = [
        ng.faithfulness(model, x, 1, r, ablations=["mean"], reference=8, progress=False).draws
        for r in (ranking, without)
    ]
    pd.testing.assert_frame_equal(*told)
    table = ng.separation(model, x, x[:, 0] > 0, progress=False)
    assert set(table["layer"]) == {"input", "gate", "head"}


def test_profiles_count_the_rows_of_experts() -> None:
    model, (x,) = seeded(Experts), inputs(4)
    graph = ng.profile(model, x, labels=x[:, 0] > 0, progress=False)
    for name in chosen_by(model, (x,)):
        rows = values(model, (x,), name)
        assert graph.nodes[name]["count"] == len(rows) < SAMPLES
        assert torch.allclose(graph.nodes[name]["mean"], rows.mean(0))
        assert "classes" not in graph.nodes[name]


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_neurons_of_experts_are_silenced_on_their_rows(how: str) -> None:
    model, (x,) = seeded(Experts), inputs(4)
    rows = values(model, (x,), "experts.0")
    value = rows[:, 2].mean() if how == "mean" else torch.zeros(())

    def put(output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 2] = value
        return output

    with passing(model, {"experts.0": put}):
        wanted = model(x)
    with ng.mask_neurons(model, [("experts.0", 2)], how=how, data=x), torch.no_grad():
        assert torch.allclose(model(x), wanted)
    with (
        pytest.raises(OptionError, match=r"experts\.0"),
        ng.mask_neurons(model, [("experts.0", 2)], how="resample", data=x),
    ):
        pass


def test_an_expert_that_only_a_move_calls() -> None:
    model, (x,) = seeded(Experts), inputs(4)
    with torch.no_grad():
        model.gate.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
        assert (model.gate(x).argmax(1) == 0).all()
    found = scored(model, (x,), contrast="zero")
    rows = values(model, (x,), "gate")
    for i in range(4):
        ends = torch.zeros(len(rows), dtype=rows.dtype), rows[:, i]
        wanted = total(model, (x,), "gate", i, ends, first)
        assert found["gate"][i] == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert abs(found["gate"][0]) > 1e-3
