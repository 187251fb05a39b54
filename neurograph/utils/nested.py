"""Nested structures of tensors: what models take and return, flattened and put together again."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# torch has no public pytree module yet; this one is stable and knows Hugging Face's outputs.
from torch.utils._pytree import tree_flatten, tree_flatten_with_path

__all__ = [
    "copied",
    "dense_parts",
    "flatten",
    "iter_tensors",
    "leaf_names",
    "main_index",
    "storages",
    "tree_map",
]

Rebuild = Callable[[Sequence[Any]], Any]

_PLAIN = {type(None), bool, int, float, str}


def flatten(tree: Any) -> tuple[list[Any], Rebuild]:
    """Leaves of a nested structure, and what puts other leaves in their place.

    Tuples, named tuples, lists, dicts, Hugging Face's outputs and dataclasses are structure;
    everything else is a leaf.

    Examples
    --------
    >>> leaves, rebuild = flatten({"a": 1, "b": (2, 3)})
    >>> leaves, rebuild([x * 10 for x in leaves])
    ([1, 2, 3], {'a': 10, 'b': (20, 30)})
    """
    # What most calls take and return, without asking which of many kinds it is.
    if isinstance(tree, Tensor) or type(tree) in _PLAIN:
        return [tree], _only
    if type(tree) is tuple or type(tree) is list:
        return _joined(type(tree), map(flatten, tree))
    if type(tree) is dict:
        keys = list(tree)
        return _joined(lambda new: dict(zip(keys, new, strict=True)), map(flatten, tree.values()))
    tops, spec = tree_flatten(tree)
    if not any(map(_is_record, tops)):
        return tops, spec.unflatten
    parts = (_flatten_record(top) if _is_record(top) else ([top], _only) for top in tops)
    return _joined(spec.unflatten, parts)


def _joined(
    join: Callable[[list[Any]], Any], parts: Iterable[tuple[list[Any], Rebuild]]
) -> tuple[list[Any], Rebuild]:
    """Leaves of all parts, and what puts the parts together again."""
    known = list(parts)

    def rebuild(new: Sequence[Any]) -> Any:
        rest = iter(new)
        return join([put(list(itertools.islice(rest, len(old)))) for old, put in known])

    return [leaf for leaves, _ in known for leaf in leaves], rebuild


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _only(leaves: Sequence[Any]) -> Any:
    return leaves[0]


def _fields(record: Any) -> dict[str, Any]:
    """Fields of a dataclass that have a value: one without a default need not."""
    names = (field.name for field in dataclasses.fields(record))
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


def _flatten_record(record: Any) -> tuple[list[Any], Rebuild]:
    leaves, rebuild = flatten(_fields(record))

    def put_together(new: Sequence[Any]) -> Any:
        # Not by its constructor, which may compute or refuse.
        twin = copy.copy(record)
        for name, value in rebuild(new).items():
            object.__setattr__(twin, name, value)
        return twin

    return leaves, put_together


def leaf_names(tree: Any) -> list[str]:
    """Name each leaf by its keys, joined by dots; the only leaf of a bare tensor is empty.

    Examples
    --------
    >>> leaf_names((1, (2, {"c": 3})))
    ['0', '1.0', '1.1.c']
    """
    names = []
    for path, top in tree_flatten_with_path(tree)[0]:
        name = ".".join(str(_key(entry)) for entry in path)
        if _is_record(top):
            names += [f"{name}.{inner}".lstrip(".") for inner in leaf_names(_fields(top))]
        else:
            names.append(name)
    return names


def _key(entry: Any) -> Any:
    return next(getattr(entry, a) for a in ("idx", "key", "name") if hasattr(entry, a))


def tree_map(change: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply a function to every leaf, and to the leaves of others of the same structure."""
    leaves, rebuild = flatten(tree)
    more = [flatten(other)[0] for other in others]
    return rebuild([change(*group) for group in zip(leaves, *more, strict=True)])


def copied(tree: Any) -> Any:
    """The same structure with copies of its tensors, without their gradients."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def iter_tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of a nested structure, in order."""
    for leaf in flatten(tree)[0]:
        if isinstance(leaf, Tensor):
            yield leaf


_ROWS = ("crow_indices", "col_indices", "values")
_COLUMNS = ("ccol_indices", "row_indices", "values")
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Dense tensors that a tensor consists of: itself, or indices and values of a sparse one."""
    names = _PARTS.get(tensor.layout)
    return [tensor] if names is None else [getattr(tensor, name)() for name in names]


def storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Memory that the tensors of a nested structure lie in.

    Of tensors that lie in no memory of their own (wrappers, opaque layouts) there is none.
    """
    for tensor in iter_tensors(tree):
        for part in dense_parts(tensor):
            try:
                yield part.untyped_storage()
            except (NotImplementedError, RuntimeError):
                continue


def main_index(leaves: list[Any]) -> int | None:
    """Which leaf is the first floating-point tensor."""
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return index
    return None
