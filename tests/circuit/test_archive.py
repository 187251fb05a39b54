"""A saved circuit comes back as it was, and a file that is none is refused by name."""

from __future__ import annotations

import io
import json
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

import neurograph
from neurograph import Circuit
from neurograph.circuit.archive import FORMAT_VERSION
from neurograph.errors import CircuitFileError, OptionError
from neurograph.utils.atomic import check_writable, write_atomically


def find() -> Circuit:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)
        )
        X = torch.rand(60, 3)
    return neurograph.search(
        network, X, 1, keep="top:2", paths=4, reference=1, feature_names=["ä", "</script>", "→ c"]
    )


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return find()


@pytest.fixture
def file(circuit: Circuit, tmp_path: Path) -> Path:
    circuit.save(tmp_path / "x.circuit")
    return tmp_path / "x.circuit"


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write the file again with its JSON document changed."""
    contents = members(file)
    document = json.loads(contents["circuit.json"])
    contents["circuit.json"] = json.dumps(change(document)).encode()
    pack(file, contents)


def pack(file: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


# -- round trip ----------------------------------------------------------------------------------


def test_a_circuit_comes_back_as_it_was(circuit: Circuit, file: Path) -> None:
    back = neurograph.load(file)
    # repr: a single reference sample has no standard error, and NaN is not equal to itself.
    for some, other in ((circuit.graph, back.graph), (circuit.layers, back.layers)):
        assert repr(list(some.nodes(data=True))) == repr(list(other.nodes(data=True)))
        assert repr(list(some.edges(data=True))) == repr(list(other.edges(data=True)))
        assert some.graph == other.graph
    assert repr(back.strongest) == repr(circuit.strongest)
    assert "nan" in repr(back.strongest)
    assert back.target == circuit.target
    assert back.provenance == circuit.provenance
    assert [type(n) for n in back.graph] == [neurograph.Neuron] * len(circuit.graph)
    assert set(back.scores) == set(circuit.scores)
    for layer, table in circuit.scores.items():
        assert set(table) == set(back.scores[layer])
        for key, values in table.items():
            assert values.dtype == back.scores[layer][key].dtype == np.float64
            assert values.tobytes() == back.scores[layer][key].tobytes()
    assert back.neurons().equals(circuit.neurons())
    assert back.edges().equals(circuit.edges())


def test_equal_circuits_are_equal_bytes(circuit: Circuit, file: Path, tmp_path: Path) -> None:
    for name, same in (("a", find()), ("b", neurograph.load(file))):
        same.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == file.read_bytes()


def test_its_provenance_says_how_it_was_found(file: Path) -> None:
    known = neurograph.load(file).provenance
    assert known["model"]["class"] == "Sequential"
    assert len(known["model"]["hash"]) == len(known["data"]["fingerprint"]) == 64
    assert known["data"]["samples"] == 60
    assert known["target"] == {"name": "output", "index": 1, "kind": "index"}
    assert known["options"]["seed"] == 0
    assert known["options"]["keep"] == {"type": "TopK", "count": 2}
    assert known["options"]["contrast"]["type"] == "Quantiles"
    assert known["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert known["complete"] is True


def test_the_file_is_json_and_safetensors_and_no_pickle(file: Path) -> None:
    contents = members(file)
    assert set(contents) == {"circuit.json", "scores.safetensors"}
    assert json.loads(contents["circuit.json"])["version"] == FORMAT_VERSION
    assert safetensors.numpy.load(contents["scores.safetensors"])
    for content in (*contents.values(), file.read_bytes()):
        with pytest.raises(Exception, match=r"."):
            list(pickletools.genops(content))


def test_a_path_may_be_a_string_and_any_name(circuit: Circuit, tmp_path: Path) -> None:
    path = str(tmp_path / "no ending ü")
    circuit.save(path)
    assert repr(neurograph.load(path)) == repr(circuit)


# -- files that are no circuits ------------------------------------------------------------------


def refused(file: Path, reason: str = "damaged") -> None:
    with pytest.raises(CircuitFileError, match=reason) as caught:
        neurograph.load(file)
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.circuit"):
        neurograph.load(tmp_path / "nothing.circuit")


def test_a_truncated_file_is_refused_wherever_it_ends(file: Path) -> None:
    whole = file.read_bytes()
    lengths = {0, 1, 2, 3, 4, 21, 22, len(whole) - 1, len(whole) - 22}
    for length in sorted(lengths | set(range(0, len(whole), 97))):
        file.write_bytes(whole[:length])
        refused(file)


@pytest.mark.slow
def test_a_flipped_bit_is_refused_or_does_no_harm(circuit: Circuit, file: Path) -> None:
    whole = file.read_bytes()
    positions = np.random.default_rng(0).permutation(8 * len(whole))[:200].tolist()
    # The directory at the end holds sizes, flags and methods: each of its bits has its own way out.
    positions += range(8 * (len(whole) - 200), 8 * len(whole))
    positions += range(8 * 80)
    refusals = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            back = neurograph.load(file)
        except CircuitFileError:
            refusals += 1
            continue
        assert repr(back.strongest) == repr(circuit.strongest)
        assert list(back.graph) == list(circuit.graph)
    assert refusals > 300


FOREIGN = {
    "text": b"hello",
    "pickle": b"\x80\x04K\x01.",
    "json": b'{"format": "neurograph circuit", "version": 1}',
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "foreign.bin").write_bytes(FOREIGN[kind])
    refused(tmp_path / "foreign.bin", "no circuit file")


def test_a_torch_file_and_other_zips_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", "no circuit file")
    pack(tmp_path / "other.zip", {"circuit.json": b"[]", "scores.safetensors": b""})
    refused(tmp_path / "other.zip")
    refused_folder = tmp_path / "folder"
    refused_folder.mkdir()
    with pytest.raises(FileNotFoundError, match="folder"):
        neurograph.load(refused_folder)


def test_a_file_of_another_version_is_refused_with_what_to_do(file: Path) -> None:
    rewrite(file, lambda d: {**d, "version": FORMAT_VERSION + 1})
    refused(file, rf"format version {FORMAT_VERSION + 1}.*search again")


def _with(document: dict[str, Any], *keys_and_value: Any) -> dict[str, Any]:
    """The document with one value, deep in it, another."""
    *keys, last, value = keys_and_value
    place: Any = document
    for key in keys:
        place = place[key]
    place[last] = value
    return document


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format": lambda d: {**d, "format": "something"},
    "no version": lambda d: {k: v for k, v in d.items() if k != "version"},
    "an odd version": lambda d: {**d, "version": "new"},
    "no neurons": lambda d: {k: v for k, v in d.items() if k != "neurons"},
    "neurons of another kind": lambda d: {**d, "neurons": [1, 2]},
    "attributes of another kind": lambda d: {**d, "neurons": [["a", 0, "x"]]},
    "a path of unknown neurons": lambda d: {**d, "paths": [[[["zz", 0]], 1.0, 0.1, True]]},
    "a path without effect": lambda d: {**d, "paths": [[[["zz", 0]]]]},
    "layers of another kind": lambda d: {**d, "layers": "x"},
    "a layer without size": lambda d: _with(d, "layers", 0, 1, 1, {"type": "Linear"}),
    "an effect that is a word": lambda d: _with(d, "neurons", 0, 1, "effect", "large"),
    "an error that is a word": lambda d: _with(d, "neurons", 0, 1, "total_stderr", "small"),
    "an effect that is not the scores'": lambda d: _with(d, "neurons", 0, 1, "effect", -9e9),
    "a total that is not the scores'": lambda d: _with(d, "neurons", 0, 1, "total_effect", 7.0),
    "a statistic that is a word": lambda d: _with(d, "neurons", 0, 1, "mean", "x"),
    "neither measured nor not": lambda d: _with(d, "neurons", 0, 1, "measured", []),
    "an audit without its numbers": lambda d: _with(d, "provenance", "audit", "largest", None),
    "a sign that is not the effect's": lambda d: _with(d, "neurons", 0, 1, "sign", "zero"),
    "a neuron under another's name": lambda d: _with(d, "neurons", 0, 1, "index", 2),
    "a neuron of no layer": lambda d: _with(d, "neurons", 0, 0, ["zz", 0]),
    "a neuron beyond its layer": lambda d: _with(d, "neurons", 0, 0, ["input", 77]),
    "a neuron without a name": lambda d: _with(d, "neurons", 0, 1, "name", 3),
    "an edge to a neuron that is not kept": lambda d: _with(d, "edges", 0, 1, ["4", 9]),
    "an edge backwards": lambda d: {**d, "edges": [[v, u, data] for u, v, data in d["edges"]]},
    "an edge of the other sign": lambda d: _with(d, "edges", 0, 2, "sign", "zero"),
    "an edge twice": lambda d: {**d, "edges": [*d["edges"], d["edges"][0]]},
    "layers in a circle": lambda d: _with(d, "layers", 1, [*d["layers"][1], ["4", "input"]]),
    "a path of nothing": lambda d: _with(d, "paths", 0, 0, []),
    "a path that leaves out a layer": lambda d: _with(
        d, "paths", 0, 0, [d["paths"][0][0][0], d["paths"][0][0][-1]]
    ),
    "a path neither measured nor not": lambda d: _with(d, "paths", 0, 3, "no"),
    "notes of another kind": lambda d: _with(d, "provenance", "notes", "none"),
    "a path whose effect is a word": lambda d: _with(d, "paths", 0, 1, "strong"),
    "a target that is no name": lambda d: {**d, "target": 4},
    "provenance of another kind": lambda d: {**d, "provenance": []},
    "a list": lambda d: [d],
    "nothing": lambda d: None,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_document_of_another_shape_is_refused(file: Path, kind: str) -> None:
    rewrite(file, DAMAGE[kind])
    refused(file)


@pytest.mark.parametrize("scores", [b"", b"nonsense", safetensors.numpy.save({"x": np.zeros(2)})])
def test_damaged_scores_are_refused(file: Path, scores: bytes) -> None:
    pack(file, {**members(file), "scores.safetensors": scores})
    refused(file)


def test_members_that_are_not_ours_are_not_read(file: Path) -> None:
    contents = members(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        archive.writestr("more", b"0" * 100)
    damaged = bytearray(file.read_bytes())
    start = damaged.index(b"more") + 4
    damaged[start : start + 2] = b"\xff\xff"  # it cannot be inflated
    file.write_bytes(damaged)
    assert len(neurograph.load(file).graph)


# -- writing -------------------------------------------------------------------------------------


def test_a_failure_while_writing_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(28, "No space left on device")

    def opened(handle: int, mode: str) -> Full:
        os.close(handle)
        return Full()

    monkeypatch.setattr(os, "fdopen", opened)
    with pytest.raises(OSError, match="No space"):
        find().save(file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_an_interrupt_before_the_file_is_moved_leaves_the_old_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    before = file.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "written", b"new")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "written").read_bytes() == b"new"


def test_a_path_that_cannot_be_written_is_told_before(
    circuit: Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, reason in ((tmp_path, "is a folder"), (tmp_path / "no" / "x", "no folder")):
        with pytest.raises(OptionError, match=reason):
            check_writable(path)
        with pytest.raises(OptionError, match=reason):
            circuit.save(path)
    # Whoever may do everything, as in containers, is told nothing by the file's mode.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OptionError, match="not writable"):
        circuit.save(tmp_path / "x")
    assert os.listdir(tmp_path) == []
