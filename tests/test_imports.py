"""Libraries are imported by what uses them; and no name has two meanings."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import neurograph
from neurograph.report import figures

PACKAGE = Path(neurograph.__file__).parent
HEAVY = {
    *("IPython", "jinja2", "matplotlib", "networkx", "pandas", "pytorch_lightning", "pyvis"),
    *("rich", "safetensors", "tensorboard", "torch", "torchmetrics", "transformers", "typer"),
    *(
        f"scipy.{part}"
        for part in ("cluster", "integrate", "optimize", "sparse", "special", "stats")
    ),
}
TABLES = {"networkx", "pandas"}

LOADED = f"""
import json, sys
def loaded():
    print(json.dumps([name for name in {sorted(HEAVY)} if name in sys.modules]))
"""
STEPS = """
import neurograph
loaded()
neurograph.search
loaded()
from neurograph import *
loaded()
"""
COMMAND = """
import atexit
from neurograph.cli.main import main
atexit.register(loaded)
main()
"""


def run(code: str, *arguments: str) -> list[str]:
    """Run code in a fresh interpreter; the lines that it prints."""
    command = [sys.executable, "-c", LOADED + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_importing_loads() -> None:
    nothing, search, everything = (set(json.loads(line)) for line in run(STEPS))
    assert not nothing
    assert search == {*TABLES, "torch", "rich"}
    assert everything == {*TABLES, "torch", "rich", "safetensors"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("circuit") / "x.circuit"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    neurograph.search(model, torch.rand(50, 3), keep="top:2").save(path)
    return path


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["explore", "--help"]])
def test_commands_that_say_how_to_use_them_load_no_tables(words: list[str]) -> None:
    assert set(json.loads(run(COMMAND, *words)[-1])) <= {"rich", "typer"}


@pytest.mark.parametrize("command", ["paths", "neurons"])
def test_saved_circuits_are_queried_without_torch(command: str, file: Path) -> None:
    *table, loaded = run(COMMAND, command, str(file), "--top", "3", "--format", "csv")
    assert len(table) == 4
    assert set(json.loads(loaded)) == {*TABLES, "rich", "safetensors", "typer"}


def test_public_names() -> None:
    assert set(neurograph.__all__) == set(dir(neurograph))
    stub = (PACKAGE / "__init__.pyi").read_text().splitlines()
    for name in neurograph.__all__:
        value = getattr(neurograph, name)
        assert value.__name__ == name
        assert f"from {value.__module__} import {name} as {name}" in stub
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = neurograph.serch  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", [neurograph, figures])
def test_no_public_name_hides_a_module(package: ModuleType) -> None:
    folder = Path(str(package.__file__)).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    names = {n for n in dir(package) if not isinstance(getattr(package, n), ModuleType)}
    assert not modules & names


def test_no_name_of_a_file_stands_twice() -> None:
    names = Counter(path.stem for path in PACKAGE.rglob("*.py"))
    twice = {name for name, count in names.items() if count > 1}
    assert twice == {"__init__"}


def public_names(path: Path) -> Iterator[str]:
    """Names without an underscore that a file defines at its top."""
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found = [name]
            case ast.Assign(targets=targets):
                found = [t.id for t in targets if isinstance(t, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                found = [name]
            case _:
                continue
        yield from (name for name in found if not name.startswith("_"))


def test_no_public_name_stands_twice() -> None:
    """But for what is one thing at two ends: a function and its command, a table and its figure."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    counts = Counter(name for path in files for name in set(public_names(path)))
    twice = {name for name, count in counts.items() if count > 1}
    assert twice == {"compare", "faithfulness", "separation"}
