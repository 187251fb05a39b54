"""Options: each is typed, explained and checked once, for Python and the command line.

Nothing here needs torch, so that the command line can say what it takes without loading it.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, get_args

from neurograph.effects.scorers import SCORERS
from neurograph.errors import OptionError
from neurograph.utils.checks import (
    a_share,
    different_names,
    is_number,
    listed,
    one_of,
    shown,
    whole,
)

if TYPE_CHECKING:
    import networkx as nx
    import torch
    from torchmetrics import Metric

    from neurograph.effects.contrast import Ablation, Background, Contrast
    from neurograph.effects.scorer import Method
    from neurograph.effects.selection import Keep, Sign
    from neurograph.model.basis import Bases
    from neurograph.model.layer_choice import Choice
    from neurograph.model.neuron_names import Places
    from neurograph.model.neurons import Groups
    from neurograph.model.positions import Positions

__all__ = [
    "OPTIONS",
    "SIZES",
    "ExemplarOptions",
    "FaithfulnessOptions",
    "Option",
    "PathOptions",
    "ResponseOptions",
    "ScoreOptions",
    "SearchOptions",
    "StudyOptions",
    "read_options",
    "split_options",
    "with_options",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Check = Callable[[Any], Any]

Part = Literal[
    "active",
    "principal",
    "neurons",
    "families",
    "random",
    "random neurons",
    "random families",
]
PARTS: tuple[Part, ...] = get_args(Part)

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the Mechanistic Interpretability Benchmark (Mueller et al. 2025, arXiv:2504.13151)."""


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and type.

    Attributes
    ----------
    default : Any
    help : str
        What the command line says of it; an option without is none there.
    check : callable or None
        From the value to the one that is used; raises OptionError.
    metavar : str or None
        What the command line calls the value.
    flag : str or None
        What the command line calls the option, where that is not its name.
    """

    default: Any
    help: str = ""
    check: Check | None = None
    metavar: str | None = None
    flag: str | None = None

    def read(self, value: Any) -> Any:
        """The value that is used; OptionError for one that means nothing."""
        return value if self.check is None else self.check(value)


# -- checks ----------------------------------------------------------------------------------------


def _readable(reader: str) -> Check:
    """Check by what will read the value, which stays as the user wrote it; ``module:function``."""
    module, _, function = reader.partition(":")

    def check(value: Any) -> Any:
        getattr(importlib.import_module(f"neurograph.{module}"), function)(value)
        return value

    return check


def _read_by(reader: str) -> Check:
    """The value as a function reads it; ``module:function``."""
    module, _, function = reader.partition(":")

    def check(value: Any) -> Any:
        return getattr(importlib.import_module(f"neurograph.{module}"), function)(value)

    return check


def _among(name: str, choices: Sequence[Any]) -> Check:
    def check(value: Any) -> Any:
        one_of(value, name, choices)
        return value

    return check


def _whole(name: str, least: int, **more: int) -> Check:
    return functools.partial(whole, option=name, least=least, **more)


def _reference(value: Any) -> Any:
    count = is_number(value) or isinstance(value, bool)
    return whole(value, "reference", least=1) if count else value


def _memory(value: Any) -> Any:
    written = _readable("utils.memory:parse_memory")(value)
    return written if isinstance(written, str) else int(written)


def _layers(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value  # which the user may change


def _budget(value: Any) -> Any:
    written = _readable("effects.budget:parse_budget")(value)
    return written if isinstance(written, str) else int(written)


def _levels(levels: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(level) for level in levels)
    except (TypeError, ValueError):
        found = ()
    ascending = all(a < b for a, b in itertools.pairwise(found))
    if len(found) < 2 or not ascending or not all(0 <= level <= 1 for level in found):
        raise OptionError(
            f"levels={shown(levels)} must be two or more ascending quantiles in [0, 1]"
        )
    return found


def _sizes(sizes: Any) -> tuple[float, ...]:
    shares = [a_share(share, "sizes", one=True) for share in listed(sizes, "sizes")]
    if not shares or not all(a < b for a, b in itertools.pairwise(shares)):
        raise OptionError(f"sizes={shown(tuple(shares))} must be ascending shares in (0, 1]")
    return tuple(map(float, shares))


def _counts(counts: Any) -> tuple[int, ...]:
    known = [whole(count, "counts", least=1) for count in listed(counts, "counts")]
    if not known or not all(a < b for a, b in itertools.pairwise(known)):
        raise OptionError(f"counts={shown(tuple(known))} must be ascending whole numbers")
    return tuple(known)


def _parts(parts: Any) -> tuple[Part, ...]:
    known: list[Part] = listed(parts, "parts", "some of " + ", ".join(PARTS))
    for part in known:
        one_of(part, "parts", PARTS)
    if not known or len(set(known)) < len(known):
        raise OptionError(f"parts={shown(parts)}: pass some of {', '.join(PARTS)}, each once")
    return tuple(known)


# -- the options -----------------------------------------------------------------------------------


class StudyOptions(TypedDict, total=False):
    """Options of a `Study`, which explains them, and of all that asks one."""

    profile: nx.DiGraph | None
    layers: Choice | None
    groups: Mapping[str, Groups] | None
    basis: Bases | None
    positions: Positions
    contrast: str | tuple[float, ...] | Contrast
    background: Background
    reference: int | Any
    memory: int | str
    seed: int
    device: torch.device | str | None
    feature_names: Sequence[str] | None
    class_names: Sequence[str] | None
    tokenizer: Any
    progress: bool | None


_STUDY = {
    "profile": Option(None),
    "layers": Option(
        None,
        "Which modules are layers: names or patterns of the last names of their paths, as o_proj, "
        "layers.*.mlp or, for its input side, o_proj:input; else all with parameters.",
        check=_layers,
        metavar="A,B,…",
        flag="choose",
    ),
    "groups": Option(
        None,
        "Channels that move together in layers that match: attention heads, or N equal groups "
        "(repeat).",
        copy.deepcopy,
        metavar="PATTERN=heads|N",
    ),
    "basis": Option(
        None,
        "Parts of layers that match: active:N or principal:N directions, clusters:N for families, "
        "or the path of a dictionary (repeat).",
        metavar="PATTERN=PARTS",
    ),
    "positions": Option(
        "all",
        "Where in a sequence a neuron is: at all positions, at the last, at number N, or a neuron "
        "at each.",
        _read_by("model.positions:check_positions"),
        "all|last|each|N",
    ),
    "contrast": Option(
        "quantiles",
        "Values a neuron moves between: quantiles, pooled, sweep, mean, zero, resample, or two or "
        "more quantiles as 0.25,0.75.",
        _read_by("effects.contrast:as_contrast"),
    ),
    "background": Option(
        "data",
        "What all else is meanwhile: data, mean or zero.",
        _among("background", ("data", "mean", "zero")),
    ),
    "reference": Option(32, "Samples that are the background.", _reference, "N|FILE|MODULE:LOADER"),
    "memory": Option("512MB", "Limit for interventions run at once.", _memory),
    "seed": Option(0, "Makes the result reproducible.", _whole("seed", 0, most=2**63 - 1)),
    "device": Option(None, "Where to run, as cpu or cuda:0."),
    "feature_names": Option(
        None,
        "Input names; else a CSV file's header.",
        functools.partial(different_names, option="feature_names"),
        "A,B,…",
        "features",
    ),
    "class_names": Option(
        None,
        "Names of the targets 0, 1, …",
        functools.partial(different_names, option="class_names"),
        "A,B,…",
        "classes",
    ),
    "tokenizer": Option(None),
    "progress": Option(None),
}

_SCORER = Option(
    "auto",
    f"How effects are found: {', '.join(SCORERS)}. Exact measures all, auto what fits the budget; "
    "the others estimate.",
    _readable("effects.scorer:as_method"),
)
_BUDGET = Option(
    "60s",
    "For auto: as 60s or 5min, or neurons of each layer and sign.",
    _budget,
    "TIME|N",
)


class SearchOptions(TypedDict, total=False):
    """Options of a search beside those of its study; `search` explains them."""

    keep: str | Keep
    scorer: str | Method
    budget: int | str
    paths: int


_SEARCH = {
    "keep": Option(
        "quantile:0.95",
        "Kept of each layer and sign: quantile:0.95, top:20, share:0.8 or above:0.1.",
        _readable("effects.selection:as_keep"),
    ),
    "scorer": _SCORER,
    "budget": _BUDGET,
    "paths": Option(100, "Paths of each sign to measure and store.", _whole("paths", 0)),
}


class ScoreOptions(TypedDict, total=False):
    """Options of scoring beside those of a study; `score` explains them."""

    of: Literal["neurons", "edges"]
    scorer: str | Method
    budget: int | str


_SCORE = {
    "of": Option("neurons", check=_among("of", ("neurons", "edges"))),
    "scorer": _SCORER,
    "budget": _BUDGET,
}


class PathOptions(TypedDict, total=False):
    """Options of the strongest paths beside those of a study; `strongest_paths` explains them."""

    sign: Sign | None
    sources: Places | None
    budget: int | str


_PATHS = {
    "sign": Option(None, check=_among("sign", (None, "positive", "negative"))),
    "sources": Option(None),
    "budget": _BUDGET,
}


class ResponseOptions(TypedDict, total=False):
    """Options of response curves beside those of a study; `response_curves` explains them."""

    neurons: Places | None
    levels: Sequence[float]


_RESPONSES = {
    "neurons": Option(None),
    "levels": Option((0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0), check=_levels),
}


class ExemplarOptions(TypedDict, total=False):
    """Options of exemplars beside those of a study; `Study.exemplars` explains them."""

    neurons: Places | None
    count: int
    between: int


_EXEMPLARS = {
    "neurons": Option(None),
    "count": Option(3, check=_whole("count", 1)),
    "between": Option(1, check=_whole("between", 0)),
}


class FaithfulnessOptions(TypedDict, total=False):
    """Options of faithfulness beside those of a study; `faithfulness` explains them."""

    sizes: Sequence[float]
    ablations: Sequence[Ablation]
    draws: int
    confidence: float
    metric: Metric | None
    corrupt: Any


_FAITHFULNESS = {
    "sizes": Option(SIZES, check=_sizes),
    "ablations": Option(("mean", "resample", "zero")),
    "draws": Option(20, check=_whole("draws", 0)),
    "confidence": Option(0.95, check=functools.partial(a_share, option="confidence")),
    "metric": Option(None),
    "corrupt": Option(None),
}


class SignalOptions(TypedDict, total=False):
    """Options of signals beside those of a study; `Study.signals` explains them."""

    of: Literal["target", "outputs"]
    parts: Sequence[Part]
    counts: Sequence[int]
    samples: int
    draws: int
    confidence: float


_SIGNALS = {
    "of": Option("target", check=_among("of", ("target", "outputs"))),
    "parts": Option(PARTS, check=_parts),
    "counts": Option((1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512), check=_counts),
    "samples": Option(512, check=_whole("samples", 2)),
    "draws": Option(5, check=_whole("draws", 2)),
    "confidence": Option(0.95, check=functools.partial(a_share, option="confidence")),
}

OPTIONS: Mapping[type, Mapping[str, Option]] = {
    StudyOptions: _STUDY,
    SearchOptions: _SEARCH,
    ScoreOptions: _SCORE,
    PathOptions: _PATHS,
    ResponseOptions: _RESPONSES,
    ExemplarOptions: _EXEMPLARS,
    FaithfulnessOptions: _FAITHFULNESS,
    SignalOptions: _SIGNALS,
}


# -- reading them ----------------------------------------------------------------------------------


def read_options(kind: type, given: Mapping[str, Any], of: str) -> dict[str, Any]:
    """Check options, and fill in those that are not given.

    Parameters
    ----------
    kind : type
        Whose options: one of those of `OPTIONS`.
    given : mapping of str to Any
    of : str
        What takes the options, for errors.

    Raises
    ------
    OptionError
        There is no such option, or a value means nothing.

    Examples
    --------
    >>> read_options(ScoreOptions, {"budget": "5min"}, "score")
    {'of': 'neurons', 'scorer': 'auto', 'budget': '5min'}
    """
    known = OPTIONS[kind]
    _refuse_unknown(given, known, of)
    return {name: option.read(given.get(name, option.default)) for name, option in known.items()}


def split_options(
    own: type, given: Mapping[str, Any], of: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the options of a study from those of one question to it; OptionError for others."""
    _refuse_unknown(given, {**OPTIONS[own], **OPTIONS[StudyOptions]}, of)
    of_study = {name: value for name, value in given.items() if name in OPTIONS[StudyOptions]}
    return of_study, {name: value for name, value in given.items() if name in OPTIONS[own]}


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], of: str) -> None:
    for name in given:
        if name in OPTIONS[StudyOptions] and name not in known:
            raise OptionError(
                f"{name}= is an option of a study, not of {of}: pass it to Study(…), or for "
                "another contrast or background ask study.at(contrast=…)"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or list(known)
            raise OptionError(f"{name}= is no option of {of}: did you mean {', '.join(near)}?")


def with_options(*kinds: type, **defaults: Any) -> Callable[[Function], Function]:
    """Let a function that takes ``**options`` show them by name, where `help` and editors look.

    `defaults` are those of this function that differ from the others'.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for kind in kinds:
            for name, option in OPTIONS[kind].items():
                annotation = kind.__annotations__[name].__forward_arg__
                parameters.append(
                    inspect.Parameter(
                        name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=defaults.get(name, option.default),
                        annotation=annotation,
                    )
                )
        shown_as = signature.replace(parameters=parameters)
        function.__signature__ = shown_as  # type: ignore[attr-defined]
        return function

    return decorate
