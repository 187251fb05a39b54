"""Nested outputs of every kind come apart into leaves, and together again as they were."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from neurograph.utils.nested import flatten, iter_tensors, leaf_names, tree_map


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Answer:
    logits: Any
    extra: Any = None
    seen: list[str] = dataclasses.field(default_factory=list, compare=False)


@dataclasses.dataclass(frozen=True)
class Sealed:
    """Computes a field of its own, and refuses to be made by anyone but its author."""

    value: Any
    twice: Any = dataclasses.field(init=False)

    allowed = True

    def __post_init__(self) -> None:
        if not Sealed.allowed:
            raise RuntimeError("made by a stranger")
        object.__setattr__(self, "twice", self.value)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: Any


@dataclasses.dataclass
class Unset:
    value: Any
    later: Any = dataclasses.field(init=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unset) and vars(self) == vars(other)


# Models in use still return such.
Old = namedtuple("Old", "first second")

TREES: dict[str, tuple[Any, list[Any], list[str]]] = {
    "a leaf": (1, [1], [""]),
    "nothing": (None, [None], [""]),
    "a tuple": ((1, (2,)), [1, 2], ["0", "1.0"]),
    "an empty tuple": ((), [], []),
    "a dict of lists": ({"a": [1, 2], "b": 3}, [1, 2, 3], ["a.0", "a.1", "b"]),
    "an ordered dict": (OrderedDict(z=1, a=2), [1, 2], ["z", "a"]),
    "a named tuple": (Pair(1, Pair(2, 3)), [1, 2, 3], ["left", "right.left", "right.right"]),
    "an old named tuple": (Old(1, 2), [1, 2], ["first", "second"]),
    "a dataclass": (
        Answer(1, (2, {"c": 3})),
        [1, 2, 3],
        ["logits", "extra.0", "extra.1.c"],
    ),
    "dataclasses inside": (
        (0, Answer([1], Answer(2, 3)), {"d": Sealed(4)}),
        [0, 1, 2, 3, 4, 4],
        ["0", "1.logits.0", "1.extra.logits", "1.extra.extra", "2.d.value", "2.d.twice"],
    ),
    "a field without a value": ((Unset(1), 2), [1, 2], ["0.value", "1"]),
    "slots": (Slotted((1, 2)), [1, 2], ["value.0", "value.1"]),
}


@pytest.mark.parametrize("kind", TREES)
def test_leaves_have_names_and_come_together_again(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, wanted, names = TREES[kind]
    monkeypatch.setattr(Sealed, "allowed", False)
    leaves, rebuild = flatten(tree)
    assert leaves == wanted
    assert leaf_names(tree) == names
    again = rebuild(leaves)
    assert again == tree
    assert type(again) is type(tree)
    other = rebuild([str(leaf) for leaf in leaves])
    assert flatten(other)[0] == [str(leaf) for leaf in leaves]
    assert leaf_names(other) == names
    assert flatten(tree)[0] == wanted  # the first one is as it was


def test_what_is_no_field_of_a_dataclass_is_kept() -> None:
    answer = Answer(1)
    answer.note = "kept"  # type: ignore[attr-defined]
    leaves, rebuild = flatten(answer)
    twin = rebuild([2, 3, *leaves[2:]])
    assert (twin.logits, twin.extra, twin.note) == (2, 3, "kept")
    assert (answer.logits, answer.extra) == (1, None)


def test_a_class_of_data_is_a_leaf_of_its_own() -> None:
    assert flatten([Answer, 1])[0] == [Answer, 1]


def test_a_function_is_applied_to_the_leaves_of_several() -> None:
    tree, other = {"a": Pair(1, 2), "b": Answer(3)}, {"a": Pair(10, 20), "b": Answer(30)}
    summed = tree_map(lambda x, y: None if x is None else x + y, tree, other)
    assert summed == {"a": Pair(11, 22), "b": Answer(33)}
    with pytest.raises(ValueError, match="shorter"):
        tree_map(lambda x, y: x, (1, 2), (1,))


def test_tensors_are_found_in_order() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    tree = (a, "word", {"x": Answer(b, 7), "y": Sealed(c)})
    assert [id(t) for t in iter_tensors(tree)] == [id(t) for t in (a, b, c, c)]


def test_outputs_of_hugging_face_are_structure() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    logits, states = torch.rand(2, 3), (torch.rand(2, 4), torch.rand(2, 4))
    output = outputs.SequenceClassifierOutput(logits=logits, hidden_states=states)
    leaves, rebuild = flatten(output)
    assert [id(leaf) for leaf in leaves] == [id(t) for t in (logits, *states)]
    assert leaf_names(output) == ["logits", "hidden_states.0", "hidden_states.1"]
    twin = rebuild([leaf + 1 for leaf in leaves])
    assert type(twin) is type(output)
    assert torch.equal(twin.logits, logits + 1)
    assert torch.equal(twin["hidden_states"][1], states[1] + 1)
    assert twin.loss is None
    assert torch.equal(output.logits, logits)


def test_tensors_inside_a_dataclass_are_replaced_and_not_written_to() -> None:
    answer = Answer(torch.zeros(2), Sealed(torch.ones(2)))
    twin = tree_map(lambda x: x + 1 if isinstance(x, Tensor) else x, answer)
    assert (twin.logits.tolist(), twin.extra.value.tolist()) == ([1, 1], [2, 2])
    assert (answer.logits.tolist(), answer.extra.value.tolist()) == ([0, 0], [1, 1])
