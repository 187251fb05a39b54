"""Weights are read whole and strictly, from every container, and no file gets to run code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neurograph.model.weights import WeightsError, load_weights


def make_model() -> nn.Sequential:
    return nn.Sequential(OrderedDict(first=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)))


@pytest.fixture
def trained() -> nn.Sequential:
    torch.manual_seed(1)
    model = make_model()
    model(torch.randn(8, 3))  # moves the batch norm's buffers
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def test_reads_safetensors(trained: nn.Sequential, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = make_model()
    assert load_weights(model, tmp_path / "w.safetensors") is model
    assert same(model, trained)


def test_reads_a_torch_state_dict_from_a_path_as_str(
    trained: nn.Sequential, tmp_path: Path
) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    assert same(load_weights(make_model(), str(tmp_path / "w.pt")), trained)


@pytest.mark.parametrize("prefix", ["model.", "module.", "model._orig_mod."])
def test_strips_the_prefix_of_a_wrapper(
    trained: nn.Sequential, tmp_path: Path, prefix: str
) -> None:
    torch.save(prefixed(trained.state_dict(), prefix), tmp_path / "w.pt")
    assert same(load_weights(make_model(), tmp_path / "w.pt"), trained)


def test_reads_a_training_checkpoint_beside_what_else_was_trained(
    trained: nn.Sequential, tmp_path: Path
) -> None:
    state = prefixed(trained.state_dict(), "model.") | {"loss.pos_weight": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {}}, tmp_path / "w.ckpt")
    assert same(load_weights(make_model(), tmp_path / "w.ckpt"), trained)


def test_what_a_checkpoint_holds_beside_the_model_may_be_of_any_kind(
    trained: nn.Sequential, tmp_path: Path
) -> None:
    # A metric that keeps every prediction has a list as its state.
    state = prefixed(trained.state_dict(), "model.") | {"metrics.preds": [torch.ones(2)]}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    assert same(load_weights(make_model(), tmp_path / "w.ckpt"), trained)


def test_a_model_that_a_checkpoint_holds_twice_is_not_guessed(tmp_path: Path) -> None:
    torch.manual_seed(2)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    state = prefixed(one.state_dict(), "teacher.") | prefixed(other.state_dict(), "student.")
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    message = refused(nn.Linear(2, 2), tmp_path / "w.ckpt")
    assert "several times, below 'teacher.', 'student.'" in message
    state |= prefixed(other.state_dict(), "model.")
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    assert same(load_weights(nn.Linear(2, 2), tmp_path / "w.ckpt"), other)


def test_a_name_that_begins_like_the_prefix_stays(tmp_path: Path) -> None:
    source = nn.ModuleDict({"model": nn.ModuleDict({"model": nn.Linear(2, 2)})})
    target = nn.ModuleDict({"model": nn.ModuleDict({"model": nn.Linear(2, 2)})})
    torch.save(source.state_dict(), tmp_path / "w.pt")
    assert same(load_weights(target, tmp_path / "w.pt"), source)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_may_be_given_once(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    save_file({"embed.weight": source.embed.weight.detach()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target.head.weight, source.embed.weight)
    assert target.head.weight is target.embed.weight


def test_keeps_the_types_of_the_model(trained: nn.Sequential, tmp_path: Path) -> None:
    torch.save(trained.double().state_dict(), tmp_path / "w.pt")
    model = load_weights(make_model(), tmp_path / "w.pt")
    assert model.first.weight.dtype == torch.float32


def refused(model: nn.Module, path: Path) -> str:
    """Return the message, having checked that it has one line and the model is untouched."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no weights at" in refused(make_model(), tmp_path / "none.pt")


def test_missing_and_unexpected_names_are_named(trained: nn.Sequential, tmp_path: Path) -> None:
    state = trained.state_dict()
    state["other"] = state.pop("first.bias")
    torch.save(state, tmp_path / "w.pt")
    message = refused(make_model(), tmp_path / "w.pt")
    assert "lacks first.bias" in message
    assert "has other, unknown" in message


def test_a_file_of_weights_may_hold_nothing_beside_the_prefix(
    trained: nn.Sequential, tmp_path: Path
) -> None:
    state = prefixed(trained.state_dict(), "model.") | {"stray": torch.ones(1)}
    torch.save(state, tmp_path / "w.pt")
    assert "has stray, unknown" in refused(make_model(), tmp_path / "w.pt")


def test_only_some_of_many_names_are_shown(tmp_path: Path) -> None:
    torch.save({f"layer{i}": torch.ones(1) for i in range(100)}, tmp_path / "w.pt")
    message = refused(make_model(), tmp_path / "w.pt")
    assert "and 95 more" in message
    assert len(message) < 500


def test_different_shapes_are_named(trained: nn.Sequential, tmp_path: Path) -> None:
    state = trained.state_dict() | {"first.weight": torch.ones(4, 9)}
    torch.save(state, tmp_path / "w.pt")
    message = refused(make_model(), tmp_path / "w.pt")
    assert "first.weight is (4, 9) in the file and (4, 3) in the model" in message


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken", b"\x80\x02"])
def test_other_bytes_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(make_model(), tmp_path / name)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_truncated_file_is_refused(trained: nn.Sequential, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save(trained.state_dict(), path)
    else:
        save_file(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    refused(make_model(), path)


@pytest.mark.parametrize(
    "content", [torch.ones(2), [1, 2], {}, {"a": 1}, {"state_dict": 3}, {1: 2}]
)
def test_torch_files_without_weights_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert "not weights" in refused(make_model(), tmp_path / "w.pt")


class Trap:
    """Makes a folder when unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("container", ["torch", "torch_legacy", "pickle", "checkpoint"])
def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path: Path, container: str) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "w.pt"
    trap = {"first.weight": Trap(sprung)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(trap, protocol=2))
    elif container == "checkpoint":
        torch.save({"state_dict": make_model().state_dict(), "callbacks": trap}, path)
    else:
        torch.save(trap, path, _use_new_zipfile_serialization=container == "torch")
    assert "could run any code" in refused(make_model(), path)
    assert not sprung.exists()


def test_a_whole_pickled_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(make_model(), tmp_path / "w.pt")
    assert "save model.state_dict()" in refused(make_model(), tmp_path / "w.pt")


def test_what_is_refused_is_named(trained: nn.Sequential, tmp_path: Path) -> None:
    content = {"state_dict": trained.state_dict(), "hyper_parameters": {"data": tmp_path}}
    torch.save(content, tmp_path / "w.ckpt")
    kind = type(tmp_path)
    message = refused(make_model(), tmp_path / "w.ckpt")
    assert f"besides weights ({kind.__module__}.{kind.__qualname__})" in message


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(make_model(), tmp_path / "w.pt")
