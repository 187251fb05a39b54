"""Small models trained in seconds, of whose mechanism something is known.

Modular addition: a two-layer network with squares between learns to add by trigonometry, one
frequency a hidden neuron (Gromov 2023, arXiv:2301.02679; Nanda et al. 2023, arXiv:2301.05217).
Weight decay silences the neurons that it does not need.

Greater-than: a block of attention is shown a year among random tokens and says, behind it, which
years come later (after Hanna et al. 2023, arXiv:2305.00586). Only one head may see where the year
stands; so what matters is the year's embedding, and that head's output at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from neurograph.data.source import Batch


class Square(nn.Module):
    """x²."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x


@dataclass(frozen=True)
class Addition:
    """A network that adds modulo a prime, and all its pairs.

    Attributes
    ----------
    model : Module
        From one-hot a and b, side by side, to logits of a + b; its hidden layer is ``0``.
    X, y : Tensor
        All pairs, ``[prime², 2 · prime]``, and their sums.
    held_out : Tensor of bool
        Pairs that it was not trained on.
    share : Tensor, [hidden]
        Of each hidden neuron's variance over the pairs, what its best frequency explains.
    key : Tensor of bool, [hidden]
        Neurons that follow one frequency, and are not silent.
    """

    model: nn.Module
    X: Tensor
    y: Tensor
    held_out: Tensor
    share: Tensor
    key: Tensor

    def accuracy(self, kept: Tensor | None = None) -> float:
        """Share of right sums, with hidden neurons that are not kept at their means."""
        with torch.no_grad():
            hidden = self.model[1](self.model[0](self.X))
            if kept is not None:
                hidden = torch.where(kept, hidden, hidden.mean(0))
            return float((self.model[2](hidden).argmax(1) == self.y).double().mean())


def modular_addition(
    prime: int = 23, hidden: int = 128, steps: int = 2000, seed: int = 0
) -> Addition:
    """Train on four fifths of the pairs."""
    a, b = (x.flatten() for x in torch.meshgrid(*[torch.arange(prime)] * 2, indexing="ij"))
    X, y = torch.cat([one_hot(a, prime), one_hot(b, prime)], 1).float(), (a + b) % prime
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.rand(len(X), generator=generator) < 0.2
    model = nn.Sequential(
        nn.Linear(2 * prime, hidden, bias=False), Square(), nn.Linear(hidden, prime, bias=False)
    )
    _start(model, generator)
    inside, wanted = X[~held_out], one_hot(y[~held_out], prime).float()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1.0)
    for _ in range(steps):
        optimiser.zero_grad()
        mse_loss(model(inside), wanted).backward()
        optimiser.step()
    with torch.no_grad():
        active = model[1](model[0](X)).T.reshape(hidden, prime, prime)
    share, variance = _share_of_one_frequency(active), active.var((1, 2))
    key = (share > 0.95) & (variance > 0.01 * variance.max())
    return Addition(model.eval(), X, y, held_out, share, key)


def _start(model: nn.Module, generator: torch.Generator) -> None:
    """Normal weights, that do not depend on what else was drawn."""
    with torch.no_grad():
        for weight in model.parameters():
            size = weight.shape[1] ** -0.5 if weight.dim() > 1 else 0.0
            weight.copy_(size * torch.randn(weight.shape, generator=generator))


def _share_of_one_frequency(active: Tensor) -> Tensor:
    """How much of the variance of ``[neurons, a, b]`` the best frequency and its double explain."""
    power = torch.fft.fft2(active - active.mean((1, 2), keepdim=True)).abs().square()
    prime = active.shape[1]
    waves = torch.arange(prime)
    waves = torch.minimum(waves, prime - waves)
    best = torch.zeros(len(active))
    for wave in range(1, prime // 2 + 1):
        double = min(2 * wave, prime - 2 * wave)  # a square doubles frequencies
        part = (waves == 0) | (waves == wave) | (waves == double)
        best = torch.maximum(best, (power * part[:, None] * part).sum((1, 2)))
    return best / power.sum((1, 2)).clamp_min(1e-12)


def margin(output: Tensor, batch: Batch) -> Tensor:
    """Target: the right logit less the mean of the others."""
    right = output.gather(1, batch.labels[:, None])[:, 0]
    return right - (output.sum(1) - right) / (output.shape[1] - 1)


LENGTH, YEAR, SEEING = 4, 1, 2  # positions, that of the year, and the head that sees it


class Later(nn.Module):
    """One block: which years come after the one that stands at a certain position?

    Token ids ``[samples, positions]`` to logits of years at the last position.
    """

    def __init__(self, years: int, width: int = 32, heads: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.num_heads = heads
        self.embed, self.pos_embed = nn.Embedding(years + 1, width), nn.Embedding(LENGTH, width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.unembed = nn.Linear(width, years)
        hidden_from = torch.zeros(heads, 1, LENGTH, dtype=torch.bool)
        hidden_from[:, :, YEAR] = True
        hidden_from[SEEING] = False
        self.register_buffer("hidden_from", hidden_from)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos_embed(torch.arange(LENGTH))
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        pattern = scores.masked_fill(self.hidden_from, -torch.inf).softmax(3)
        x = x + self.o_proj((pattern @ v).transpose(1, 2).flatten(2))
        x = x + self.mlp_out(torch.relu(self.mlp_in(x)))
        return self.unembed(x[:, -1])


@dataclass(frozen=True)
class Greater:
    """A network for greater-than, and its data.

    Attributes
    ----------
    model : Module
    ids : Tensor of int64, [samples, positions]
    year : Tensor of int64, [samples]
    neurons : dict of (layer, index, position) to bool
        Embeddings and heads at each position, and whether they can matter.
    options : dict
        Of the library, with which these are the neurons.
    """

    model: nn.Module
    ids: Tensor
    year: Tensor
    neurons: Mapping[tuple[str, int, int], bool]
    options: Mapping[str, Any]

    def loss(self) -> float:
        """Cross-entropy against a guess among the later years."""
        with torch.no_grad():
            return -float(later_years(self.model(self.ids), Batch((), {}, self.year)).mean())


def later_years(output: Tensor, batch: Batch) -> Tensor:
    """Target: mean log-probability of the years that come later."""
    later = torch.arange(output.shape[1]) > batch.labels[:, None]
    return (output.log_softmax(1) * later).sum(1) / later.sum(1)


def greater_than(years: int = 20, steps: int = 600, seed: int = 0) -> Greater:
    """Train on sentences drawn afresh at each step."""
    generator = torch.Generator().manual_seed(seed)
    model = Later(years)
    _start(model, generator)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(steps):
        ids, year = _sentences(years, 256, generator)
        optimiser.zero_grad()
        (-later_years(model(ids), Batch((), {}, year)).mean()).backward()
        optimiser.step()
    ids, year = _sentences(years, 512, generator)
    places = range(LENGTH)
    neurons = {("embed", 0, place): place == YEAR for place in places}
    for head in range(model.num_heads):
        for place in places:
            true = head == SEEING and place == LENGTH - 1
            neurons["o_proj:input", head, place] = true
    options = {
        "layers": ["embed", "o_proj:input"],
        "groups": {"embed": 1, "o_proj:input": model.num_heads},
        "positions": "each",
    }
    return Greater(model.eval(), ids, year, neurons, options)


def _sentences(years: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random tokens, among them a year that is not the last one; the end is a token of its own."""
    ids = torch.randint(years, (rows, LENGTH), generator=generator)
    ids[:, YEAR] = torch.randint(years - 1, (rows,), generator=generator)
    ids[:, -1] = years
    return ids, ids[:, YEAR].clone()
