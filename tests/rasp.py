"""Transformers whose circuit is known: compiled programs, as a plain model to be searched.

The nodes are embeddings, heads and MLPs, the ports of a head its queries, keys and values. All of
them are neurons of the library: groups of the channels of some layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAYERS = "embed pos_embed q_proj k_proj v_proj o_proj:input mlp_in mlp_out unembed".split()
GROUPS: dict[str, str | int] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj:input"), "heads"),
    **dict.fromkeys(("embed", "pos_embed", "mlp_in", "mlp_out", "unembed"), 1),
}
OPTIONS = {"layers": LAYERS, "groups": GROUPS}

Place = tuple[str, int]
"""A layer, and which of its neurons."""


class Attention(nn.Module):
    """Every position reads all, by softmax(QKᵀ/√k)."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, heads * head_dim, bias=False) for _ in range(3)
        )
        self.o_proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        pattern = (q @ k.transpose(2, 3) / self.head_dim**0.5).softmax(dim=3)
        return self.o_proj((pattern @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then an MLP; both add to the residual stream, and nothing is normalised."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, head_dim)
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp_out(torch.relu(self.mlp_in(x)))


class Transformer(nn.Module):
    """Token ids ``[samples, positions]`` to logits ``[samples, positions, outputs]``."""

    def __init__(
        self,
        words: int,
        places: int,
        width: int,
        heads: Sequence[tuple[int, int]],
        hidden: Sequence[int],
        outputs: int,
    ) -> None:
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(words, width), nn.Embedding(places, width)
        self.blocks = nn.ModuleList(
            Block(width, *sizes, wide) for sizes, wide in zip(heads, hidden, strict=True)
        )
        self.unembed = nn.Linear(width, outputs, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos_embed(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@dataclass(frozen=True)
class Program:
    """A compiled program: its model, data, and which candidate edges are true.

    Attributes
    ----------
    model : Module
    ids : Tensor of int64, [samples, positions]
    edges : dict of (source, target) to bool
        Places of every candidate, and whether it is in the circuit.
    """

    model: nn.Module
    ids: Tensor
    edges: Mapping[tuple[Place, Place], bool]

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """Ids, labelled with the model's own logits."""
        with torch.no_grad():
            return self.ids, self.model(self.ids)


def likeness(output: Tensor, batch: Any) -> Tensor:
    """Target: minus the squared distance of all logits to the labels, which cannot cancel."""
    return -(output - batch.labels).square().flatten(1).sum(1)


def load(folder: Path, name: str) -> tuple[Program, Tensor]:
    """Read a program and the logits expected of it."""
    arrays = np.load(folder / f"{name}.npz")
    told = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    config = told["config"]
    blocks = range(config["n_layers"])
    width = config["d_model"]
    model = Transformer(
        len(arrays["tok_embed"]),
        len(arrays["pos_embed"]),
        width,
        [arrays[f"L{i}.attn.W_Q"].shape[::2] for i in blocks],
        [arrays[f"L{i}.mlp.W_in"].shape[1] for i in blocks],
        arrays["unembed"].shape[1],
    )
    weights = {"embed.weight": arrays["tok_embed"], "pos_embed.weight": arrays["pos_embed"]}
    weights["unembed.weight"] = arrays["unembed"].T
    for i in blocks:
        for port in "QKV":  # [heads, width, head_dim]
            table = arrays[f"L{i}.attn.W_{port}"].swapaxes(1, 2).reshape(-1, width)
            weights[f"blocks.{i}.attention.{port.lower()}_proj.weight"] = table
        out = arrays[f"L{i}.attn.W_O"].reshape(-1, width).T
        weights[f"blocks.{i}.attention.o_proj.weight"] = out
        weights[f"blocks.{i}.attention.o_proj.bias"] = arrays[f"L{i}.attn.b_O"]
        for part in ("in", "out"):
            weights[f"blocks.{i}.mlp_{part}.weight"] = arrays[f"L{i}.mlp.W_{part}"].T
            weights[f"blocks.{i}.mlp_{part}.bias"] = arrays[f"L{i}.mlp.b_{part}"]
    model.load_state_dict({n: torch.tensor(np.ascontiguousarray(w)) for n, w in weights.items()})
    edges = {
        (writer_of(edge["src"]), reader_of(edge["dst"], edge["port"])): (
            edge["on_output_path"] and not edge["constant_only"]
        )
        for edge in told["edges"]
    }
    return Program(model, torch.tensor(arrays["inputs"]), edges), torch.tensor(
        arrays["targets_resid"]
    )


def writer_of(node: str) -> Place:
    """Where a node's values are written: ``embed``, ``pos_embed``, ``L0.H1``, ``L0.MLP``."""
    block, _, part = node.partition(".")
    if not part:
        return node, 0
    path = f"blocks.{block[1:]}"
    if part == "MLP":
        return f"{path}.mlp_out", 0
    return f"{path}.attention.o_proj:input", _at(part)


def reader_of(node: str, port: str) -> Place:
    """Where a node reads: the q, k or v of a head, the input of an MLP or of the output."""
    block, _, part = node.partition(".")
    if not part:
        return "unembed", 0
    path = f"blocks.{block[1:]}"
    if part == "MLP":
        return f"{path}.mlp_in", 0
    return f"{path}.attention.{port}_proj", _at(part)


def _at(head: str) -> int:
    return int(head.removeprefix("H"))
