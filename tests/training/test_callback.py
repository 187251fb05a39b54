"""Circuits are searched during training as they would be after it, and training does not notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import neurograph as ng
from neurograph.comparison.overlap import overlap_by_name
from neurograph.data.source import Batch
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.weights import load_weights
from neurograph.training import CircuitCallback, binary_classifier, fit
from tests.training.small import QUIET, network, points, trainer

pytestmark = [pytest.mark.filterwarnings(warning) for warning in QUIET]

X = points(60, 1).tensors[0]


def loader(generator: torch.Generator | None = None) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(points(60, 1), 12, shuffle=True, generator=generator)


def watch(directory: Path, data: Any = X, target: Any = 1, **options: Any) -> CircuitCallback:
    return CircuitCallback(
        data, target, directory=directory, **{"every": 2, "keep": "top:3", **options}
    )


def train(
    directory: Path, *callbacks: Callback, epochs: int = 3, **options: Any
) -> pl.LightningModule:
    module = binary_classifier(network(), learning_rate=0.05)
    run = trainer(directory, max_epochs=epochs, callbacks=list(callbacks), **options)
    run.fit(module, loader())
    return module


def same(one: ng.Circuit, other: ng.Circuit) -> bool:
    tables = zip((one.neurons(), one.edges()), (other.neurons(), other.edges()), strict=True)
    return all(a.equals(b) for a, b in tables)


def test_circuits_are_those_of_the_checkpoints_of_their_epochs(tmp_path: Path) -> None:
    found = watch(tmp_path / "new" / "folder", name="plane")
    saved = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    train(tmp_path, found, saved, epochs=5, enable_checkpointing=True)
    # Every second epoch, and the last; numbered from 0 as the checkpoints are.
    assert [(s.epoch, s.step) for s in found.history] == [(1, 10), (3, 20), (4, 25)]
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == [f"plane-epoch={epoch:03d}.circuit" for epoch in (1, 3, 4)]
    for snapshot in found.history:
        model = load_weights(network(), tmp_path / f"epoch={snapshot.epoch}.ckpt")
        wanted = ng.search(model, X, 1, keep="top:3")
        assert same(snapshot.circuit, wanted)
        assert same(ng.load(snapshot.path), wanted)
        assert all(path.measured for path in snapshot.circuit.attach(model, X).paths(500))
    before, after = found.history[0].circuit, found.history[1].circuit
    assert found.history[0].change is None
    assert found.history[1].change == overlap_by_name(before, after)


class Augmented(Dataset[tuple[Tensor, ...]]):
    """Draws from global generators, as augmentation may."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        noise = torch.rand(2) * 0.1 + float(np.random.rand())  # noqa: NPY002
        row, label = points(60, 1)[index]
        return row + noise, label

    def __len__(self) -> int:
        return 60


def augmented(generator: torch.Generator | None = None) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(Augmented(), 12, shuffle=True, generator=generator)


@pytest.mark.parametrize("own_generator", [False, True])
def test_training_is_the_same_bits_with_and_without(tmp_path: Path, own_generator: bool) -> None:
    def run(watched: bool) -> dict[str, Any]:
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002
        # The worst case: what is searched is the very loader that training reads from.
        data = augmented(torch.Generator().manual_seed(3) if own_generator else None)
        found = watch(tmp_path, data, every=1, budget=2, keep="top:2")
        module = binary_classifier(network(), learning_rate=0.05)
        fitting = trainer(tmp_path, max_epochs=3, callbacks=[found] if watched else [])
        fitting.fit(module, data)
        assert len(found.history) == (3 if watched else 0)
        # In one seeded block all searches see the same samples.
        prints = {s.circuit.provenance["data"]["fingerprint"] for s in found.history}
        assert len(prints) == int(watched)
        return {
            "model": module.state_dict(),
            "gradients": [p.grad for p in module.parameters()],
            "optimizer": fitting.optimizers[0].state_dict()["state"],
            "modes": [m.training for m in module.modules()],
            "random": (torch.get_rng_state(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        }

    alone, watched = run(watched=False), run(watched=True)
    torch.testing.assert_close(watched, alone, rtol=0, atol=0)


def test_every_number_and_the_paths_are_in_tensorboard(tmp_path: Path) -> None:
    found, other = watch(tmp_path, every=1), watch(tmp_path, target=0, name="other|")
    train(tmp_path, found, other, logger=TensorBoardLogger(tmp_path, "logs", 0))
    table = found.to_frame()
    assert table["epoch"].tolist() == [0, 1, 2]
    events = EventAccumulator(str(tmp_path / "logs" / "version_0")).Reload()
    logged = {tag for tag in events.Tags()["scalars"] if tag.startswith("circuit/")}
    assert logged == {f"circuit/{name}" for name in table.columns.drop(["epoch", "step"])}
    for name in table.columns.drop(["epoch", "step"]):
        points = [(event.step, event.value) for event in events.Scalars(f"circuit/{name}")]
        known = table[["step", name]].dropna()
        assert [step for step, _ in points] == known["step"].tolist()
        assert [value for _, value in points] == pytest.approx(known[name].tolist())
    texts = [
        t.tensor_proto.string_val[0].decode() for t in events.Tensors("circuit/paths/text_summary")
    ]
    assert texts == [snapshot.markdown() for snapshot in found.history]
    strongest = found.history[-1].circuit.strongest[0]
    assert f"| {' → '.join(strongest.names)} |" in texts[-1]
    assert "other|/edges" in events.Tags()["scalars"]


def test_the_numbers_are_those_of_the_circuit(tmp_path: Path) -> None:
    found = watch(tmp_path)
    train(tmp_path, found)
    last, circuit = found.to_frame().iloc[-1], found.history[-1].circuit
    for sign in ("positive", "negative"):
        assert last[f"neurons_{sign}"] == len(circuit.neurons(sign=sign))
        assert last[f"strongest_{sign}"] == next(circuit.paths(1, sign=sign)).effect
    assert last["edges"] == len(circuit.edges())
    assert last["effect_sum"] == pytest.approx(circuit.neurons()["effect"].abs().sum())
    assert last["spearman"] == found.history[-1].change["spearman"]


def test_names_cannot_break_the_table(tmp_path: Path) -> None:
    found = watch(tmp_path, every=9, feature_names=["a|b", "c\nd"])
    train(tmp_path, found, epochs=1)
    lines = found.history[0].markdown().splitlines()[2:]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)
    assert any("a\\|b → " in line for line in lines)


def test_a_second_training_begins_a_history_of_its_own(tmp_path: Path) -> None:
    found = watch(tmp_path)
    for _ in range(2):
        train(tmp_path, found)
        assert [s.epoch for s in found.history] == [1, 2]
        assert found.history[0].change is None


class Itself(pl.LightningModule):
    """A network that trains itself, as most do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = network(4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0])[:, 0], batch[1].float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("module", "target", "layers"),
    [
        (None, 1, ["body.0", "body.4", "head"]),
        ("", 1, ["body.0", "body.4", "head"]),
        ("body", 3, ["0", "4"]),
    ],
)
def test_any_module_can_be_searched(
    tmp_path: Path, module: str | None, target: int, layers: list[str]
) -> None:
    found = watch(tmp_path, target=target, module=module)
    trainer(tmp_path, callbacks=[found]).fit(Itself(), loader())
    assert list(found.history[0].circuit.layers) == ["input", *layers]


class Spoil(Callback):
    """Makes a weight NaN at the end of epoch 1, and mends it after."""

    mended: Tensor | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.mended = pl_module.model[0].weight.detach().clone()
            pl_module.model[0].weight.data[0, 0] = torch.nan

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.mended is not None:
            pl_module.model[0].weight.data.copy_(self.mended)


def test_a_search_that_fails_is_told_and_training_goes_on(tmp_path: Path) -> None:
    found = watch(tmp_path, every=1)
    with pytest.warns(RuntimeWarning, match="no circuit at epoch 1: ModelError: .*NaN") as told:
        train(tmp_path, Spoil(), found, logger=TensorBoardLogger(tmp_path, "logs", 0))
    assert sum(issubclass(w.category, RuntimeWarning) for w in told) == 1
    assert [s.epoch for s in found.history] == [0, 2]
    first, last = (s.circuit for s in found.history)
    assert found.history[1].change == overlap_by_name(first, last)
    assert not (tmp_path / "circuit-epoch=001.circuit").exists()
    events = EventAccumulator(str(tmp_path / "logs" / "version_0")).Reload()
    text = events.Tensors("circuit/paths/text_summary")[1].tensor_proto.string_val[0].decode()
    assert text.startswith("no circuit at epoch 1: ModelError")


def test_a_disk_that_fails_ends_no_training(tmp_path: Path) -> None:
    found = watch(tmp_path / "full", every=1)

    class Lost(Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            (tmp_path / "full").rename(tmp_path / "gone")

    with pytest.warns(RuntimeWarning, match=r"no circuit at epoch 0: OptionError: .*no folder"):
        train(tmp_path, found, Lost(), epochs=1)
    assert not found.history


def test_ctrl_c_during_a_search_interrupts_and_keeps_what_was_saved(tmp_path: Path) -> None:
    calls: list[int] = []

    def target(output: Tensor, batch: Batch) -> Tensor:
        calls.append(len(output))
        if len(found.history) == 1:
            raise KeyboardInterrupt
        return output[:, 0]

    found = watch(tmp_path, target=target, every=1)
    data = points(60, 1)
    with pytest.raises(KeyboardInterrupt):
        fit(binary_classifier(network()), data, data, directory=tmp_path, callbacks=[found])
    assert [s.epoch for s in found.history] == [0]
    assert [p.name for p in tmp_path.glob("*.circuit")] == ["circuit-epoch=000.circuit"]
    assert same(ng.load(found.history[0].path), found.history[0].circuit)


class Stepless(Callback):
    """Fails if a step is made."""

    def on_train_batch_start(self, *_: Any) -> None:
        pytest.fail("a step was made before the error")


def wrong(output: Tensor, batch: Batch) -> Tensor:
    return output


def lost(output: Tensor, batch: Batch) -> Tensor:
    raise LookupError("no such thing")


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"target": 2}, OptionError, "target 2 is out of range"),
        ({"target": wrong}, OptionError, "the target 'wrong' returned"),
        ({"target": lost}, OptionError, "raised LookupError: no such thing"),
        ({"data": X[:, :1]}, ModelError, "1"),
        ({"data": X * torch.nan}, DataError, "NaN"),
        ({"module": "backbone"}, OptionError, "module='backbone'"),
        ({"layers": ["nowhere"]}, OptionError, "nowhere"),
        ({"name": "no/folder"}, OptionError, "no folder"),
        ({"feature_names": ["one"]}, OptionError, "feature_names has 1"),
    ],
)
def test_what_cannot_be_searched_is_told_before_the_first_step(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        train(tmp_path, Stepless(), watch(tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": 0}, "every=0"),
        ({"keeps": "top:3"}, "keeps= is no option of search: did you mean keep"),
        ({"keep": "tops:3"}, "tops"),
        ({"budget": 0}, "budget=0"),
        ({"profile": None}, "profile= is of other weights"),
    ],
)
def test_options_that_make_no_sense_are_told_at_once(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        CircuitCallback(X, 1, **options)


def test_nothing_is_searched_where_nothing_was_trained(tmp_path: Path) -> None:
    found = watch(tmp_path)
    train(tmp_path, found, limit_train_batches=0)
    assert not found.history
    assert not list(tmp_path.glob("*.circuit"))
    assert found.to_frame().empty


PROCESSES = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader, Dataset
from neurograph.training import binary_classifier
from tests.training.small import network, points, trainer
from tests.training.test_callback import watch

folder = Path(sys.argv[1])
found = watch(folder)
run = trainer(folder, max_epochs=3, callbacks=[found], strategy="ddp_fork", devices=2)
data = DataLoader(points(60, 1), 12)
run.fit(binary_classifier(network(), learning_rate=0.05), data, data)
assert run.callback_metrics["validation_loss"] < 0.7
"""


def test_one_of_several_processes_searches_while_the_others_wait(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROCESSES, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in tmp_path.glob("*.circuit")) == [
        "circuit-epoch=001.circuit",
        "circuit-epoch=002.circuit",
    ]
    # All 60 samples, once.
    circuit = ng.load(tmp_path / "circuit-epoch=002.circuit")
    assert {d["count"] for _, d in circuit.graph.nodes(data=True)} == {60}
