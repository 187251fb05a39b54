"""Recurrent networks and PyTorch's own transformer modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.network import Network, Site, column, normal, under, vectors
from tests.zoo.simple import settle

# As many as the tests take reference samples: no layout can be guessed from sizes alone.
STEPS = 4


class BothWays(nn.Module):
    """A bidirectional LSTM that has time first, in a model that has samples first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 2, num_layers=2, bidirectional=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.lstm(x.permute(1, 0, 2))
        return self.head(torch.tanh(output).mean(0))


class LastState(nn.Module):
    """A GRU of which only the last hidden state is used."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 3)
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(torch.tanh(self.enter(x)))
        return self.head(last[-1])


class TwoStates(nn.Module):
    """An encoder LSTM whose last states start a decoder LSTM; one state reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 3, batch_first=True)
        self.decoder = nn.LSTM(3, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, memory) = self.encoder(x)
        output, (_, last) = self.decoder(x.flip(1), (hidden, memory))
        return self.head(output[:, -1]) + 0.5 * last[0, :, :2]


class CellLoop(nn.Module):
    """A cell that hands two states to its next call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = memory = x.new_zeros(len(x), 3)
        for step in range(x.shape[1]):
            hidden, memory = self.cell(x[:, step], (hidden, memory))
        return self.head(hidden)


class TimeFirstEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.enter(x).transpose(0, 1))
        return self.head(h[-1])


class MaskedEncoder(nn.Module):
    """Samples first with a padding mask: what PyTorch would run on nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.encoder(x, src_key_padding_mask=padding)
        return self.head(h[:, 0])


class AttentionBlock(nn.Module):
    """A bare `nn.MultiheadAttention` whose weights are returned beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.enter(x)
        h = self.norm(x)
        mixed, weights = self.attention(h, h, h)
        return self.head(torch.tanh(x + mixed).mean(1)), weights


def lstm(seed: int) -> Network:
    sites = vectors("input") | vectors("lstm", batch=1) | vectors("head")
    return Network("lstm", settle(BothWays(), seed), normal(STEPS, 3), column(1), sites)


def gru_state(seed: int) -> Network:
    sites = vectors("input", "enter", "gru")
    sites |= {"gru:1": Site("gru", leaf=1, batch=1)} | vectors("head")
    return Network("gru_state", settle(LastState(), seed), normal(STEPS, 3), column(0), sites)


def lstm_states(seed: int) -> Network:
    sites = vectors("input", "encoder")
    sites |= {
        "encoder:1.0": Site("encoder", leaf=1, batch=1),
        "encoder:1.1": Site("encoder", leaf=2, batch=1),
    }
    sites |= vectors("decoder") | {"decoder:1.1": Site("decoder", leaf=2, batch=1)}
    sites |= vectors("head")
    return Network("lstm_states", settle(TwoStates(), seed), normal(STEPS, 3), column(1), sites)


def lstm_cell(seed: int) -> Network:
    sites = vectors("input")
    for call in ("cell", "cell#1"):
        sites |= {call: Site(call), f"{call}:1": Site(call, leaf=1)}
    sites |= vectors("cell#2", "head")  # nothing reads the last memory
    return Network("lstm_cell", settle(CellLoop(), seed), normal(3, 2), column(0), sites)


def _encoder_layers(batch: int) -> dict[str, Site]:
    sites: dict[str, Site] = {}
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        sites |= vectors(*under(layer, "self_attn linear1 linear2"), batch=batch)
    return sites


def encoder_time_first(seed: int) -> Network:
    sites = vectors("input", "enter") | _encoder_layers(1) | vectors("head")
    model = settle(TimeFirstEncoder(), seed)
    return Network("encoder_time_first", model, normal(STEPS, 3), column(0), sites)


def encoder_masked(seed: int) -> Network:
    sites = vectors("input.x", "input.padding") | _encoder_layers(0) | vectors("head")

    def inputs(rows: int, seed: int) -> dict[str, Any]:
        """Sequences of different lengths, no two neighbours alike."""
        lengths = torch.arange(rows) % (STEPS - 1) + 2
        padding = torch.arange(STEPS) >= lengths[:, None]
        return normal(STEPS, 4)(rows, seed) | {"padding": padding}

    return Network("encoder_masked", settle(MaskedEncoder(), seed), inputs, column(1), sites)


def attention_weights(seed: int) -> Network:
    sites = vectors("input", "enter", "attention")
    sites |= {"attention:1": Site("attention", leaf=1)} | vectors("head")

    def target(output: tuple[Tensor, Tensor], _batch: object) -> Tensor:
        logits, weights = output
        return logits[:, 0] + weights[:, 0, 1].square()

    model = settle(AttentionBlock(), seed)
    return Network("attention_weights", model, normal(3, 3), target, sites)
