"""Who races, on what, by which method: the table that everything else follows.

Nothing but the standard library is imported here, so that any environment can read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTENDERS", "ENTRIES", "OWN", "Contender", "Entry", "listing"]

OWN = "neurograph"


@dataclass(frozen=True)
class Contender:
    """A library that takes part.

    Attributes
    ----------
    name : str
        As it is called in the tables; its side is ``race/sides/<name with _ for ->.py``.
    environment : str or None
        The folder below ``.venv-peers/`` that it lives in; None: the project's own.
    package : str
        The distribution whose version is noted.
    licence, about : str
    """

    name: str
    environment: str | None
    package: str
    licence: str
    about: str

    def python(self, environments: Path) -> Path | None:
        """Return its interpreter; None for this one."""
        if self.environment is None:
            return None
        return environments / self.environment / "bin/python"


@dataclass(frozen=True)
class Entry:
    """One contender's method on one task.

    Attributes
    ----------
    task, contender, method : str
        `method` is a key of the side's ``METHODS``.
    kind : str
        ``exact`` (every score is an intervention), ``gradient`` (one pass forwards and backwards,
        or a few), ``integrated`` (such passes along a way), ``relevance``, ``mixed`` or ``chance``.
    ranks : bool
        Whether it scores everything, so that its ranking is judged too.
    about : str
        What is called, with the settings that matter.
    """

    task: str
    contender: str
    method: str
    kind: str
    about: str
    ranks: bool = True

    @property
    def key(self) -> str:
        """A name for files and the command line."""
        return f"{self.task}.{self.contender}.{self.method}"


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OWN, None, "neurograph-torch", "MIT", "this library: `score`"),
        Contender("captum", "captum", "captum", "BSD-3-Clause", "attributions of layers by hooks"),
        Contender(
            "zennit-crp",
            "captum",
            "zennit-crp",
            "BSD-3-Clause-Clear, on zennit, LGPL-3.0-or-later",
            "relevance of channels",
        ),
        Contender(
            "auto-circuit",
            "auto-circuit",
            "auto-circuit",
            "its package names no licence",
            "edges of TransformerLens models",
        ),
        Contender("notebook", None, "torch", "part of this project", "the original loop"),
        Contender("chance", None, "torch", "part of this project", "a random order"),
    )
}

_CONDUCTANCE = "LayerConductance, 50 steps from the baseline"
_GRADIENT = "LayerGradientXActivation"
_ABLATION = "LayerFeatureAblation, one neuron or channel at a time"

ENTRIES = (
    Entry("heart", OWN, "exact", "exact", 'score(of="neurons", scorer="exact")'),
    Entry("heart", OWN, "gradient", "gradient", 'score(of="neurons", scorer="gradient")'),
    Entry(
        "heart",
        OWN,
        "integrated",
        "integrated",
        'score(of="neurons", scorer="integrated"), 5 steps of a joint move',
    ),
    Entry("heart", OWN, "auto", "mixed", 'score(of="neurons")'),
    Entry("heart", "captum", "ablation", "exact", _ABLATION),
    Entry("heart", "captum", "gradient", "gradient", _GRADIENT),
    Entry("heart", "captum", "conductance", "integrated", _CONDUCTANCE),
    Entry("heart", "notebook", "loop", "exact", "the model once for every neuron and quantile"),
    Entry("heart", "chance", "random", "chance", "a random order of the neurons"),
    Entry("heart", OWN, "input_edges", "exact", 'score(of="edges"), input → linear1', False),
    Entry(
        "heart",
        "captum",
        "neuron_conductance",
        "integrated",
        "NeuronConductance of 32 neurons of linear1: what each feature does through each of them",
        False,
    ),
    Entry("digits", OWN, "exact", "exact", 'score(of="neurons", scorer="exact")'),
    Entry("digits", OWN, "gradient", "gradient", 'score(of="neurons", scorer="gradient")'),
    Entry(
        "digits",
        OWN,
        "integrated",
        "integrated",
        'score(of="neurons", scorer="integrated"), 5 steps of a joint move',
    ),
    Entry("digits", OWN, "auto", "mixed", 'score(of="neurons")'),
    Entry("digits", "captum", "ablation", "exact", _ABLATION),
    Entry("digits", "captum", "gradient", "gradient", _GRADIENT),
    Entry("digits", "captum", "conductance", "integrated", _CONDUCTANCE),
    Entry(
        "digits",
        "zennit-crp",
        "relevance",
        "relevance",
        "CondAttribution with EpsilonPlusFlat, relevance summed over each channel",
    ),
    Entry(
        "digits",
        "zennit-crp",
        "graph",
        "relevance",
        "AttributionGraph, the 8 strongest of a layer, of each sample's winning logit",
        False,
    ),
    Entry("digits", "chance", "random", "chance", "a random order of the channels and neurons"),
    Entry("induction", OWN, "exact", "exact", 'score(of="edges", scorer="exact")'),
    Entry("induction", OWN, "hybrid", "mixed", 'score(of="edges", scorer="hybrid")'),
    Entry("induction", OWN, "gradient", "gradient", 'score(of="edges", scorer="gradient")'),
    Entry(
        "induction",
        OWN,
        "integrated",
        "integrated",
        'score(of="edges", scorer="integrated"), 5 steps of a joint move',
    ),
    Entry("induction", OWN, "auto", "mixed", 'score(of="edges")'),
    Entry(
        "induction",
        "auto-circuit",
        "patching",
        "exact",
        "patch_mode, 64 random edges, one at a time, masks set by hand",
        False,
    ),
    Entry(
        "induction",
        "auto-circuit",
        "gradient",
        "gradient",
        "mask_gradient_prune_scores, mask_val=0 (edge attribution patching)",
    ),
    Entry(
        "induction",
        "auto-circuit",
        "integrated",
        "integrated",
        "mask_gradient_prune_scores, integrated_grad_samples=10",
    ),
    Entry("induction", "chance", "random", "chance", "a random order of the edges"),
)


def listing() -> str:
    """Say the plan as a text, a line an entry."""
    rows = [("entry", "kind", "environment", "ranks", "what is called")]
    for entry in ENTRIES:
        home = CONTENDERS[entry.contender].environment or "project"
        rows.append((entry.key, entry.kind, home, "yes" if entry.ranks else "no", entry.about))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]) for row in rows
    )
