"""Arguments that several commands share: how they are written, and the values they stand for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurograph.errors import OptionError

if TYPE_CHECKING:
    from torch import nn


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
        "neurograph.discovery.search takes, or what returns it.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Its weights: .safetensors or a torch file.")
]
Label = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="CSV column that is the label, no input.")
]
Choose = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,…",
        help="Which modules are layers: names or patterns of the last names of their paths, as "
        "o_proj, layers.*.mlp or, for its input side, o_proj:input; else all with parameters.",
    ),
]
File = Annotated[Path, typer.Argument(metavar="X.circuit", help="A saved circuit.")]
Out = Annotated[Path | None, typer.Option(metavar="X.circuit", help="Save the circuit here.")]
Html = Annotated[Path | None, typer.Option(metavar="X.html", help="Write the page here.")]
Output = Annotated[Format, typer.Option("--format", help="How to print the result.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")]


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


def load_data(data: str, label: str | None) -> Any:
    """Read a file, or what a module and name stand for."""
    from neurograph.cli.data_files import SUFFIXES, read_data
    from neurograph.cli.objects import find_object

    is_file = data.lower().endswith(SUFFIXES) or Path(data).is_file()
    return read_data(data, label) if is_file else find_object(data)
