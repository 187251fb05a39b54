"""Notes on a search: what a reader of its result must know besides the numbers, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from neurograph.circuit.paths import format_effect
from neurograph.discovery.frontier import SearchState
from neurograph.effects.effect_table import CIRCUIT, TOTAL, EffectArrays, EffectTable
from neurograph.effects.selection import SENSE, SIGNS, Sign

__all__ = ["search_notes"]

_SHOWN = 3  # examples in a sentence
_VERBS: Mapping[Sign, str] = {"positive": "raises", "negative": "lowers"}


def search_notes(state: SearchState, target: str, name: Callable[[str, int], str]) -> list[str]:
    """Say where a search ended early, what it left out, and where signs disagree.

    Parameters
    ----------
    state : SearchState
    target : str
        What the target is called.
    name : callable
        From a layer and the number of a neuron to what it is called.
    """
    layers = [layer for layer in state.scores if layer not in state.ends]
    if not any(state.kept.values()):
        return [_nothing(state, target)]
    said = [*_hardly_moving(state, target), *_ended(state, target, layers)]
    if state.edges_left:
        count = sum(map(len, state.edges))
        said.append(
            f"only the strongest {count:,} of {count + state.edges_left:,} edges are in the "
            "circuit: a stricter keep= makes it one to read"
        )
    left_out = [text for layer in layers if (text := _left_out(state, layer, name))]
    if left_out:
        more = len(left_out) - _SHOWN
        said.append(
            "left out, though stronger in total than a kept one of their layer and sign: "
            f"{'; '.join(left_out[:_SHOWN])}"
            f"{f'; and some of {more} layers more' if more > 0 else ''} (a wider keep= holds more)"
        )
    disagreeing = list(_disagreeing(state, layers, name))
    if disagreeing:
        more = len(disagreeing) - _SHOWN
        said.append(
            f"signs differ: {', '.join(disagreeing[:_SHOWN])}"
            f"{f' and {more} more' if more > 0 else ''}: the total effect says which way a neuron "
            "works in the whole model"
        )
    return said


def _hardly_moving(state: SearchState, target: str) -> Iterator[str]:
    """Say so where the target itself may not move between the values of the contrast."""
    ends = [
        (state.scores[layer][TOTAL], kept)
        for layer, kept in state.kept.items()
        if layer in state.ends
    ]
    if ends and not any(table.certain[kept].any() for table, kept in ends):
        yield (
            f"between the values of this contrast the mean of {target} moves by no more than its "
            "standard error, and so may all before it: contrast='quantiles' moves it, or a target "
            "about each sample's own answer"
        )


def _nothing(state: SearchState, target: str) -> str:
    if not any(map(_does_anything, state.scores.values())):
        return f"nothing was kept: every effect on {target} is exactly 0"
    if not any(map(_is_known, state.scores.values())):
        return (
            f"nothing was kept: every effect on {target} that was measured is exactly 0, and so is "
            "every estimate of the others (scorer='exact' measures them all): the target may not "
            "read what is searched"
        )
    return (
        f"nothing was kept: no effect on {target} passes keep= and is farther from 0 than its "
        "standard error (more reference samples make that smaller)"
    )


def _does_anything(table: EffectTable) -> bool:
    return any(map(_is_any, table.values()))


def _is_known(table: EffectTable) -> bool:
    """Whether an effect or an estimate of a layer is not 0."""
    return any(np.nan_to_num(effects.effect).any() for effects in table.values())


def _is_any(effects: EffectArrays) -> bool:
    """Whether an effect is not 0, or may not be: estimates of 0 beside what was measured."""
    doubtful = effects.measured.any() and not effects.measured.all()
    numbers = (effects.effect, effects.stderr)
    return bool(doubtful or any(np.nan_to_num(values).any() for values in numbers))


def _ended(state: SearchState, target: str, layers: Sequence[str]) -> Iterator[str]:
    """Say of which layers nothing was kept, and of which nothing of one sign."""
    empty = [layer for layer in layers if not state.kept.get(layer)]
    idle = [layer for layer in empty if not _does_anything(state.scores[layer])]
    if idle:
        yield (
            f"every effect of {_listed(idle)} is exactly 0: nothing there moves, or nothing of it "
            f"reaches {target}"
        )
    empty = [layer for layer in empty if layer not in idle]
    if empty:
        yield (
            f"nothing was kept of {_listed(empty)}: no neuron there has an effect, through what "
            "was kept behind it, that passes keep= and is farther from 0 than its standard error"
        )
    for sign in SIGNS:
        without = [
            layer
            for layer, kept in state.kept.items()
            if layer in layers
            and not (SENSE[sign] * state.scores[layer][CIRCUIT].effect[kept] > 0).any()
        ]
        if without:
            yield (
                f"no kept neuron of {_listed(without)} {_VERBS[sign]} {target} through the "
                "circuit, though single paths through them may"
            )


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name) for name in names[:_SHOWN]]
    more = len(names) - len(shown)
    return f"{', '.join(shown)} and {more} layers more" if more else ", ".join(shown)


def _left_out(state: SearchState, layer: str, name: Callable[[str, int], str]) -> str | None:
    """Neurons that were not kept though in total they do more than a kept one."""
    totals, kept = state.scores[layer][TOTAL], state.kept.get(layer, [])
    total, certain = totals.effect, totals.certain
    larger: list[int] = []
    for sense in SENSE.values():
        own = sense * total[kept]
        if (own > 0).any():
            larger += np.flatnonzero(certain & (sense * total > own[own > 0].min())).tolist()
    larger = sorted(set(larger) - set(kept), key=lambda i: -abs(total[i]))
    if not larger:
        return None
    first = larger[0]
    strongest = f"{name(layer, first)} {_shown(totals, first)}"
    if not totals.measured[first]:
        strongest += ", estimated"
    return f"{len(larger)} of {layer!r} (the strongest {strongest})"


def _disagreeing(
    state: SearchState, layers: Sequence[str], name: Callable[[str, int], str]
) -> Iterator[str]:
    for layer in layers:
        through, total = (state.scores[layer][kind] for kind in (CIRCUIT, TOTAL))
        differ = through.certain & total.certain & (through.effect * total.effect < 0)
        for i in state.part(layer, None):
            if differ[i]:
                here, in_all = _shown(through, i), _shown(total, i)
                yield f"{name(layer, i)} ({here} through the circuit, {in_all} in total)"


def _shown(effects: EffectArrays, unit: int) -> str:
    return format_effect(effects.effect[unit], effects.stderr[unit])
