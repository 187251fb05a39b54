"""Two circuits compared: neurons matched, overlaps beside chance, differences, transplants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.circuit_arrays import Numbers, Side, inverse, partners, side_of
from neurograph.comparison.compare_options import CompareOptions
from neurograph.comparison.comparison import Comparison
from neurograph.comparison.comparison_tables import compared_edges, compared_neurons, compared_paths
from neurograph.comparison.differences import Samples, same_samples, sample_effects, steps_of
from neurograph.comparison.layers_matched import compared_layers, count_by_layer
from neurograph.comparison.null import beside_null, permuted
from neurograph.comparison.overlap import MEASURES, Overlaps
from neurograph.comparison.pairs import Union, union_of
from neurograph.comparison.refusals import check_comparable, same_data
from neurograph.comparison.transplant import no_transplants, transplant
from neurograph.effects.budget import parse_budget
from neurograph.matching.activation import by_activation, with_cka
from neurograph.matching.given import by_mapping, by_name
from neurograph.matching.matching import Matching

__all__ = ["compare_circuits"]


def compare_circuits(
    a: Circuit, b: Circuit, names: tuple[str, str], options: CompareOptions
) -> Comparison:
    """Compare two circuits; see `compare`."""
    notes = check_comparable(a, b, names, options)
    return _compared(side_of(a), side_of(b), names, notes, options)


def _compared(
    a: Side, b: Side, names: tuple[str, str], notes: Sequence[str], options: CompareOptions
) -> Comparison:
    attached = a.circuit.is_attached and b.circuit.is_attached
    # Chance must not depend on who is named first: it draws for the circuits in their own order.
    turned = b.key() < a.key()
    matching = _matching(a.circuit, b.circuit, options, turned)
    order = (b, a, matching.flipped()) if turned else (a, b, matching)
    measures, null, by_layer = _measures(*order, options)
    partner = partners(a, b, matching)
    union = union_of(a, b, partner)
    samples = _samples(a, b, union, options)
    paired = attached and same_samples(a.circuit.study, b.circuit.study)
    tables = (
        compared_neurons(a, b, union.neurons, samples, matching, paired=paired),
        compared_edges(a, b, union.edges, samples, paired=paired),
        compared_paths(a, b, union.paths, samples, paired=paired),
    )
    transplants = _transplants(a, b, partner, options)
    return Comparison(
        a.circuit.detach(),
        b.circuit.detach(),
        names,
        matching,
        measures,
        null,
        compared_layers(a, b, matching, count_by_layer(a, b, matching, partner), by_layer),
        transplants,
        (*notes, *_notes(matching, names, samples, paired=paired)),
        {"options": options.describe()},
        *tables,
    )


def _matching(a: Circuit, b: Circuit, options: CompareOptions, turned: bool) -> Matching:
    activations: dict[str, Any] = {"samples": options.samples, "seed": options.seed}
    activations["progress"] = options.progress
    if options.match == "activation":
        # Of equally good matchings the same one must be chosen, whoever is named first.
        pair = (b, a) if turned else (a, b)
        activations |= {"align": options.align, "least": options.least}
        matching = by_activation(*pair, options.data, **activations)
        return matching.flipped() if turned else matching
    named = by_mapping(a, b, options.match) if isinstance(options.match, Mapping) else by_name(a, b)
    can_run = a.is_attached and b.is_attached
    if can_run and (options.data is not None or same_data(a, b)):
        return with_cka(named, a, b, options.data, **activations)
    return named


def _measures(
    a: Side, b: Side, matching: Matching, options: CompareOptions
) -> tuple[pd.DataFrame, dict[str, NDArray[np.float64]], Numbers]:
    """Measures beside chance, chance itself, and by chance the neurons that layers share.

    The last is ``[draws, pairs of layers]``.
    """
    partner, overlaps = partners(a, b, matching), Overlaps(a, b)
    null = np.empty((options.draws, len(MEASURES)))
    common = np.empty((options.draws, len(matching.layers)), dtype=np.int64)
    every = permuted(a, b, partner, options.draws, options.seed, options.progress)
    for row, by_layer, drawn in zip(null, common, every, strict=True):
        row[:] = list(overlaps(drawn).values())
        by_layer[:] = count_by_layer(a, b, matching, drawn)
    columns = {name: null[:, place] for place, name in enumerate(MEASURES)}
    return beside_null(overlaps(partner), null), columns, common


def _samples(a: Side, b: Side, union: Union, options: CompareOptions) -> list[Samples | None]:
    """Effects of all that either circuit has, in each model that there is, sample by sample."""
    budget = parse_budget(options.budget)
    steps = steps_of(a, b, union, budget)
    seconds = None if budget.seconds is None else budget.seconds / 2  # of each model
    sides: tuple[tuple[Literal[0, 1], Side], ...] = ((0, a), (1, b))
    return [
        sample_effects(side, union, which, steps, seconds=seconds, progress=options.progress)
        if side.circuit.is_attached
        else None
        for which, side in sides
    ]


def _transplants(a: Side, b: Side, partner: Numbers, options: CompareOptions) -> pd.DataFrame:
    """Keep each circuit in the other's model, where there is one."""
    tables = [no_transplants()]
    to_b = inverse(partner, len(a))
    for side, other, into, to in ((a, b, "a", partner), (b, a, "b", to_b)):
        if side.circuit.is_attached and options.transplants:
            kept = to[np.flatnonzero(other.kept)]
            tables.append(transplant(side, kept[kept >= 0], into, options))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _notes(
    matching: Matching,
    names: tuple[str, str],
    samples: Sequence[Samples | None],
    *,
    paired: bool,
) -> Iterator[str]:
    ties = matching.ties()
    if len(ties):
        yield (
            f"{len(ties)} groups of neurons act alike, and chance chose which of them correspond: "
            "see matching.ties()"
        )
    both = zip(names, samples, strict=True)
    without = " and ".join(name for name, some in both if some is None)
    if without:
        yield f"no model is attached to {without}: nothing was measured there"
    left = max((some.left for some in samples if some is not None), default=0)
    if left:
        yield f"{left:,} effects were not measured again for want of time: raise budget="
    if not paired:
        yield "standard errors of differences are those of independent samples"
