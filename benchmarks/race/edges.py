"""The edges of the transformer that everybody scores, in the names of the plain model.

What writes to the residual stream: the embedding, each head, each MLP. What reads it: the queries,
keys and values of each head, each MLP, and the logits. 1,519 edges for 4 layers of 8 heads.
"""

from __future__ import annotations

from collections.abc import Iterator

from race.models import Transformer

__all__ = ["GROUPS", "LAYERS", "READERS", "edges"]

HEADS = Transformer.heads
LAYERS = ["embed", "q_proj", "k_proj", "v_proj", "o_proj:input", "mlp", "unembed"]
GROUPS = {
    "embed": 1,
    "q_proj": HEADS,
    "k_proj": HEADS,
    "v_proj": HEADS,
    "o_proj:input": HEADS,
    "mlp": 1,
    "unembed": 1,
}
READERS = ("q_proj", "k_proj", "v_proj")

Edge = tuple[str, int, str, int]


def edges(model: Transformer) -> Iterator[Edge]:
    """Every edge as (writer, its group, reader, its group), writers in the order of the model."""
    depth = len(model.blocks)
    for source, index, first_attention, first_mlp in _writers(depth):
        for block in range(depth):
            if block >= first_attention:
                for name in READERS:
                    for head in range(HEADS):
                        yield source, index, f"blocks.{block}.attention.{name}", head
            if block >= first_mlp:
                yield source, index, f"blocks.{block}.mlp", 0
        yield source, index, "unembed", 0


def _writers(depth: int) -> Iterator[tuple[str, int, int, int]]:
    """Each writer, and the first blocks whose attention and MLP read it."""
    yield "embed", 0, 0, 0
    for block in range(depth):
        for head in range(HEADS):
            yield f"blocks.{block}.attention.o_proj:input", head, block + 1, block
        yield f"blocks.{block}.mlp", 0, block + 1, block + 1
