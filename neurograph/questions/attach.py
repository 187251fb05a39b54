"""A circuit given its model again, after a check that it still says what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from neurograph.circuit.circuit import Circuit
from neurograph.circuit.paths import Path
from neurograph.effects.contrast import as_contrast
from neurograph.effects.effect_table import TOTAL
from neurograph.effects.exact import total_effects
from neurograph.effects.selection import SIGNS
from neurograph.errors import DataError, ModelError, OptionError
from neurograph.model.layers import Neuron
from neurograph.model.target import describe_target
from neurograph.preparation.base_study import MEANING
from neurograph.preparation.options import OPTIONS, StudyOptions
from neurograph.questions.study import Study
from neurograph.utils.checks import shown

__all__ = ["attach"]

_PATHS = 2  # of each sign
_RELATIVE, _OF_LARGEST = 1e-3, 1e-5  # float32 on another machine


def attach(circuit: Circuit, model: nn.Module, data: Any, **given: Any) -> Circuit:
    """Give a circuit the model and data it was found with; see `Circuit.attach`."""
    known = circuit.provenance
    described = known["options"]
    kind = known["target"].get("kind", "callable" if known["target"]["index"] is None else "index")
    if kind == "callable" and "target" not in given:
        raise OptionError("the circuit's target is a callable, which no file holds: pass target=")
    if "contrast" not in given:
        given["contrast"] = as_contrast(described["contrast"])
    if described["reference"] == "given" and "reference" not in given:
        raise OptionError("the circuit's reference samples were given: pass reference= again")
    if described.get("basis") and "basis" not in given:
        raise OptionError("the circuit's neurons are of a basis, which no file holds: pass basis=")
    if described["profile"] == "given" and "profile" not in given:
        raise OptionError("the circuit was found with a profile of its own: pass profile= again")
    target = given.pop("target", known["target"]["index"])
    options = {n: v for n, v in described.items() if n in OPTIONS[StudyOptions]}
    options |= {"profile": None, "basis": None} | given
    study = Study(model, data, target, **options)
    found = study.provenance
    for part, key, error in (("model", "hash", ModelError), ("data", "fingerprint", DataError)):
        if found[part][key] != known[part][key]:
            raise error(
                f"this is not the {part} of the circuit ({key} {found[part][key][:12]}… instead of "
                f"{known[part][key][:12]}…)"
            )
    for name in given.keys() & {*MEANING, "seed"}:
        if found["options"][name] != described.get(name, {}):
            raise OptionError(
                f"{name}= says {shown(found['options'][name])}, but the circuit was found with "
                f"{shown(described.get(name))}: "
                + (f"pass the same {name}=" if name == "basis" else f"leave {name}= out")
            )
    if found["data"]["reference"] != known["data"]["reference"]:
        raise OptionError(
            "the reference samples are not those of the circuit: leave reference= out, or pass the "
            "same samples again"
        )
    if "narrow" in known:
        study.add_note("shortcuts that were wrong when the circuit was found are left out")
        study.experiment.narrow = known["narrow"]
        study.experiment.replay.one_by_one |= known["one_by_one"]
    attached = replace(circuit, _study=study)
    _check_agreement(circuit, attached, study)
    return attached


def _check_agreement(circuit: Circuit, attached: Circuit, study: Study) -> None:
    """Measure a few of the stored paths again: the strongest of each sign must come out alike.

    Raises
    ------
    OptionError
        The study explains another target, or a path measures otherwise; both are named.
    """
    known, asked = circuit.provenance["target"], describe_target(study.target)
    if known["index"] != asked["index"]:
        raise OptionError(
            f"the circuit explains {known['name']!r}, target= says {asked['name']!r}: leave "
            "target= out, or search for that target"
        )
    stored = _strongest(circuit) or _totals(circuit)
    if not stored:
        return
    if len(stored[0].neurons) > 1:
        again = [path.effect for path in attached.measure([path.neurons for path in stored])]
    else:
        again = [_total_effect(study, path.neurons[0]) for path in stored]
    largest = max(abs(path.effect) for path in stored)
    for one, other in zip(stored, again, strict=True):
        close = _RELATIVE * abs(one.effect) + _OF_LARGEST * largest
        if not abs(one.effect - other) <= close:
            path = " → ".join(map(str, one.names))
            raise OptionError(
                f"the effect of {path} was measured as {one.effect:+.4g} and is {other:+.4g} "
                "now: pass the target (and contrast, reference) that the circuit was found with"
            )


def _totals(circuit: Circuit) -> list[Path]:
    """Where no path is stored: the kept neurons of the largest measured total effects."""
    kept = [(n, d) for n, d in circuit.graph.nodes(data=True) if d.get(TOTAL.measured, True)]
    kept.sort(key=lambda item: -abs(item[1][TOTAL.effect]))
    return [
        Path((neuron,), data[TOTAL.effect], data[TOTAL.stderr], True, (data["name"],))
        for neuron, data in kept[: 2 * _PATHS]
    ]


def _total_effect(study: Study, neuron: Neuron) -> float:
    with study.open() as experiment:
        unit = experiment.units(neuron.layer).unit(neuron)
        return float(total_effects(experiment, neuron.layer, [unit]).effect[0])


def _strongest(circuit: Circuit) -> list[Path]:
    found: list[Path] = []
    for sign in SIGNS:
        way = 1 if sign == "positive" else -1
        own = (path for path in circuit.strongest if path.measured and path.effect * way > 0)
        found += [path for path, _ in zip(own, range(_PATHS), strict=False)]
    return found
