"""Errors and exit codes of the command line: notes and one-line errors on standard error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from neurograph.errors import NeurographError
from neurograph.report.console_tables import plain

__all__ = ["Commands", "say"]

_COUNTED = re.compile(r"(?<![\w.-])(feature_names|class_names)(?=:| has )")


def say(text: str) -> None:
    """Write a note to standard error, where it is in no result's way."""
    typer.echo(plain(text), err=True)


class Commands(TyperGroup):
    """Take --debug anywhere, and turn what commands raise into one line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, with --debug moved to the front, where it is declared."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(a for a in args[:end] if a != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; 1 after an error, 130 when interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            say("interrupted")
            raise typer.Exit(130) from error
        except Exception as error:
            # Exits and usage errors carry their own code; a closed pipe is not our error.
            known = hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError))
            if known or ctx.params.get("debug"):
                raise
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            say(f"error: {_one_line(error, _flags(command))}")
            raise typer.Exit(1) from error


def _flags(command: Any) -> dict[str, str]:
    """What the options of a command are called on the command line, by their names in Python."""
    parameters = [] if command is None else command.params
    flags = {p.name: p.opts[0] for p in parameters if p.opts and p.opts[0].startswith("--")}
    return dict(sorted(flags.items(), key=lambda item: -len(item[0])))


def _one_line(error: Exception, flags: Mapping[str, str]) -> str:
    message = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{str(error.filename)!r}: {error.strerror}"
    elif not isinstance(error, (NeurographError, OSError, ImportError)):
        message = f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    message = " ".join(message.split()) or type(error).__name__
    if flags:
        option = rf"(?<![\w.-])({'|'.join(flags)})=(?!=)([^\s.,;:)]?)"
        message = re.sub(option, lambda found: _flag(flags[found[1]], found[2]), message)
        message = _COUNTED.sub(lambda found: flags.get(found[1], found[1]), message)
    return re.sub(r"\('(\w+)',\)", r"\1", message)  # a collection of one, as flags take it


def _flag(flag: str, rest: str) -> str:
    """An option of the command line, and what its value begins with."""
    return f"{flag}{' ' if rest else ''}{rest}"
