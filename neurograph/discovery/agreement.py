"""Whether a circuit that is given its model again still says what was measured."""

from __future__ import annotations

from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import Path
from neurograph.effects.selection import SIGNS
from neurograph.errors import OptionError
from neurograph.study.study import Study

__all__ = ["check_agreement"]

_PATHS = 2  # of each sign
_RELATIVE, _OF_LARGEST = 1e-3, 1e-5  # float32 on another machine


def check_agreement(circuit: Circuit, attached: Circuit, study: Study) -> None:
    """Measure a few of the stored paths again: the strongest of each sign must come out alike.

    Raises
    ------
    OptionError
        The study explains another target, or a path measures otherwise; both are named.
    """
    known, asked = circuit.provenance["target"], study.provenance["target"]
    if known["index"] != asked["index"]:
        raise OptionError(
            f"the circuit explains {known['name']!r}, target= says {asked['name']!r}: leave "
            "target= out, or search for that target"
        )
    stored = _strongest(circuit)
    if not stored:
        return
    again = attached.measure([path.neurons for path in stored])
    largest = max(abs(path.effect) for path in stored)
    for one, other in zip(stored, again, strict=True):
        close = _RELATIVE * abs(one.effect) + _OF_LARGEST * largest
        if not abs(one.effect - other.effect) <= close:
            told = " → ".join(map(str, one.names))
            raise OptionError(
                f"the path {told} was measured as {one.effect:+.4g} and is {other.effect:+.4g} "
                "now: pass the target (and contrast, reference) that the circuit was found with"
            )


def _strongest(circuit: Circuit) -> list[Path]:
    found: list[Path] = []
    for sign in SIGNS:
        way = 1 if sign == "positive" else -1
        own = (path for path in circuit.strongest if path.measured and path.effect * way > 0)
        found += [path for path, _ in zip(own, range(_PATHS), strict=False)]
    return found
