"""Which positions hold tokens, which may move, and what stands there: padding on either side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.layers import Layer
from neurograph.model.positions import (
    attended,
    check_positions,
    is_mask,
    masks_for,
    moving,
    token_names,
)

RIGHT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
LEFT = RIGHT.flip(1)
HOLES = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
MASKS = {"right": RIGHT, "left": LEFT, "holes": HOLES}
LENGTH, CHANNELS = 4, 3


def layer_of(
    module: str,
    shape: tuple[int, ...] = (LENGTH, CHANNELS),
    dim: int = 2,
    mask: str | None = "input.attention_mask",
) -> Layer:
    return Layer(module, module, module, "Linear", shape, dim, shape[dim - 1], 1, mask=mask)


TOKENS = layer_of("model.fc")
SIGNAL = layer_of("conv", (CHANNELS, LENGTH), 1)


def movable(mask: list[list[bool]], layer: Layer) -> Tensor:
    """Elements of each flattened row, written out place by place."""
    rows = []
    for row in mask:
        values = torch.zeros(layer.shape, dtype=torch.bool)
        for place in [(i, j) for i in range(layer.shape[0]) for j in range(layer.shape[1])]:
            values[place] = row[place[2 - layer.channel_dim]]
        rows.append(values.flatten())
    return torch.stack(rows)


# -- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
@pytest.mark.parametrize("side", MASKS)
def test_attended_positions_are_those_of_the_mask(side: str, dtype: torch.dtype) -> None:
    mask = MASKS[side]
    inputs = {"input.input_ids": torch.zeros(3, LENGTH), "input.attention_mask": mask.to(dtype)}
    for layer in (TOKENS, SIGNAL):
        found = attended(inputs, layer)
        assert found is not None
        assert found.dtype == torch.bool
        assert torch.equal(found, mask.bool())


def test_every_position_counts_where_no_mask_says_otherwise() -> None:
    assert attended({"input": torch.zeros(3, LENGTH)}, TOKENS) is None
    assert attended({"input.attention_mask": torch.ones(3, LENGTH)}, TOKENS) is None
    assert attended({"input.attention_mask": RIGHT}, layer_of("fc", (5, 3))) is None
    assert attended({"input.attention_mask": RIGHT}, layer_of("fc", (4,), 1)) is None
    assert attended({"input.attention_mask": RIGHT}, layer_of("conv", (3, 4, 4), 1)) is None
    squares = RIGHT[:, None].expand(3, LENGTH, LENGTH)
    assert attended({"input.attention_mask": squares}, TOKENS) is None
    assert attended({"input.attention_mask": RIGHT}, layer_of("model.fc", mask=None)) is None


@pytest.mark.parametrize("side", MASKS)
def test_a_mask_of_padding_is_read_the_other_way(side: str) -> None:
    mask = MASKS[side].bool()
    found = attended({"input.padding": ~mask}, layer_of("fc", mask="~input.padding"))
    assert found is not None
    assert torch.equal(found, mask)
    assert attended({"input.other": ~mask}, layer_of("fc", mask="~input.padding")) is None


def test_masks_are_called_so_and_hold_nothing_but_0_and_1() -> None:
    assert is_mask("input.src_key_padding_mask", RIGHT.bool())
    assert is_mask("input.padding", RIGHT)
    assert is_mask("input.attention_mask", RIGHT.float())
    assert not is_mask("input.input_ids", RIGHT)
    assert is_mask("input.attention_mask", RIGHT * 2)
    assert not is_mask("input.mask", RIGHT * 2)
    assert not is_mask("input.attention_mask", RIGHT[:, None])
    assert not is_mask("input.mask", torch.zeros(3, 4).masked_fill(RIGHT == 0, -torch.inf))


def test_encoder_and_decoder_have_masks_of_their_own() -> None:
    encoder, decoder = layer_of("encoder.block.0.fc"), layer_of("decoder.block.0.fc")
    ids = torch.zeros(3, LENGTH, dtype=torch.long)
    inputs = {
        "input.input_ids": ids,
        "input.attention_mask": RIGHT,
        "input.decoder_input_ids": ids,
        "input.decoder_attention_mask": LEFT,
    }
    own, others = "input.attention_mask", "input.decoder_attention_mask"
    assert masks_for(inputs, encoder) == [own]
    assert masks_for(inputs, decoder) == masks_for(inputs, layer_of("lm_head")) == [others]
    # All of the decoder's tokens are real where it has no mask, though the encoder's are not.
    del inputs["input.decoder_attention_mask"]
    assert masks_for(inputs, decoder) == []
    assert masks_for(inputs, encoder) == [own]
    # What is as long as the encoder's sequence inside a decoder belongs to the encoder's tokens.
    inputs["input.decoder_input_ids"] = torch.zeros(3, 7, dtype=torch.long)
    assert masks_for(inputs, decoder) == [own]


def test_a_decoder_alone_has_the_plain_mask_and_what_else_is_called_a_mask() -> None:
    inputs = {"input.input_ids": torch.zeros(3, LENGTH), "input.attention_mask": LEFT}
    decoder = layer_of("model.decoder.layers.0.fc1")
    assert masks_for(inputs, decoder) == ["input.attention_mask"]
    inputs["input.padding"] = LEFT == 0
    assert masks_for(inputs, decoder) == ["input.attention_mask", "input.padding"]
    assert masks_for(inputs, layer_of("fc", (5, 3))) == []


# -- what may move -------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [TOKENS, SIGNAL], ids=["tokens", "signal"])
@pytest.mark.parametrize("side", MASKS)
def test_what_may_move_under_a_mask(side: str, layer: Layer) -> None:
    mask = MASKS[side].bool().tolist()
    inputs = {"input.attention_mask": MASKS[side]}
    for positions in ("all", "each"):
        found = moving(inputs, 3, layer, positions)  # type: ignore[arg-type]
        assert found is not None
        assert torch.equal(found, movable(mask, layer))
    last = [max((i for i in range(LENGTH) if row[i]), default=None) for row in mask]
    found = moving(inputs, 3, layer, "last")
    assert found is not None
    wanted = [[i == place for i in range(LENGTH)] for place in last]
    assert torch.equal(found, movable(wanted, layer))


@pytest.mark.parametrize("layer", [TOKENS, SIGNAL], ids=["tokens", "signal"])
@pytest.mark.parametrize("position", [0, 2, 3, -1, -4])
def test_one_position_may_move_where_it_is_no_padding(position: int, layer: Layer) -> None:
    place = range(LENGTH)[position]
    found = moving({}, 2, layer, position)
    assert found is not None
    assert torch.equal(found, movable([[i == place for i in range(LENGTH)]] * 2, layer))
    for mask in MASKS.values():
        found = moving({"input.attention_mask": mask}, 3, layer, position)
        wanted = [[i == place and bool(row[i]) for i in range(LENGTH)] for row in mask]
        assert found is not None
        assert torch.equal(found, movable(wanted, layer))


def test_everything_may_move_where_nothing_is_said() -> None:
    for positions in ("all", "each"):
        assert moving({}, 2, TOKENS, positions) is None  # type: ignore[arg-type]
    for layer in (layer_of("fc", (4,), 1), layer_of("conv", (3, 4, 4), 1)):
        for any_positions in ("all", "each", "last", 0, 99):
            assert moving({"input.attention_mask": RIGHT}, 2, layer, any_positions) is None  # type: ignore[arg-type]
    last = moving({}, 2, TOKENS, "last")
    assert last is not None
    assert torch.equal(last, movable([[False, False, False, True]] * 2, TOKENS))


@pytest.mark.parametrize("position", [4, -5, 99])
def test_a_position_beyond_the_sequence_is_told(position: int) -> None:
    with pytest.raises(OptionError, match=rf"positions={position} is outside the 4 positions of"):
        moving({}, 2, TOKENS, position)


@pytest.mark.parametrize("positions", ["all", "last", "each", 0, -1, 7])
def test_positions_that_mean_something(positions: Any) -> None:
    check_positions(positions)


@pytest.mark.parametrize("positions", ["first", "", None, 1.0, True, [1], "0"])
def test_positions_that_mean_nothing_are_told(positions: Any) -> None:
    with pytest.raises(OptionError, match="is none of 'all', 'last', 'each' or a number"):
        check_positions(positions)


# -- what stands there -----------------------------------------------------------------------------


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        (token,) = ids
        return f"t{token}"


IDS = torch.tensor([[7, 1, 4, 0], [7, 2, 5, 0], [7, 3, 4, 0], [7, 9, 4, 0], [7, 1, 4, 0]])


@pytest.mark.parametrize("tokenizer", [Tokenizer(), "t{}".format], ids=["object", "function"])
def test_tokens_are_named_where_samples_agree_and_where_they_differ(tokenizer: Any) -> None:
    for layer in (TOKENS, SIGNAL):
        names = token_names({"input": IDS}, layer, tokenizer)
        assert names == ["t7", "t1|t2|t3|…", "t4|t5", "t0"]


def test_a_function_may_return_what_is_no_string() -> None:
    assert token_names({"input": IDS[:1]}, TOKENS, lambda token: token * 2) == "14 2 8 0".split()


def test_names_come_from_the_ids_of_the_layers_own_sequence() -> None:
    inputs = {
        "input.token_type_ids": torch.zeros_like(IDS),
        "input.decoder_input_ids": IDS + 10,
        "input.attention_mask": torch.ones_like(IDS),
        "input.input_ids": IDS,
    }
    first = {
        module: (token_names(inputs, layer_of(module), Tokenizer()) or [""])[0]
        for module in ("encoder.fc", "decoder.fc", "lm_head")
    }
    assert first == {"encoder.fc": "t7", "decoder.fc": "t17", "lm_head": "t17"}
    del inputs["input.decoder_input_ids"]
    assert (token_names(inputs, layer_of("lm_head"), Tokenizer()) or [""])[0] == "t7"


def test_nothing_is_named_where_no_ids_are_as_long() -> None:
    ids = {"input": IDS}
    assert token_names(ids, layer_of("fc", (5, 3)), Tokenizer()) is None
    assert token_names(ids, layer_of("fc", (4,), 1), Tokenizer()) is None
    assert token_names({"input": torch.rand(5, LENGTH)}, TOKENS, Tokenizer()) is None
    assert token_names({"input.attention_mask": IDS}, TOKENS, Tokenizer()) is None
    assert token_names({"input.padding": IDS > 0}, TOKENS, Tokenizer()) is None


@pytest.mark.parametrize("tokenizer", [7, "words", {"a": 1}])
def test_what_is_no_tokenizer_is_told(tokenizer: Any) -> None:
    kind = type(tokenizer).__name__
    with pytest.raises(OptionError, match=rf"tokenizer is {kind}: pass an object with decode"):
        token_names({"input": IDS}, TOKENS, tokenizer)
