"""Programs written by hand as the weights of a transformer, with the edges that each needs.

Residual directions have names. Token 0 is BOS, at position 0; the rest are words. Besides what is
in their circuits, programs read constants (a direction that is always 1, whether a token is BOS),
as compiled programs do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tests.rasp import Place, Program, Transformer, reader_of, writer_of

WORDS = 4  # beside BOS
_SHARP = 40.0  # attention scores that leave nothing to the rest
_SAMPLES = 64

Edge = tuple[str, str, str]
"""Source node, target node, port."""


class Draft:
    """A transformer whose weights are 0 until they are written; one head a block.

    Parameters
    ----------
    length : int
        Positions, BOS among them.
    blocks : int
    outputs : sequence of str
        Directions that are read out.
    others : sequence of str
        Further directions.
    """

    def __init__(
        self, length: int, blocks: int, outputs: Sequence[str], others: Sequence[str] = ()
    ) -> None:
        words = [f"word {i}" for i in range(WORDS + 1)]
        places = [f"place {i}" for i in range(length)]
        names = ["one", *words, *places, *outputs, *others]
        self.length, self.at = length, {name: i for i, name in enumerate(names)}
        self.wide, self.used = length + WORDS + 2, [0] * blocks
        self.model = Transformer(
            WORDS + 1,
            length,
            len(names),
            [(1, self.wide)] * blocks,
            [2 * self.wide] * blocks,
            len(outputs),
        )
        with torch.no_grad():
            self.model.embed.weight[:, self.at["one"]] = 1
            for i, name in enumerate(words):
                self.model.embed.weight[i, self.at[name]] = 1
            for i, name in enumerate(places[1:], start=1):
                self.model.pos_embed.weight[i, self.at[name]] = 1
            for i, name in enumerate(outputs):
                self.model.unembed.weight[i, self.at[name]] = 1

    def select(self, block: int, pairs: Sequence[tuple[str, str, float]]) -> None:
        """Queries that hold the first direction score keys that hold the second."""
        attention = self.model.blocks[block].attention
        scale = _SHARP * self.wide**0.5
        with torch.no_grad():
            for channel, (query, key, score) in enumerate(pairs):
                attention.q_proj.weight[channel, self.at[query]] = score * scale
                attention.k_proj.weight[channel, self.at[key]] = 1

    def move(self, block: int, pairs: Mapping[str, str]) -> None:
        """What is selected is averaged, from each direction to another."""
        attention = self.model.blocks[block].attention
        with torch.no_grad():
            for channel, (source, target) in enumerate(pairs.items()):
                attention.v_proj.weight[channel, self.at[source]] = 1
                attention.o_proj.weight[self.at[target], channel] = 1

    def unit(self, block: int, reads: Mapping[str, float], writes: Mapping[str, float]) -> None:
        """One hidden unit of the block's MLP."""
        layer, unit = self.model.blocks[block], self.used[block]
        self.used[block] += 1
        with torch.no_grad():
            for name, weight in reads.items():
                layer.mlp_in.weight[unit, self.at[name]] = weight
            for name, weight in writes.items():
                layer.mlp_out.weight[self.at[name], unit] = weight

    def program(self, *true: Edge) -> Program:
        """The finished program, its data, and every candidate edge."""
        sources = ["embed", "pos_embed"]
        edges: dict[tuple[Place, Place], bool] = {}
        wanted = {(writer_of(a), reader_of(b, port)) for a, b, port in true}
        for i in range(len(self.model.blocks)):
            for node, ports in ((f"L{i}.H0", "qkv"), (f"L{i}.MLP", ["in"])):
                edges |= _from(sources, node, ports)
                sources.append(node)
        edges |= _from(sources, "output", ["in"])
        assert wanted <= edges.keys()
        edges |= dict.fromkeys(wanted, True)
        return Program(self.model, sentences(self.length), edges)


def _from(
    sources: Sequence[str], node: str, ports: Sequence[str]
) -> dict[tuple[Place, Place], bool]:
    return {(writer_of(source), reader_of(node, p)): False for source in sources for p in ports}


def sentences(length: int) -> Tensor:
    """BOS, then words."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1, WORDS + 1, (_SAMPLES, length), generator=generator)
    ids[:, 0] = 0
    return ids


def _words(prefix: str) -> dict[str, str]:
    return {f"word {i}": f"{prefix} {i}" for i in range(1, WORDS + 1)}


def translate(length: int) -> Program:
    """Each word is replaced by the next one, by an MLP."""
    out = list(_words("next").values())
    draft = Draft(length, 1, out)
    for i, word in enumerate(_words("next")):
        draft.unit(0, {word: 1}, {out[(i + 1) % WORDS]: 1})
    return draft.program(("embed", "L0.MLP", "in"), ("L0.MLP", "output", "in"))


def previous(length: int) -> Program:
    """The word before, by position; the first word finds BOS."""
    draft = Draft(length, 1, list(_words("before").values()))
    pairs = [(f"place {i}", f"place {i - 1}", 1.0) for i in range(2, length)]
    draft.select(0, [*pairs, ("one", "word 0", 0.5)])
    draft.move(0, _words("before"))
    return draft.program(
        ("pos_embed", "L0.H0", "q"),
        ("pos_embed", "L0.H0", "k"),
        ("embed", "L0.H0", "v"),
        ("L0.H0", "output", "in"),
    )


def reverse(length: int) -> Program:
    """The sentence backwards: an MLP says where to look."""
    places = range(1, length)
    others = [f"look {i}" for i in places]
    draft = Draft(length, 2, list(_words("back").values()), others)
    for i in places:
        draft.unit(0, {f"place {i}": 1}, {f"look {length - i}": 1})
    draft.select(1, [(f"look {i}", f"place {i}", 1.0) for i in places])
    draft.move(1, _words("back"))
    return draft.program(
        ("pos_embed", "L0.MLP", "in"),
        ("L0.MLP", "L1.H0", "q"),
        ("pos_embed", "L1.H0", "k"),
        ("embed", "L1.H0", "v"),
        ("L1.H0", "output", "in"),
    )


def backwards_class(length: int) -> Program:
    """The same for the class of words, from one MLP that says both where to look and what."""
    places = range(1, length)
    draft = Draft(length, 2, ["found"], ["class", *(f"look {i}" for i in places)])
    for i in places:
        draft.unit(0, {f"place {i}": 1}, {f"look {length - i}": 1})
    for i in (1, 2):
        draft.unit(0, {f"word {i}": 1}, {"class": 1})
    draft.select(1, [(f"look {i}", f"place {i}", 1.0) for i in places])
    draft.move(1, {"class": "found"})
    return draft.program(
        ("pos_embed", "L0.MLP", "in"),
        ("embed", "L0.MLP", "in"),
        ("L0.MLP", "L1.H0", "q"),
        ("pos_embed", "L1.H0", "k"),
        ("L0.MLP", "L1.H0", "v"),
        ("L1.H0", "output", "in"),
    )


def induction(length: int) -> Program:
    """What came after the same word before: a head that finds what an earlier head has moved."""
    before = _words("before")
    draft = Draft(length, 2, list(_words("then").values()), list(before.values()))
    draft.select(0, [(f"place {i}", f"place {i - 1}", 1.0) for i in range(2, length)])
    draft.move(0, before)
    pairs = [(word, moved, 1.0) for word, moved in before.items()]
    draft.select(1, [*pairs, ("one", "word 0", 0.5)])
    draft.move(1, _words("then"))
    return draft.program(
        ("pos_embed", "L0.H0", "q"),
        ("pos_embed", "L0.H0", "k"),
        ("embed", "L0.H0", "v"),
        ("embed", "L1.H0", "q"),
        ("L0.H0", "L1.H0", "k"),
        ("embed", "L1.H0", "v"),
        ("L1.H0", "output", "in"),
    )


def count(length: int) -> Program:
    """How often the first word occurs: 1 / (1 + n) by attention, then n by an MLP."""
    out = [f"n={n}" for n in range(length)]
    draft = Draft(length, 1, out, ["share"])
    draft.select(0, [("one", "word 1", 1.0), ("one", "word 0", 1.0)])
    draft.move(0, {"word 0": "share"})
    steep = 4.0 * length**2
    for n in range(1, length):  # a step from n - 1 to n
        middle = (1 / n + 1 / (n + 1)) / 2
        for shift, sign in ((0.5, 1.0), (-0.5, -1.0)):
            reads = {"share": -steep, "one": steep * middle + shift}
            draft.unit(0, reads, {out[n]: sign, out[n - 1]: -sign})
    draft.unit(0, {"one": 1}, {out[0]: 1})
    return draft.program(
        ("embed", "L0.H0", "k"), ("L0.H0", "L0.MLP", "in"), ("L0.MLP", "output", "in")
    )


PROGRAMS: dict[str, Callable[[int], Program]] = {
    build.__name__: build
    for build in (translate, previous, reverse, backwards_class, induction, count)
}
