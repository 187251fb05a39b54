"""Options: each is named, typed, explained and checked once, for Python and the command line."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, TypeVar, get_args, get_type_hints

import networkx as nx
import torch

from neurograph.effects.budget import parse_budget
from neurograph.effects.contrast import Background, Contrast, as_contrast
from neurograph.effects.scorer import Method, as_method
from neurograph.effects.scorers import SCORERS
from neurograph.errors import OptionError
from neurograph.model.layer_choice import Choice
from neurograph.model.neurons import Groups
from neurograph.model.positions import Positions, check_positions
from neurograph.utils import checks
from neurograph.utils.checks import is_number, one_of, whole
from neurograph.utils.memory import parse_memory

__all__ = [
    "BudgetOption",
    "Option",
    "ScorerOption",
    "StudyOptions",
    "check_seed",
    "checked_by",
    "options_of",
    "read_options",
    "split_options",
    "with_options",
]

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and type.

    Attributes
    ----------
    default : Any
    help : str
        What the command line says of it; an option without is none there.
    check : callable, optional
        From the value to the value that is used; raises OptionError.
    metavar : str, optional
        What the command line calls the value.
    flag : str, optional
        What the command line calls the option, where that is not its name.
    """

    default: Any
    help: str = ""
    check: Callable[[Any], Any] | None = None
    metavar: str | None = None
    flag: str | None = None


def checked_by(read: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Let a value stay as the user wrote it, if it can be read."""

    def check(value: Any) -> Any:
        read(value)
        return value

    return check


def _reference(value: Any) -> Any:
    count = is_number(value) or isinstance(value, bool)
    return whole(value, "reference", least=1) if count else value


def _memory(value: Any) -> Any:
    parse_memory(value)
    return value if isinstance(value, str) else int(value)


def check_seed(value: Any) -> int:
    """Read `seed=`."""
    return whole(value, "seed", least=0, most=2**63 - 1)


def _background(value: Any) -> Any:
    one_of(value, "background", get_args(Background))
    return value


class StudyOptions(TypedDict, total=False):
    """Options of a `Study`, which explains them, and of all that asks one."""

    profile: Annotated[nx.DiGraph | None, Option(None)]
    layers: Annotated[
        Choice | None,
        Option(
            None,
            "Which modules are layers: names or patterns of the last names of their paths, as "
            "o_proj, layers.*.mlp or, for its input side, o_proj:input; else all with parameters.",
            metavar="A,B,…",
            flag="choose",
        ),
    ]
    groups: Annotated[
        Mapping[str, Groups] | None,
        Option(
            None,
            "Channels that move together in layers that match: attention heads, or N equal groups "
            "(repeat).",
            metavar="PATTERN=heads|N",
        ),
    ]
    positions: Annotated[
        Positions,
        Option(
            "all",
            "Where in a sequence a neuron is: at all positions, at the last, at number N, or a "
            "neuron at each.",
            check_positions,
            "all|last|each|N",
        ),
    ]
    contrast: Annotated[
        str | tuple[float, ...] | Contrast,
        Option(
            "quantiles",
            "Values a neuron moves between: quantiles, pooled, sweep, mean, zero, resample, or two "
            "or more quantiles as 0.25,0.75.",
            checked_by(as_contrast),
        ),
    ]
    background: Annotated[
        Background,
        Option("data", "What all else is meanwhile: data, mean or zero.", _background),
    ]
    reference: Annotated[
        int | Any,
        Option(32, "Samples that are the background.", _reference, "N|FILE|MODULE:LOADER"),
    ]
    memory: Annotated[int | str, Option("512MB", "Limit for interventions run at once.", _memory)]
    seed: Annotated[int, Option(0, "Makes the result reproducible.", check_seed)]
    device: Annotated[torch.device | str | None, Option(None, "Where to run, as cpu or cuda:0.")]
    feature_names: Annotated[
        Sequence[str] | None,
        Option(
            None,
            "Input names; else a CSV file's header.",
            functools.partial(checks.different_names, option="feature_names"),
            "A,B,…",
            "features",
        ),
    ]
    class_names: Annotated[
        Sequence[str] | None,
        Option(
            None,
            "Names of the targets 0, 1, …",
            functools.partial(checks.different_names, option="class_names"),
            "A,B,…",
            "classes",
        ),
    ]
    tokenizer: Annotated[Any, Option(None)]
    progress: Annotated[bool | None, Option(None)]


ScorerOption = Annotated[
    str | Method,
    Option(
        "auto",
        f"How effects are found: {', '.join(SCORERS)}. Exact measures all, auto what fits the "
        "budget; the others estimate.",
        checked_by(as_method),
    ),
]
BudgetOption = Annotated[
    int | str,
    Option(
        "60s",
        "For auto: as 60s or 5min, or neurons of each layer and sign.",
        checked_by(parse_budget),
        "TIME|N",
    ),
]


@functools.cache
def options_of(kind: type) -> Mapping[str, tuple[Any, Option]]:
    """Type and further properties of each option, by its name.

    Examples
    --------
    >>> kind, option = options_of(StudyOptions)["seed"]
    >>> kind, option.default, option.help
    (<class 'int'>, 0, 'Makes the result reproducible.')
    """
    hints = get_type_hints(kind, include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}


def read_options(kind: type, given: Mapping[str, Any], of: str) -> dict[str, Any]:
    """Check options, and fill in those that are not given.

    Parameters
    ----------
    kind : type
        A TypedDict of options.
    given : mapping of str to Any
    of : str
        What takes the options, for errors.

    Raises
    ------
    OptionError
        There is no such option, or a value means nothing.
    """
    known = options_of(kind)
    _refuse_unknown(given, known, of)
    values = {name: given.get(name, option.default) for name, (_, option) in known.items()}
    checkers = {name: option.check for name, (_, option) in known.items()}
    return {n: v if (check := checkers[n]) is None else check(v) for n, v in values.items()}


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], of: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or list(known)
            raise OptionError(f"{name}= is no option of {of}: did you mean {', '.join(near)}?")


def split_options(
    own: type, given: Mapping[str, Any], of: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the options of a study from those of one question to it; OptionError for others."""
    _refuse_unknown(given, {**options_of(own), **options_of(StudyOptions)}, of)
    rest = {name: value for name, value in given.items() if name in options_of(StudyOptions)}
    return rest, {name: value for name, value in given.items() if name in options_of(own)}


def with_options(*kinds: type) -> Callable[[Function], Function]:
    """Let a function that takes ``**options`` show them by name, as `help` and editors look."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hint
            )
            for kind in kinds
            for name, (hint, option) in options_of(kind).items()
        ]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate
