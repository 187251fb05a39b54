"""Networks seen in other ways: some layers only, input sides, heads, tokens, whole blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.zoo.convolution import resnet, unet
from tests.zoo.language import bert, gpt2, llama, t5
from tests.zoo.network import Network, Site, Unit
from tests.zoo.odd import constants
from tests.zoo.patches import swin, vit
from tests.zoo.sequence import lstm

SIDE = ":input"
Values = Mapping[str, Tensor]


def choose(name: str, network: Network, *wanted: str, **options: Any) -> Network:
    """The same network with only some of its layers; those ending in `:input` are input sides."""
    sites: dict[str, Site] = {}
    for site_name, site in network.sites.items():
        path = site.call.split("#")[0]
        if path + SIDE in wanted:
            sites[site.call + SIDE] = replace(site, call=site.call + SIDE, leaf=0)
        if path in wanted or site_name.startswith("input"):
            sites[site_name] = site
    return replace(network, name=name, sites=sites, options={"layers": list(wanted), **options})


def every_second(name: str, network: Network) -> Network:
    paths = [s.call.split("#")[0] for n, s in network.sites.items() if not n.startswith("input")]
    return choose(name, network, *paths[::2])


def resnet_half(seed: int) -> Network:
    return every_second("resnet_half", resnet(seed))


def unet_half(seed: int) -> Network:
    return every_second("unet_half", unet(seed))


def swin_half(seed: int) -> Network:
    return every_second("swin_half", swin(seed))


def t5_half(seed: int) -> Network:
    return every_second("t5_half", t5(seed))


def constants_half(seed: int) -> Network:
    return every_second("constants_half", constants(seed))


# -- heads -----------------------------------------------------------------------------------------


def heads(size: int, names: Callable[[str], bool]) -> Callable[[Values, Network], Any]:
    """Neighbouring channels taken together in the sites whose names fit."""

    def units(values: Values, network: Network) -> dict[str, list[Unit]]:
        found: dict[str, list[Unit]] = {}
        for name in filter(names, network.sites):
            channels = range(values[name].shape[network.sites[name].channel])
            found[name] = [(list(channels[i : i + size]), None) for i in channels[::size]]
        return found

    return units


def gpt2_heads(seed: int) -> Network:
    """Queries, keys and values come from one layer; heads meet before the projection."""
    network, blocks = gpt2(seed), ("transformer.h.0", "transformer.h.1")
    wanted = [f"{b}.{n}" for b in blocks for n in ("attn.c_attn", "attn.c_proj:input")]
    wanted += [f"{b}.mlp.c_proj:input" for b in blocks]
    groups = {"c_attn": "heads", "attn.c_proj:input": "heads"}
    chosen = choose("gpt2_heads", network, *wanted, groups=groups)
    return replace(chosen, units=heads(2, lambda name: ".attn." in name))


def llama_heads(seed: int) -> Network:
    """Four heads of queries, two of keys and values."""
    network, layers = llama(seed), ("model.layers.0", "model.layers.1")
    wanted = [f"{a}.self_attn.{n}_proj" for a in layers for n in "qkv"]
    wanted += [f"{a}.{n}" for a in layers for n in ("self_attn.o_proj:input", "mlp.up_proj")]
    groups = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj:input"), "heads")
    chosen = choose("llama_heads", network, *wanted, groups=groups)
    return replace(chosen, units=heads(2, lambda name: ".self_attn." in name))


def llama_blocks(seed: int) -> Network:
    """Whole blocks are layers: what is inside them is not."""
    network = llama(seed)
    sites = {"input": network.sites["input"]}
    sites |= {f"model.layers.{i}": Site(f"model.layers.{i}") for i in range(2)}
    options = {"layers": ["model.layers.*"]}
    return replace(network, name="llama_blocks", sites=sites, options=options)


def llama_norms(seed: int) -> Network:
    """Normalisations are layers where they are asked for."""
    network = llama(seed)
    norms = [f"model.layers.{i}.input_layernorm" for i in range(2)] + ["model.norm"]
    sites = {"input": network.sites["input"]} | {name: Site(name) for name in norms}
    options = {"layers": lambda name, _module: name in norms}
    return replace(network, name="llama_norms", sites=sites, options=options)


# -- positions -------------------------------------------------------------------------------------


def sequences(values: Values, network: Network) -> dict[str, int]:
    """Sites with one axis of positions, and where it is once the channels are taken out."""
    found = {}
    for name, site in network.sites.items():
        tensor = values[name]
        fixed = site.batch is None
        plain = tensor.is_floating_point() and site.many == 1 and site.moves
        if plain and tensor.dim() == (2 if fixed and tensor.shape[0] != 1 else 3):
            found[name] = 0 if site.batch == 1 or tensor.dim() == 2 else 1
    return found


def _where(like: Tensor, axis: int, position: int) -> Tensor:
    mask = torch.zeros(like.shape, dtype=torch.bool)
    mask.movedim(axis, 0)[position] = True
    return mask


def at(position: int) -> Callable[[Values, Network], Any]:
    """Channels that move at one position alone."""

    def units(values: Values, network: Network) -> dict[str, list[Unit]]:
        found: dict[str, list[Unit]] = {}
        for name, axis in sequences(values, network).items():
            channels = values[name].movedim(network.sites[name].channel, 0)
            found[name] = [(c, _where(row, axis, position)) for c, row in enumerate(channels)]
        return found

    return units


def each(values: Values, network: Network) -> dict[str, list[Unit]]:
    """Every channel at every position."""
    found: dict[str, list[Unit]] = {}
    for name, axis in sequences(values, network).items():
        channels = values[name].movedim(network.sites[name].channel, 0)
        places = range(channels[0].shape[axis])
        found[name] = [(c, _where(row, axis, t)) for c, row in enumerate(channels) for t in places]
    return found


def last_attended(values: Values, network: Network) -> dict[str, list[Unit]]:
    """The last position that the attention mask lets through, another one in each sample."""
    mask = values["input.attention_mask"]
    last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
    found: dict[str, list[Unit]] = {}
    for name in sequences(values, network):
        channels = range(values[name].shape[-1])
        found[name] = [(c, last) for c in channels]
    return found


def gpt2_each(seed: int) -> Network:
    network = gpt2(seed)
    return replace(network, name="gpt2_each", options={"positions": "each"}, units=each)


def gpt2_last(seed: int) -> Network:
    network = gpt2(seed)
    return replace(network, name="gpt2_last", options={"positions": "last"}, units=at(-1))


def vit_position(seed: int) -> Network:
    network = vit(seed)
    return replace(network, name="vit_position", options={"positions": 1}, units=at(1))


def lstm_first(seed: int) -> Network:
    """Time comes first in what the layers return."""
    network = lstm(seed)
    return replace(network, name="lstm_first", options={"positions": -3}, units=at(-3))


def bert_last(seed: int) -> Network:
    """Sequences end at different positions."""
    network = bert(seed)
    return replace(network, name="bert_last", options={"positions": "last"}, units=last_attended)
