"""Targets read one number a sample off the model's output, or say why they cannot."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import neurograph as ng
from neurograph.data.source import Batch
from neurograph.errors import ModelError, OptionError
from neurograph.model.target import Target, logit_difference, resolve_target

ROWS, LENGTH, WORDS = 3, 4, 6
LOGITS = torch.randn(ROWS, LENGTH, WORDS, generator=torch.Generator().manual_seed(0))
RIGHT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
MASKS = {"right": (RIGHT, [2, 0, 3]), "left": (RIGHT.flip(1), [3, 3, 3])}


class Tokenizer:
    """Knows three words; every other is spelled."""

    words: ClassVar = {" yes": 4, " no": 1, "it": 0}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        start = [5] if add_special_tokens else []
        return start + ([self.words[text]] if text in self.words else [2] * len(text))


def batch_of(labels: Any = None, **inputs: Tensor) -> Batch:
    return Batch((), {"input_ids": torch.zeros(ROWS, LENGTH, dtype=torch.long), **inputs}, labels)


def wanted(places: list[int], pairs: list[tuple[int, int]]) -> Tensor:
    """One difference for each row, taken one by one."""
    values = [
        float(LOGITS[row, place, right]) - float(LOGITS[row, place, wrong])
        for row, (place, (right, wrong)) in enumerate(zip(places, pairs, strict=True))
    ]
    return torch.tensor(values)


# -- logit differences -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", MASKS)
def test_the_last_position_is_the_last_attended_one(side: str) -> None:
    mask, places = MASKS[side]
    target = logit_difference(4, 1)
    for dtype in (torch.long, torch.bool, torch.float32):
        found = target(SimpleNamespace(logits=LOGITS), batch_of(attention_mask=mask.to(dtype)))
        torch.testing.assert_close(found, wanted(places, [(4, 1)] * ROWS))


def test_without_a_mask_it_is_the_last_of_all() -> None:
    last = wanted([LENGTH - 1] * ROWS, [(4, 1)] * ROWS)
    target = logit_difference(4, 1)
    for batch in (batch_of(), batch_of(attention_mask=torch.ones(ROWS, LENGTH + 1))):
        torch.testing.assert_close(target(LOGITS, batch), last)
        torch.testing.assert_close(target((LOGITS, None), batch), last)


def test_what_a_decoder_says_is_read_where_its_own_tokens_end() -> None:
    mask, places = MASKS["right"]
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    inputs = {"decoder_input_ids": ids, "attention_mask": mask}
    target, pairs = logit_difference(4, 1), [(4, 1)] * ROWS
    found = target(LOGITS, batch_of(**inputs))
    torch.testing.assert_close(found, wanted([LENGTH - 1] * ROWS, pairs))
    inputs = {"attention_mask": mask.flip(1), "decoder_attention_mask": mask}
    torch.testing.assert_close(target(LOGITS, batch_of(**inputs)), wanted(places, pairs))


@pytest.mark.parametrize("position", [0, 2, -1, -4])
def test_a_position_by_number_asks_no_mask(position: int) -> None:
    target = logit_difference(4, 1, position=position)
    found = target(LOGITS, batch_of(attention_mask=RIGHT))
    places = [range(LENGTH)[position]] * ROWS
    torch.testing.assert_close(found, wanted(places, [(4, 1)] * ROWS))


@pytest.mark.parametrize("position", [4, -5])
def test_a_position_beyond_the_sequence_is_told(position: int) -> None:
    with pytest.raises(OptionError, match=rf"position={position} is outside the 4 positions"):
        logit_difference(4, 1, position=position)(LOGITS, batch_of())


def test_every_sample_may_bring_a_pair_of_its_own() -> None:
    pairs = [(0, 5), (3, 3), (2, 1)]
    target = logit_difference(position=1)
    assert target.name == "logit difference"
    for labels in (torch.tensor(pairs), np.array(pairs), pairs, torch.tensor(pairs).double()):
        found = target(LOGITS, batch_of(labels))
        torch.testing.assert_close(found, wanted([1] * ROWS, pairs))
    one = target(LOGITS, batch_of(torch.tensor([[0, 5]])))
    torch.testing.assert_close(one, wanted([1] * ROWS, [(0, 5)] * ROWS))


def test_outputs_without_positions_are_read_as_they_are() -> None:
    flat = LOGITS[:, 2]
    for target, labels in (
        (logit_difference(4, 1), None),
        (logit_difference(), torch.tensor([[4, 1]] * ROWS)),
    ):
        found = target(flat, batch_of(labels, attention_mask=RIGHT))
        torch.testing.assert_close(found, wanted([2] * ROWS, [(4, 1)] * ROWS))


def test_words_are_read_by_a_tokenizer() -> None:
    target = logit_difference(" yes", " no", tokenizer=Tokenizer())
    assert (target.correct, target.wrong) == (4, 1)
    assert target.name == "logit( yes) − logit( no)"
    same = logit_difference(np.int64(4), torch.tensor(1))
    assert (same.correct, same.wrong) == (4, 1)
    assert logit_difference(" yes", 1, tokenizer=Tokenizer()).wrong == 1
    assert logit_difference(4, 1).name == "logit(4) − logit(1)"


@pytest.mark.parametrize(
    ("given", "options", "reason"),
    [
        ((4,), {}, "pass both tokens, or none"),
        ((None, 4), {}, "pass both tokens, or none"),
        ((4, 1), {"position": "first"}, "position='first' is neither 'last' nor a number"),
        ((4, 1), {"position": True}, "position=True is neither"),
        ((4, 1), {"position": 1.0}, "position=1.0 is neither"),
        ((" yes", " no"), {}, "token ' yes' is a word: pass tokenizer="),
        ((4, " no"), {}, "token ' no' is a word"),
        ((" yes", "nope"), {"tokenizer": Tokenizer()}, "'nope' is 4 tokens, not one"),
        ((" yes", ""), {"tokenizer": Tokenizer()}, "'' is 0 tokens, not one"),
        ((" yes", " no"), {"tokenizer": 7}, "tokenizer is int: pass an object with encode"),
        ((4.5, 1), {}, "token 4.5 is neither an id nor a word"),
    ],
)
def test_differences_that_mean_nothing_are_told(given: Any, options: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        logit_difference(*given, **options)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (None, "needs labels of shape.*not NoneType"),
        (torch.tensor([1, 2, 3]), r"needs labels of shape.*not \(3,\)"),
        (torch.zeros(ROWS, 3), r"not \(3, 3\)"),
        (torch.zeros(2, 2), r"not \(2, 2\)"),
        (["yes", "no", "no"], "needs labels of shape.*not list"),
        (torch.tensor([[0, 1], [2, 6], [0, 1]]), "token 6 is outside the 6 words"),
        (torch.tensor([[0, 1], [2, -100], [0, 1]]), "token -100 is outside the 6 words"),
    ],
)
def test_labels_that_are_no_pairs_are_told(labels: Any, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        logit_difference()(LOGITS, batch_of(labels))


@pytest.mark.parametrize("token", [6, -1])
def test_a_token_outside_the_vocabulary_is_told(token: int) -> None:
    with pytest.raises(OptionError, match=f"token {token} is outside the 6 words"):
        logit_difference(4, token)(LOGITS, batch_of())


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4, 6)])
def test_an_output_that_holds_no_logits_of_tokens_is_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"needs logits of shape .*not \(3,"):
        logit_difference(0, 1)(torch.zeros(shape), batch_of())


def test_a_search_explains_a_difference_of_logits() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.head = nn.Embedding(9, 5), nn.Linear(5, WORDS)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            h = self.enter(input_ids) * attention_mask[..., None]
            return self.head(h.cumsum(1))

    torch.manual_seed(0)
    model = Words().double()
    lengths = torch.randint(1, LENGTH + 1, (40, 1))
    data = {
        "input_ids": torch.randint(9, (40, LENGTH)),
        "attention_mask": (torch.arange(LENGTH) < lengths).long(),
        "labels": torch.randint(WORDS, (40, 2)),
    }
    options: dict[str, Any] = {"keep": "top:5", "reference": data, "progress": False}
    circuit = ng.search(model, data, logit_difference(), contrast="zero", **options)
    assert circuit.target == "logit difference"
    # Moved from 0 to what it is: by hand, through the weights of each sample's own two words.
    hidden = (model.enter(data["input_ids"]) * data["attention_mask"][..., None]).sum(1)
    right, wrong = model.head.weight[data["labels"]].unbind(1)
    effects = (hidden * (right - wrong)).mean(0).tolist()
    found = {n.index: e for n, e in circuit.graph.nodes(data="total_effect") if n.layer == "enter"}
    assert found
    for index, effect in found.items():
        assert effect == pytest.approx(effects[index], rel=1e-9)


# -- output indices and callables ------------------------------------------------------------------

Named = namedtuple("Named", "count scores")  # its first tensor is of integers


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: (t,), lambda t: {"logits": t},
                                  lambda t: SimpleNamespace(logits=t),
                                  lambda t: Named(torch.arange(3), t)])  # fmt: skip
def test_an_index_is_a_column_wherever_the_logits_are(wrap: Any) -> None:
    output = wrap(LOGITS[:, 0])
    if isinstance(output, Named):
        assert output.count.dtype == torch.long
    target = resolve_target(2, output, None)
    assert target.name == "output[2]"
    assert torch.equal(target(output, batch_of), LOGITS[:, 0, 2])
    assert resolve_target(2, output, list("abcdef")).name == "c"


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_single_output_is_a_binary_logit(shape: tuple[int, ...]) -> None:
    logit = torch.tensor([1.0, -2.0, 3.0]).view(shape)
    for index, name, sign in ((1, "output", 1), (0, "-output (target 0 of a binary logit)", -1)):
        target = resolve_target(index, logit, None)
        assert target.name == name
        assert target(logit, batch_of).tolist() == [sign, -2 * sign, 3 * sign]
        assert resolve_target(index, logit, ["well", "ill"]).name == ["well", "ill"][index]


@pytest.mark.parametrize(
    ("target", "output", "names", "reason"),
    [
        (6, LOGITS[:, 0], None, "target 6 is out of range: the model has targets 0…5"),
        (-1, LOGITS[:, 0], None, "target -1 is negative: targets count from 0, and the last is 5"),
        (2, LOGITS[:, 0, 0], None, "targets 0…1"),
        (1, LOGITS[:, 0], ["a", "b"], "class_names has 2 names for 6 targets"),
        (1, LOGITS[:, 0, 0], ["a"], "class_names has 1 names for 2 targets"),
        (1, LOGITS, None, "the output is 3×4×6, so the target 1 names no single number"),
        (True, LOGITS[:, 0], None, "target is True: pass an output index"),
        (np.True_, LOGITS[:, 0], None, "target is .*True.*: pass an output index"),
        (torch.tensor(True), LOGITS[:, 0], None, "pass an output index"),
        ("ill", LOGITS[:, 0], None, "target='ill' is a name: pass class_names="),
        ("il", LOGITS[:, 0, 0], ["well", "ill"], "none of class_names: did you mean 'ill'"),
        ("a", LOGITS[:, 0, 0], ["a", "a"], "'a' names several classes"),
        (1.0, LOGITS[:, 0], None, "target is 1.0"),
        (None, LOGITS[:, 0], None, "the model has 6 outputs: pass target=, one of 0…5"),
        (None, LOGITS[:, 0], list("abcdef"), "one of 0…5 or of 'a', 'b', 'c', 'd', 'e', …"),
    ],
)
def test_indices_that_name_no_number_are_told(
    target: Any, output: Any, names: list[str] | None, reason: str
) -> None:
    with pytest.raises(OptionError, match=reason):
        resolve_target(target, output, names)


@pytest.mark.parametrize("output", [torch.arange(3), None, "words", {"loss": None}])
def test_an_output_without_numbers_is_told(output: Any) -> None:
    with pytest.raises(ModelError, match="holds no floating-point tensor: pass target=callable"):
        resolve_target(1, output, None)


class Spread:
    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        return output.amax(-1) - output.amin(-1)


class Called(Spread):
    name = "how far apart"


def confidence(output: Tensor, batch: Batch) -> Tensor:
    return output.amax(-1)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (confidence, "confidence"),
        (Spread(), "Spread"),
        (Called(), "how far apart"),
        (logit_difference(4, 1), "logit(4) − logit(1)"),
    ],
)
def test_a_callable_is_called_by_its_name(function: Any, name: str) -> None:
    target = resolve_target(function, LOGITS[:, 0], None)
    assert target.name == name
    found = target(LOGITS[:, 0], batch_of)
    assert torch.equal(found, function(LOGITS[:, 0], batch_of()))


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (torch.zeros(ROWS, 1), "returned 3×1 for 3 samples"),
        (torch.tensor(1.0), "returned a single number for 3 samples"),
        (1.0, "returned float for 3 samples"),
        (None, "returned NoneType for 3 samples"),
    ],
)
def test_a_callable_that_returns_no_number_a_sample_is_told(returned: Any, reason: str) -> None:
    target = Target("odd", function=lambda output, batch: returned)
    with pytest.raises(OptionError, match=rf"target 'odd' {reason}"):
        target(LOGITS, batch_of)
