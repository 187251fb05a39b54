"""The command that compares saved circuits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurograph.cli.arguments import (
    Format,
    Html,
    LabelColumn,
    Output,
    Quiet,
    load_model,
    open_data,
)
from neurograph.cli.console import say
from neurograph.errors import OptionError, SearchInterrupted
from neurograph.report import console_tables as tables

if TYPE_CHECKING:
    from neurograph.circuit.circuit import Circuit

__all__ = ["compare"]

_SHOWN = 10  # neurons that changed most

Files = Annotated[list[Path], typer.Argument(metavar="A.circuit B.circuit …")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODULE:FACTORY",
        help="What makes the models: one for all circuits, or one for each in their order "
        "(repeat). Then effects are also measured side by side, and circuits transplanted.",
    ),
]
ManyWeights = Annotated[
    list[Path] | None,
    typer.Option("--weights", metavar="FILE", help="Their weights: one file for each (repeat)."),
]


def compare(
    files: Files,
    model: Models = None,
    weights: ManyWeights = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE|MODULE:LOADER", help="The data of the searches; with --model."),
    ] = None,
    match: Annotated[
        str,
        typer.Option(
            help="Which neurons correspond: identity, by name; activation, by correlation (with "
            "--model)."
        ),
    ] = "identity",
    align: Annotated[
        str, typer.Option(help="For activation, which layers correspond: auto, depth or cka.")
    ] = "auto",
    across: Annotated[
        list[str] | None,
        typer.Option(metavar="target|data", help="What may differ between the circuits (repeat)."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Permutations that say what chance gives.")] = 1000,
    budget: Annotated[
        str, typer.Option(metavar="TIME|N", help="For measuring differences, as 10s.")
    ] = "10s",
    seed: Annotated[int, typer.Option(help="Makes the result reproducible.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="X.comparison", help="Save the comparison here.")
    ] = None,
    html: Html = None,
    label: LabelColumn = None,
    output: Output = Format.table,
    quiet: Quiet = False,
) -> None:
    """Say what circuits have in common, beside what chance would give, and what changed.

    Example: neurograph compare before.circuit after.circuit --html diff.html
    """
    from neurograph.comparison.compare import compare as compare_circuits
    from neurograph.comparison.comparison import Comparison
    from neurograph.utils.atomic import check_writable

    if len(files) < 2:
        raise OptionError("name two circuits or more")
    for file in filter(None, (out, html)):
        check_writable(file)
    circuits = _attached(_circuits(files), model, weights, data, label, seed)
    options: dict[str, Any] = {
        "match": match,
        "align": align,
        "across": across or (),
        "draws": draws,
        "budget": int(budget) if budget.isdecimal() else budget,
        "seed": seed,
        "progress": False if quiet else None,
    }
    found: Any
    try:
        if len(circuits) == 2:
            found = compare_circuits(*circuits.values(), names=list(circuits), **options)
        else:
            found = compare_circuits(circuits, **options)
    except SearchInterrupted as stop:
        if stop.result is not None and out is not None:
            stop.result.save(out)  # type: ignore[attr-defined]  # Comparisons
            say(f"what was compared until now is in {out}")
        raise
    for path, write in ((out, found.save), (html, found.to_html)):
        if path is not None:
            write(path)
            if not quiet:
                say(f"wrote {path}")
    if isinstance(found, Comparison) and not quiet:
        for note in found.notes:
            say(note)
    frame = found.to_frame()
    if output is not Format.table:
        tables.show_rows(tables.frame_rows(frame), list(frame.columns), output.value)
        return
    tables.show(tables.frame_table(frame))
    if isinstance(found, Comparison):
        typer.echo()
        changed = found.neurons().head(_SHOWN)
        shown = ["name", "status", "effect_a", "effect_b", "difference", "stderr"]
        tables.show(tables.frame_table(changed[shown]))


def _circuits(files: Sequence[Path]) -> dict[str, Circuit]:
    """Read circuits, named by their files as shortly as tells them apart."""
    from neurograph.circuit.archive import load

    names = [path.stem for path in files]
    if len(set(names)) < len(names):
        names = [str(path) for path in files]
    if len(set(names)) < len(names):
        raise OptionError(f"{max(names, key=names.count)} is named twice")
    return {name: load(path) for name, path in zip(names, files, strict=True)}


def _attached(
    circuits: dict[str, Circuit],
    models: Sequence[str] | None,
    weights: Sequence[Path] | None,
    data: str | None,
    label: str | None,
    seed: int,
) -> dict[str, Circuit]:
    """Give each circuit its model, where models are named."""
    if not models:
        if weights or data:
            raise OptionError("--weights and --data need --model: what makes the models")
        return circuits
    if data is None:
        raise OptionError("--model needs --data: the data of the searches")
    count = len(circuits)
    for option, given in (("--model", models), ("--weights", weights or [])):
        if len(given) not in ((1, count) if option == "--model" else (0, count)):
            raise OptionError(f"{option} is given {len(given)} times for {count} circuits")
    factories = list(models) * (count if len(models) == 1 else 1)
    states: list[Path | None] = [*weights] if weights else [None] * count
    read = open_data(data, label)
    return {
        name: circuit.attach(load_model(factory, file, seed), read)
        for (name, circuit), factory, file in zip(circuits.items(), factories, states, strict=True)
    }
