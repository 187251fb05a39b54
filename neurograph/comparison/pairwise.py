"""Two circuits compared: neurons matched, overlaps beside chance, differences, transplants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.circuit import Circuit
from neurograph.comparison.activation import by_activation, with_cka
from neurograph.comparison.by_layer import count_by_layer, layer_table
from neurograph.comparison.differences import (
    Samples,
    Union,
    jobs_of,
    same_samples,
    sample_effects,
)
from neurograph.comparison.matching import Matching, by_mapping, by_name
from neurograph.comparison.null import measured, permuted
from neurograph.comparison.options import Options
from neurograph.comparison.overlap import MEASURES, Overlaps
from neurograph.comparison.pairs import edge_pairs, neuron_pairs, path_pairs
from neurograph.comparison.refusals import check_comparable, same_data
from neurograph.comparison.result import Comparison
from neurograph.comparison.sides import Numbers, Side, partners, side_of
from neurograph.comparison.tables import edge_table, neuron_table, path_table
from neurograph.comparison.transplant import no_transplants, transplant
from neurograph.scoring.budget import parse_budget

__all__ = ["compare_two"]


def compare_two(a: Circuit, b: Circuit, names: tuple[str, str], options: Options) -> Comparison:
    """Compare two circuits; see `compare`.

    Which of two optimal matchings is found, and which permutations are drawn, must not depend on
    who is named first: the circuits are compared in an order of their own.
    """
    sides = side_of(a), side_of(b)
    turned = sides[1].key() < sides[0].key()
    first, second = (sides[1], sides[0]) if turned else sides
    found = _compared(first, second, (names[1], names[0]) if turned else names, options)
    return found.flipped() if turned else found


def _compared(a: Side, b: Side, names: tuple[str, str], options: Options) -> Comparison:
    notes = check_comparable(a.circuit, b.circuit, names, options)
    attached = [side.circuit.is_attached for side in (a, b)]
    matching = _matching(a.circuit, b.circuit, options)
    partner = partners(a, b, matching)
    overlaps = Overlaps(a, b)
    null, by_layer = _null(a, b, matching, partner, overlaps, options)
    union = Union(neuron_pairs(a, b, partner), edge_pairs(a, b, partner), path_pairs(a, b, partner))
    samples = _samples(a, b, union, options)
    paired = all(attached) and same_samples(a.circuit.study, b.circuit.study)
    tables = (
        neuron_table(a, b, union.neurons, samples, matching, paired=paired),
        edge_table(a, b, union.edges, samples, paired=paired),
        path_table(a, b, union.paths, samples, paired=paired),
    )
    return Comparison(
        a.circuit.detach(),
        b.circuit.detach(),
        names,
        matching,
        measured(overlaps(partner), null),
        {name: null[:, place] for place, name in enumerate(MEASURES)},
        layer_table(a, b, matching, count_by_layer(a, b, matching, partner), by_layer),
        _transplants(a, b, partner, options),
        (*notes, *_notes(matching, names, samples, paired)),
        {"options": options.describe()},
        *tables,
    )


def _matching(a: Circuit, b: Circuit, options: Options) -> Matching:
    told: dict[str, Any] = {"samples": options.samples, "seed": options.seed}
    told["progress"] = options.progress
    if options.match == "activation":
        return by_activation(a, b, options.data, align=options.align, least=options.least, **told)
    named = by_mapping(a, b, options.match) if isinstance(options.match, Mapping) else by_name(a, b)
    can_run = a.is_attached and b.is_attached
    if can_run and (options.data is not None or same_data(a, b)):
        return with_cka(named, a, b, options.data, **told)
    return named


def _null(
    a: Side, b: Side, matching: Matching, partner: Numbers, overlaps: Overlaps, options: Options
) -> tuple[NDArray[np.float64], Numbers]:
    """Measures by chance ``[draws, measures]``, common neurons ``[draws, pairs of layers]``."""
    null = np.empty((options.draws, len(MEASURES)))
    common = np.empty((options.draws, len(matching.layers)), dtype=np.int64)
    every = permuted(a, b, partner, options.draws, options.seed, options.progress)
    for row, by_layer, drawn in zip(null, common, every, strict=True):
        row[:] = astuple(overlaps(drawn))
        by_layer[:] = count_by_layer(a, b, matching, drawn)
    return null, common


def _samples(a: Side, b: Side, union: Union, options: Options) -> list[Samples | None]:
    """Effects of all that either circuit has, in each model that there is, sample by sample."""
    budget = parse_budget(options.budget)
    jobs = jobs_of(a, b, union, budget)
    seconds = None if budget.seconds is None else budget.seconds / 2  # of each model
    sides: tuple[tuple[Literal[0, 1], Side], ...] = ((0, a), (1, b))
    return [
        sample_effects(side, union, which, jobs, seconds=seconds, progress=options.progress)
        if side.circuit.is_attached
        else None
        for which, side in sides
    ]


def _transplants(a: Side, b: Side, partner: Numbers, options: Options) -> pd.DataFrame:
    """Keep each circuit in the other's model, where there is one."""
    there = np.full(len(a), -1)
    matched = np.flatnonzero(partner >= 0)
    there[partner[matched]] = matched
    tables = [no_transplants()]
    for side, other, into, to in ((a, b, "a", partner), (b, a, "b", there)):
        if side.circuit.is_attached and options.transplants:
            kept = to[np.flatnonzero(other.kept)]
            tables.append(transplant(side, kept[kept >= 0], into, options))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _notes(
    matching: Matching, names: tuple[str, str], samples: Sequence[Samples | None], paired: bool
) -> Iterator[str]:
    ties = matching.ties()
    if len(ties):
        yield (
            f"{len(ties)} groups of neurons act alike, and chance chose which of them correspond: "
            "see matching.ties()"
        )
    told = list(zip(names, samples, strict=True))
    without = " and ".join(name for name, some in told if some is None)
    if without:
        yield f"no model is attached to {without}: nothing was measured in it"
    left = max((some.left for some in samples if some is not None), default=0)
    if left:
        yield f"{left:,} effects were not measured again for want of time: raise budget="
    if not paired:
        yield "standard errors of differences are those of independent samples"
