"""How alike two models' layers and neurons are, against hooks and NumPy, for many kinds of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neurograph.matching.paired import side_by_side
from neurograph.matching.similarity import layer_cka, measure_pairs
from tests import zoo
from tests.case import as_data
from tests.matching.attached import circuit_of
from tests.reference import Reference
from tests.zoo import Network

ROWS = 24
KINDS = ("resnet", "lstm", "gru_state", "attention_weights", "bert", "gpt2_heads", "swin")


class Hooked:
    """What hooks see of a network's layers: rows by layer, and the padding mask."""

    def __init__(self, network: Network, arguments: dict[str, Any]) -> None:
        self.reference = Reference(network, arguments)
        self.mask: Tensor | None = arguments.get("attention_mask")
        self.sites = network.sites

    def neurons(self, name: str) -> list[list[int]]:
        if name in self.reference.units:
            units = [channels for channels, _ in self.reference.units[name]]
            return [[c] if isinstance(c, int) else list(c) for c in units]
        return [[c] for c in range(self.reference.channels(name))]

    def values(self, name: str) -> Tensor:
        """`[samples, positions, channels]`, 0 where there is padding."""
        values, site = self.reference.background[name].double(), self.sites[name]
        values = values.movedim(site.channel, -1)
        if site.batch is None:
            values = values.reshape(1, -1, values.shape[-1]).expand(ROWS, -1, -1)
        elif site.many > 1:
            values = values.reshape(ROWS, -1, *values.shape[1:])
        else:
            values = values.movedim(site.batch, 0)
        values = values.reshape(ROWS, -1, values.shape[-1])
        if self.is_padded(name):
            values = values * self.mask[..., None]
        return values

    def is_padded(self, name: str) -> bool:
        """Whether samples have rows of their own, as long as their mask."""
        values, site = self.reference.background[name], self.sites[name]
        sequence = site.batch == 0 and values.dim() == 3
        return self.mask is not None and sequence and values.shape[1] == self.mask.shape[1]

    def rows(self, name: str) -> np.ndarray:
        values = self.values(name)
        if self.is_padded(name):
            return values[self.mask.bool()].numpy()
        return values.flatten(0, 1).numpy()


def rv_root(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) / np.sqrt(norms)) if norms > 1e-20 else np.nan


def cka_at_once(x: Tensor, y: Tensor) -> float:
    """CKA of all samples at once, each HSIC as Song et al. (2012) write it, with matrices."""

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        n, ones = len(k), np.ones(len(k))
        first = np.trace(k @ l) + ones @ k @ ones * (ones @ l @ ones) / ((n - 1) * (n - 2))
        return float((first - 2 / (n - 2) * ones @ k @ l @ ones) / (n * (n - 3)))

    k, l = ((z.flatten(1) @ z.flatten(1).T).fill_diagonal_(0).numpy() for z in (x, y))  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize("memory", ["512MB", "40KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_measured_equals_hooks_and_numpy(kind: str, memory: str) -> None:
    networks = [zoo.NETWORKS[kind](seed) for seed in (0, 1)]
    arguments = networks[0].inputs(ROWS, 0)
    data = as_data(arguments)
    circuits = [
        circuit_of(network.model, data, network.target, memory=memory, **network.options)
        for network in networks
    ]
    hooked = [Hooked(network, arguments) for network in networks]
    pairs = [(n, n) for n, d in circuits[0].layers.nodes(data=True) if d["neurons"]]
    with side_by_side(*circuits, samples=ROWS, progress=False) as models:
        found = list(measure_pairs(models, pairs, set(pairs[1:])))
    assert [x.layers for x in found] == pairs
    assert found[0].similarity is None
    for (name, _), cka, similarity in found:
        a, b = (side.values(name) for side in hooked)
        if memory == "512MB" and a.std(0).max() > 1e-12:  # one batch; others have no variance
            assert cka == pytest.approx(cka_at_once(a, b), abs=1e-9), name
        if similarity is None:
            continue
        x, y = (side.rows(name) for side in hooked)
        groups = hooked[0].neurons(name)
        if all(len(group) == 1 for group in groups):
            with np.errstate(invalid="ignore", divide="ignore"):
                wanted = np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]
            still = [np.ptp(side, axis=0) < 1e-12 for side in (x, y)]
            wanted[still[0]], wanted[:, still[1]] = np.nan, np.nan
        else:
            wanted = np.array([[rv_root(x[:, g], y[:, h]) for h in groups] for g in groups])
        np.testing.assert_allclose(similarity, wanted, atol=1e-9, err_msg=name)


def test_small_batches_estimate_the_same_cka() -> None:
    samples = [zoo.branched_cnn(3, 2, seed, torch.float64) for seed in (0, 1)]
    X = samples[0].data(400, 0)
    every: dict[str, np.ndarray] = {}
    for memory in ("512MB", "20KB"):
        circuits = [circuit_of(s.model, X, memory=memory) for s in samples]
        names = ["stem", "conv", "head"]
        with side_by_side(*circuits, progress=False) as models:
            every[memory] = layer_cka(models, names, names)
            sizes = [len(here["stem"].values) for here, _ in models.run(["stem"], [], "")]
        assert sum(sizes) == 400
        assert min(sizes) >= 16
        assert (max(sizes) < 20) == (memory == "20KB")
    np.testing.assert_allclose(every["20KB"], every["512MB"], atol=0.1)
