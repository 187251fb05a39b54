"""A page that a study writes while it runs: prose, tables and figures, printed as they come."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

__all__ = ["Notes", "run"]


class Notes:
    """Markdown in `folder`/`name`.md, with figures in `folder`/figures, written by `save`.

    Headings bring along what the study's own script, if it is a file, says under them in cells of
    prose.
    """

    def __init__(self, folder: Path, name: str, script: str | None = None) -> None:
        self.folder, self.name = folder, name
        self.prose = {} if script is None else _prose(Path(script).read_text(encoding="utf-8"))
        self.parts: list[str] = []
        self.figures: dict[str, Any] = {}

    def __call__(self, *parts: Any, digits: int = 3) -> None:
        """Add prose (strings) and tables (data frames, their index left out)."""
        for part in parts:
            text = _table(part, digits) if isinstance(part, pd.DataFrame) else str(part)
            self.parts += filter(None, [text, self.prose.get(text)])
            print(text, flush=True)

    def figure(self, figure: Any, name: str, caption: str) -> None:
        """Add a figure of matplotlib."""
        self.figures[name] = figure
        self(f"![{caption}](figures/{self.name}_{name}.png)")

    def save(self) -> None:
        """Write the page and its figures."""
        (self.folder / "figures").mkdir(parents=True, exist_ok=True)
        for name, figure in self.figures.items():
            figure.savefig(self.folder / "figures" / f"{self.name}_{name}.png", dpi=150)
        text = "\n\n".join(self.parts) + "\n"
        (self.folder / f"{self.name}.md").write_text(text, encoding="utf-8")


def run(script: str, title: str, report: Callable[[Notes, Path], Any]) -> None:
    """Run a script's report into the folder that its ``--out`` names, with the pages it makes."""
    parser = argparse.ArgumentParser(description=title.removeprefix("# "))
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="FOLDER")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # batches are too small for more
    note = Notes(folder, Path(script).stem)
    note(title)
    report(note, folder)
    note.save()


def _prose(script: str) -> dict[str, str]:
    """What stands under each heading of a script in percent format."""
    found = {}
    for cell in script.split("# %% [markdown]\n")[1:]:
        lines = [line.removeprefix("#").strip() for line in cell.split("# %%")[0].splitlines()]
        found[lines[0]] = "\n".join(lines[1:]).strip()
    return found


def _table(frame: pd.DataFrame, digits: int) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, float):
            if math.isnan(value):
                return "–"
            small = value != 0 and abs(value) < 10**-digits
            return f"{value:.1e}" if small else f"{value:.{digits}f}"
        return str(value).replace("|", "\\|")

    rows = [[cell(value) for value in row] for row in frame.astype(object).to_numpy().tolist()]
    lines = [[str(name) for name in frame.columns], ["---"] * frame.shape[1], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
