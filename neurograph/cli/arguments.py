"""Arguments that several commands share: how they are written, and the values they stand for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from neurograph.cli.option_values import (
    read_basis,
    read_contrast,
    read_groups,
    read_names,
    read_position,
)
from neurograph.errors import OptionError
from neurograph.preparation.options import OPTIONS, Option, StudyOptions

if TYPE_CHECKING:
    from torch import nn


Command = TypeVar("Command", bound=Callable[..., Any])


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"
    csv = "csv"


Factory = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FACTORY",
        help="The model: an importable module or a .py file, and in it a model, or what returns "
        "one when called without arguments.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="FILE|MODULE:LOADER",
        help="The data: a .csv, .npy, .npz, .pt or .safetensors file, or any data that "
        "neurograph.search takes, or what returns it.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Its weights: .safetensors or a torch file.")
]
LabelColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="CSV column that is the label, no input.")
]
_LAYERS = OPTIONS[StudyOptions]["layers"]
Choose = Annotated[str | None, typer.Option("--choose", metavar=_LAYERS.metavar, help=_LAYERS.help)]
File = Annotated[Path, typer.Argument(metavar="X.circuit", help="A saved circuit.")]
Out = Annotated[Path | None, typer.Option(metavar="X.circuit", help="Save the circuit here.")]
Html = Annotated[Path | None, typer.Option(metavar="X.html", help="Write the page here.")]
Output = Annotated[Format, typer.Option("--format", help="How to print the result.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")]


_REPEATED = ("groups", "basis")


def takes(*kinds: type) -> Callable[[Command], Command]:
    """Let a command that takes ``**options`` have those of some kinds, as `OPTIONS` has them."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, option in _shown(kinds).items():
            flag = f"--{option.flag or name.replace('_', '-')}"
            shown = typer.Option(flag, metavar=option.metavar, help=option.help)
            default = option.default if _is_number(option) else _words(option.default)
            kind: Any = int if _is_number(option) else list[str] if name in _REPEATED else str
            annotation: Any = Annotated[kind if default is not None else kind | None, shown]
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=annotation,
                )
            )
            command.__annotations__[name] = annotation
        del command.__annotations__["options"]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def read_words(given: Mapping[str, Any], label: str | None) -> dict[str, Any]:
    """Options as `search` takes them, of what was written on the command line."""
    readers: dict[str, Callable[[Any], Any]] = {
        "layers": read_names,
        "groups": read_groups,
        "basis": read_basis,
        "positions": read_position,
        "contrast": read_contrast,
        "reference": lambda words: int(words) if words.isdecimal() else open_data(words, label),
        "budget": lambda words: int(words) if words.isdecimal() else words,
        "feature_names": read_names,
        "class_names": read_names,
    }
    return {name: readers.get(name, lambda value: value)(value) for name, value in given.items()}


def _shown(kinds: Sequence[type]) -> dict[str, Option]:
    options = {name: option for kind in kinds for name, option in OPTIONS[kind].items()}
    return {name: option for name, option in options.items() if option.help}


def _is_number(option: Option) -> bool:
    return type(option.default) is int and option.metavar is None


def _words(default: Any) -> str | None:
    return None if default is None else str(default)


def load_model(factory: str, weights: Path | None, seed: int) -> nn.Module:
    """Make a model, with weights of a file, or its own first ones by a seed."""
    import torch

    from neurograph.cli.objects import find_object
    from neurograph.model.weights import load_weights

    torch.manual_seed(seed)  # for weights that no file replaces
    model = find_object(factory, as_it_is=torch.nn.Module)
    if not isinstance(model, torch.nn.Module):
        raise OptionError(f"{factory!r} gives {type(model).__name__}, not a torch.nn.Module")
    return model if weights is None else load_weights(model, weights)


def open_data(data: str, label: str | None) -> Any:
    """Read a file, or what a module and name stand for."""
    from neurograph.cli.data_files import SUFFIXES, read_data
    from neurograph.cli.objects import find_object

    is_file = data.lower().endswith(SUFFIXES) or Path(data).is_file()
    return read_data(data, label) if is_file else find_object(data)
