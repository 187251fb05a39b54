"""Read a model's weights from a file, without ever running what the file says.

Two containers are read: safetensors, and torch files with ``weights_only=True``. The second kind
may be a plain state dict or a training checkpoint that holds one (Lightning's, for instance).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from neurograph.errors import ModelError
from neurograph.utils.tensor_files import read_tensors

__all__ = ["WeightsError", "load_weights"]

Model = TypeVar("Model", bound=nn.Module)

_NAMED_AT_MOST = 5


class WeightsError(ModelError, ValueError):
    """A file is missing, holds no weights, or holds those of another model."""


def load_weights(model: Model, path: str | Path) -> Model:
    """Load weights from a file into ``model``, all of them or none.

    Parameters
    ----------
    model : torch.nn.Module
        Receives the weights in place; each is converted to its parameter's type and device.
    path : str or pathlib.Path
        A ``.safetensors`` file, or a torch file with a state dict or with a training checkpoint
        whose ``"state_dict"`` is one, such as any of Lightning's. A prefix that the file's names
        have and the model's have not, such as the ``model.`` of a Lightning module or the
        ``module.`` of a wrapper, is removed; what a checkpoint holds beside the model, such as
        optimizers, hyper-parameters, losses and metrics, is ignored.

    Returns
    -------
    torch.nn.Module
        ``model``.

    Raises
    ------
    WeightsError
        If there is no such file, if it holds Python objects, if its names or shapes are not the
        model's, or if it holds several such models. The model is then unchanged.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> model, copy = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(model.state_dict(), f"{folder}/weights.pt")
    ...     copy = load_weights(copy, f"{folder}/weights.pt")
    >>> torch.equal(model.weight, copy.weight)
    True
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights at '{path}': give the path of a file with weights")
    content = _read(path)
    expected = model.state_dict(keep_vars=True)
    found = _state_dict(content, path)
    state = _matching_part(found, expected, path, wrapped="state_dict" in content)
    _check_values(state, path)
    _check_names(state, expected, path)
    _check_shapes(state, expected, path)
    # Not strict: the names were checked above, and tied ones may be absent.
    model.load_state_dict(state, strict=False)
    return model


def _read(path: Path) -> Mapping[str, Any]:
    advice = "save model.state_dict() alone, best as .safetensors"
    content = read_tensors(path, WeightsError, kind="weights", advice=advice)
    if not isinstance(content, Mapping):
        raise WeightsError(_not_weights(path, f"a {type(content).__name__}"))
    return content


def _not_weights(path: Path, found: str) -> str:
    return f"'{path}' holds {found}, not weights: save what model.state_dict() returns"


def _state_dict(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(_not_weights(path, "an empty or unknown state dict"))
    for name, value in state.items():
        if not isinstance(name, str):
            raise WeightsError(_not_weights(path, f"a {type(value).__name__} under {name!r}"))
    return state


def _matching_part(
    state: Mapping[str, Any], expected: Mapping[str, Any], path: Path, *, wrapped: bool
) -> dict[str, Any]:
    """Find the prefix below which the model's names lie, and return what is there without it.

    What lies elsewhere in a training checkpoint belongs to other parts of the training module, such
    as its loss; in a file of weights it is kept, to be reported as unexpected.
    """
    matches: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in expected:
                matches["".join(f"{part}." for part in parts[:depth])] += 1
    prefix = _prefix(matches, len(expected), path)
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) or not wrapped
    }


def _prefix(matches: Counter[str], wanted: int, path: Path) -> str:
    """Choose the prefix with the most of the wanted names below it."""
    best = [prefix for prefix, count in matches.items() if count == max(matches.values())]
    # Names as they stand win against names below a prefix, and Lightning's habit against others.
    usual = next((prefix for prefix in ("", "model.") if prefix in best), None)
    if usual is not None:
        return usual
    if len(best) > 1 and matches[best[0]] == wanted:
        # A teacher and its student, say: a guess would load either without a word.
        raise WeightsError(
            f"'{path}' holds this model several times, below {_some(map(repr, best))}: save the "
            "one you mean alone"
        )
    return min(best, key=len, default="")


def _check_values(state: Mapping[str, Any], path: Path) -> None:
    for name, value in state.items():
        # A module's extra state may be of any kind that weights_only lets through.
        if not isinstance(value, Tensor) and not name.endswith("_extra_state"):
            raise WeightsError(_not_weights(path, f"a {type(value).__name__} under {name!r}"))


def _check_names(state: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    # Tied parameters have several names; files often keep only one of them.
    given = {id(expected[name]) for name in state if name in expected}
    missing = [name for name, value in expected.items() if id(value) not in given]
    unexpected = [name for name in state if name not in expected]
    problems = []
    if missing:
        problems.append(f"lacks {_some(missing)}")
    if unexpected:
        problems.append(f"has {_some(unexpected)}, unknown to the model")
    if problems:
        raise WeightsError(f"'{path}' is not of this model: it {' and '.join(problems)}")


def _check_shapes(state: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    wrong = [
        f"{name} is {tuple(value.shape)} in the file and {tuple(expected[name].shape)} in the model"
        for name, value in state.items()
        # A lazy parameter takes the shape that it is given.
        if isinstance(value, Tensor)
        and not is_lazy(expected[name])
        and value.shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(f"'{path}' is not of this model: {_some(wrong)}")


def _some(names: Iterable[str]) -> str:
    named = list(names)
    more = len(named) - _NAMED_AT_MOST
    return ", ".join(named[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
