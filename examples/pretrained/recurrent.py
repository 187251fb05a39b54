"""textgenrnn's character model: two LSTMs that read 40 characters, and attention over all of them.

Trained on titles of Reddit submissions with Keras on a GPU. The HDF5 file therefore holds
cuDNN's layout, not Keras's own: two biases for each gate, input kernels whose memory is already
``[units, inputs]``, and recurrent kernels that are already transposed. The gates are in torch's
order (input, forget, cell, output), with plain sigmoids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import h5py
import torch
from torch import Tensor, nn

from pretrained.packages import installed_file

__all__ = ["LENGTH", "CharacterModel", "encode", "load"]

LENGTH = 40
"""How many characters the model reads; shorter texts are padded in front."""

_UNITS, _EMBEDDING, _START = 128, 100, "<s>"


class CharacterModel(nn.Module):
    """Logits of the next character, from the attention-weighted mean of all three layers."""

    def __init__(self, characters: int):
        super().__init__()
        self.embedding = nn.Embedding(characters, _EMBEDDING)
        self.rnn_1 = nn.LSTM(_EMBEDDING, _UNITS, batch_first=True)
        self.rnn_2 = nn.LSTM(_UNITS, _UNITS, batch_first=True)
        width = _EMBEDDING + 2 * _UNITS
        self.attention = nn.Linear(width, 1, bias=False)
        self.output = nn.Linear(width, characters)

    def forward(self, characters: Tensor) -> Tensor:
        """Map character codes ``[batch, 40]`` to logits ``[batch, characters]``."""
        embedded = self.embedding(characters)
        first, _ = self.rnn_1(embedded)
        second, _ = self.rnn_2(first)
        states = torch.cat([embedded, first, second], dim=2)
        weights = self.attention(states).softmax(dim=1)
        return self.output((weights * states).sum(dim=1))


def load() -> tuple[CharacterModel, dict[str, int]]:
    """The trained model, in eval mode, and the code of each character (0 is padding)."""
    codes = json.loads(installed_file("textgenrnn", "*/textgenrnn_vocab.json").read_text("utf-8"))
    model = CharacterModel(len(codes) + 1)
    with h5py.File(installed_file("textgenrnn", "*/textgenrnn_weights.hdf5")) as file:

        def stored(layer: str, name: str) -> Tensor:
            return torch.tensor(file[f"{layer}/{layer}/{name}:0"][()])

        state = {
            "embedding.weight": stored("embedding", "embeddings"),
            "attention.weight": stored("attention", "attention_W").T,
            "output.weight": stored("output", "kernel").T,
            "output.bias": stored("output", "bias"),
        }
        for layer in ("rnn_1", "rnn_2"):
            kernel, recurrent = stored(layer, "kernel"), stored(layer, "recurrent_kernel")
            # reshape, not transpose: the memory of each gate's kernel is cuDNN's.
            inputs = [gate.reshape(_UNITS, -1) for gate in kernel.chunk(4, dim=1)]
            state[f"{layer}.weight_ih_l0"] = torch.cat(inputs)
            state[f"{layer}.weight_hh_l0"] = torch.cat(recurrent.chunk(4, dim=1))
            state[f"{layer}.bias_ih_l0"], state[f"{layer}.bias_hh_l0"] = stored(
                layer, "bias"
            ).chunk(2)
    model.load_state_dict(state)
    return model.eval(), codes


def encode(codes: dict[str, int], texts: Sequence[str]) -> Tensor:
    """The last 40 characters of each text as codes ``[texts, 40]``, with the mark of a start."""
    rows = [[codes[_START], *(codes.get(character, 0) for character in text)] for text in texts]
    return torch.tensor([[0] * (LENGTH - len(row)) + row[-LENGTH:] for row in rows])
