"""Checks before a comparison: what may not be compared unasked, and notes where it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neurograph.circuit.circuit import Circuit
from neurograph.comparison.compare_options import CompareOptions
from neurograph.effects.scorer import as_method, method_text
from neurograph.errors import OptionError

__all__ = ["check_comparable", "same_data"]

_MEANING = ("layers", "groups", "basis", "positions", "contrast", "background", "reference", "keep")


def check_comparable(
    a: Circuit, b: Circuit, names: tuple[str, str], options: CompareOptions
) -> tuple[str, ...]:
    """Refuse circuits of different targets or data, unless that was asked for.

    Returns
    -------
    tuple of str
        What differs nevertheless.

    Raises
    ------
    OptionError
        Targets or data differ, and ``across`` does not name them; or neurons cannot be matched by
        activation, because data differ and none were given.
    """
    notes = []
    targets = [_target(circuit) for circuit in (a, b)]
    if targets[0] != targets[1]:
        differ = f"{names[0]} is about target {targets[0]}, {names[1]} about {targets[1]}"
        if "target" not in options.across:
            raise OptionError(f"{differ}: compare them with across=('target',)")
        notes.append(f"targets differ: {differ}")
    if not same_data(a, b):
        prints = [_fingerprint(circuit)[:12] for circuit in (a, b)]
        differ = f"{names[0]} is of data {prints[0]}…, {names[1]} of {prints[1]}…"
        if "data" not in options.across:
            raise OptionError(f"{differ}: compare them with across=('data',)")
        if options.match == "activation" and options.data is None:
            raise OptionError(
                f"{differ}: pass data=, on which the activations of both can be compared"
            )
        notes.append(f"data differ: {differ}")
    own = _found_bases(a) and a.provenance.get("model") != b.provenance.get("model")
    if own and options.match == "identity":
        notes.append(
            "directions or families that are found differ from model to model, and are paired by "
            "their numbers: match='activation' pairs those that are alike"
        )
    return (*notes, *_options(a, b, names))


def _found_bases(circuit: Circuit) -> bool:
    """Whether neurons of some layer were found from data."""
    bases = circuit.provenance.get("options", {}).get("basis") or {}
    return any("samples" in basis for basis in bases.values())


def same_data(a: Circuit, b: Circuit) -> bool:
    """Whether two circuits were searched on the same data."""
    return _fingerprint(a) == _fingerprint(b)


def _target(circuit: Circuit) -> str:
    target = circuit.provenance.get("target", {"name": circuit.target, "index": None})
    index = "" if target["index"] is None else f" (output {target['index']})"
    return f"{target['name']!r}{index}"


def _fingerprint(circuit: Circuit) -> str:
    return str(circuit.provenance.get("data", {}).get("fingerprint", ""))


def _options(a: Circuit, b: Circuit, names: tuple[str, str]) -> Iterator[str]:
    """Say which options of the searches give effects or neurons another meaning."""
    one, other = (circuit.provenance.get("options", {}) for circuit in (a, b))
    scorers = [options.get("scorer") for options in (one, other)]
    if scorers[0] != scorers[1] and any(map(_gives_estimates, scorers)):
        here, there = map(method_text, scorers)
        yield f"scorer= differs: {here} for {names[0]}, {there} for {names[1]}"
    for key in _MEANING:
        values: list[Any] = [options.get(key) or None for options in (one, other)]
        if values[0] != values[1]:
            yield f"{key}= differs: {values[0]} for {names[0]}, {values[1]} for {names[1]}"


def _gives_estimates(scorer: Any) -> bool:
    """Whether a scorer, as a search's options tell it, estimates; one of the user's own may."""
    try:
        return scorer is not None and as_method(scorer).estimates
    except OptionError:
        return True
