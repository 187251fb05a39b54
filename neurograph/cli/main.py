"""The command line: explore a model, query and report circuits, run the demo.

Results go to standard output, all else to standard error. Exit codes: 0 done, 1 an error in
one line, 2 wrong usage, 130 interrupted. What takes long to import is imported inside commands.
"""

from __future__ import annotations

import io
import sys
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurograph.cli.arguments import (
    Choose,
    Data,
    Factory,
    File,
    Format,
    Html,
    LabelColumn,
    Out,
    Output,
    Quiet,
    Weights,
    load_model,
    open_data,
    read_words,
    takes,
)
from neurograph.cli.compare_command import compare
from neurograph.cli.console import Commands, say
from neurograph.cli.option_values import read_names
from neurograph.errors import OptionError, SearchInterrupted
from neurograph.preparation.options import SearchOptions, StudyOptions
from neurograph.report import console_tables as tables

if TYPE_CHECKING:
    from neurograph.circuit.circuit import Circuit

__all__ = ["app", "main"]

_SHOWN = 10  # paths of each sign in a summary
_FEATURES_SHOWN = 6
_PLACE = "LAYER|LAYER:N|LAYER[N]@POSITION"

app = typer.Typer(
    cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
_demos = typer.Typer(no_args_is_help=True, help="Train a small network on real data and search it.")
app.add_typer(_demos, name="demo")


class SignOption(StrEnum):
    """Which way a path pushes."""

    positive = "positive"
    negative = "negative"


def _value(sign: SignOption | None) -> Any:
    return None if sign is None else sign.value


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neurograph {metadata.version('neurograph-torch')}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with errors; works anywhere.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show it.")
    ] = False,
) -> None:
    """Find signed neuron circuits of PyTorch models, every effect measured by intervention.

    Example: neurograph demo heart
    """


@app.command()
@takes(StudyOptions, SearchOptions)
def explore(
    factory: Factory,
    data: Data,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="N|CLASS",
            help="Output to explain: a number or a class name. Of a single logit 1 is the output, "
            "0 minus it; left out, it is explained as it is.",
        ),
    ] = None,
    weights: Weights = None,
    out: Out = None,
    html: Html = None,
    label: LabelColumn = None,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Search a model for the circuit behind one output, and print its strongest paths.

    Example: neurograph explore net.py:Net --weights net.pt --data x.csv --target 1 --html x.html
    """
    from neurograph.questions.functions import search
    from neurograph.utils.atomic import check_writable

    for path in filter(None, (out, html)):
        check_writable(path)
    try:
        circuit = search(
            load_model(factory, weights, options["seed"]),
            open_data(data, label),
            int(target) if target is not None and target.lstrip("-").isdecimal() else target,
            **read_words(options, label),
            progress=False if quiet else None,
        )
    except SearchInterrupted as stop:
        _save_part(stop.result, out)
        raise
    _write(circuit, out, html, quiet)
    for line in circuit.screened():
        say(line)
    given = () if weights else (f"no --weights: the model has those that {factory} gives it",)
    for line in () if quiet else (*given, *circuit.notes, str(circuit.audited)):
        say(line)
    _show_strongest(circuit)


@app.command()
def neurons(
    file: File,
    sign: Annotated[SignOption | None, typer.Option(help="Only those whose effect has it.")] = None,
    layer: Annotated[str | None, typer.Option(help="Only those of this layer.")] = None,
    features: Annotated[
        bool, typer.Option(help="All input features by total effect, kept or not.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    output: Output = Format.table,
) -> None:
    """Print a circuit's strongest neurons: effect through the circuit, and in total.

    Example: neurograph neurons heart.circuit --features
    """
    from neurograph.circuit.archive import load

    circuit = load(file)
    if features and (sign or layer):
        raise OptionError("--features lists all input features: leave out --sign and --layer")
    table = circuit.features() if features else circuit.neurons(sign=_value(sign), layer=layer)
    if output is Format.table:
        tables.show(tables.effects_table(table.head(top)))
        for note in circuit.notes:
            say(note)
    else:
        tables.show_rows(tables.frame_rows(table.head(top)), [*table], output.value)


@app.command()
def paths(
    file: File,
    sign: Annotated[SignOption | None, typer.Option(help="Only paths that push this way.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    source: Annotated[
        str | None,
        typer.Option(metavar=_PLACE, help="Where they begin."),
    ] = None,
    through: Annotated[
        list[str] | None,
        typer.Option(metavar=_PLACE, help="What lies on them: a layer, or neurons (repeat)."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Layers they keep to.")
    ] = None,
    output: Output = Format.table,
) -> None:
    """Print a circuit's strongest paths.

    Those that the search measured come first, others follow as estimates.

    Example: neurograph paths heart.circuit --sign positive --top 20 --through linear2:37
    """
    from neurograph.circuit.archive import load

    circuit = load(file)
    found = circuit.paths(
        top,
        sign=_value(sign),
        source=source,
        through=through,
        layers=read_names(layers),
    )
    if output is Format.table:
        tables.show(tables.path_table(found))
    else:
        tables.show_rows(map(tables.path_row, found), tables.PATH_COLUMNS, output.value)


@app.command()
def layers(
    factory: Factory,
    data: Data,
    weights: Weights = None,
    layers: Choose = None,
    label: LabelColumn = None,
    output: Output = Format.table,
) -> None:
    """Print a model's layers, and who reads whom.

    Example: neurograph layers net.py:Net --data train.csv --format json
    """
    from neurograph.replay.wiring import layer_graph

    graph = layer_graph(
        load_model(factory, weights, 0), open_data(data, label), layers=read_names(layers)
    )
    rows = tables.layer_rows(graph)
    if output is Format.table:
        tables.show(tables.layer_table(rows))
    else:
        tables.show_rows(rows, tables.LAYER_COLUMNS, output.value)


@app.command()
def report(file: File, html: Html = None, quiet: Quiet = False) -> None:
    """Write a circuit's page, X.html beside X.circuit by default, and print a summary.

    Example: neurograph report heart.circuit --html heart.html
    """
    from neurograph.circuit.archive import load
    from neurograph.utils.atomic import check_writable

    html = html or file.with_suffix(".html")
    if file.is_file():
        check_writable(html)
    circuit = load(file)
    _write(circuit, None, html, quiet)
    tables.show(tables.facts_table(circuit))
    typer.echo()
    _show_strongest(circuit)


app.command()(compare)


def _show_strongest(circuit: Circuit) -> None:
    """Print the input features that do most in total, and the strongest paths."""
    from neurograph.circuit.circuit_tables import scored_inputs

    if scored_inputs(circuit.layers, circuit.scores):
        tables.show(tables.effects_table(circuit.features().head(_FEATURES_SHOWN)))
        typer.echo()
    tables.show(tables.path_table(tables.strongest(circuit, _SHOWN)))


@_demos.command()
def heart(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to.")] = Path("outputs"),
    seed: Annotated[int, typer.Option(help="Split, first weights and samples.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Length of the training.")] = 20,
    neurons: Annotated[bool, typer.Option("--neurons", help="Of neurons, not directions.")] = False,
    quiet: Quiet = False,
) -> None:
    """Heart disease: train on 918 patients, search, and write heart.circuit and heart.html.

    Example: neurograph demo heart --out outputs
    """
    from neurograph.demos import heart

    heart.run(out, seed, epochs=epochs, neurons=neurons, progress=False if quiet else None)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding shows escapes, rather than nothing at all.
            stream.reconfigure(errors="backslashreplace")
    app()


def _write(circuit: Circuit, out: Path | None, html: Path | None, quiet: bool) -> None:
    for path, write in ((out, circuit.save), (html, circuit.to_html)):
        if path is not None:
            write(path)
            if not quiet:
                say(f"wrote {path}")


def _save_part(circuit: Any, out: Path | None) -> None:
    if circuit is None:
        say("nothing was found yet")
    elif out is None:
        say("what was found is lost: give --out to have it saved")
    else:
        circuit.save(out)
        say(f"what was found until now is in {out}")
