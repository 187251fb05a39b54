"""Dictionaries from disk, as libraries that train them save them: safetensors, no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neurograph.errors import OptionError
from neurograph.model.dictionary import ACTIVATIONS, Dictionary
from neurograph.utils.checks import is_path, shown
from neurograph.utils.tensor_files import read_tensors

__all__ = ["load_dictionary"]

_SAELENS, _SPARSIFY = "sae_weights.safetensors", "sae.safetensors"
_FOLDERS = f"a folder with cfg.json and {_SAELENS} (SAELens) or {_SPARSIFY} (sparsify)"
# What SAELens calls an architecture, or the activation of a 'standard' one: the activation here.
_KNOWN = {"standard": "relu", "relu": "relu", "jumprelu": "jumprelu", "topk": "topk"}


def load_dictionary(path: Any, **settings: Any) -> Dictionary:
    """Read a sparse autoencoder or a transcoder from disk.

    Parameters
    ----------
    path : path
        A folder as SAELens saves it (``cfg.json``, ``sae_weights.safetensors``) or sparsify does
        (``cfg.json``, ``sae.safetensors``); or a single file with the tensors ``W_enc``
        ``[channels, features]``, ``W_dec``, ``b_enc``, ``b_dec`` and perhaps ``threshold``.
    **settings
        Of a single file, which does not say them: `activation`, `k`,
        `subtract_decoder_bias`, `transcodes`.

    Raises
    ------
    OptionError
        Nothing is there, or another format (pickles, ``.pt``, are never read); a tensor is missing;
        or something is asked for that is not computed here, such as a gated encoder, a skip
        connection, or activations that are normalised while the model runs.
    """
    if not is_path(path):
        raise OptionError(
            f"path={shown(path)} is no path: pass {_FOLDERS}, or one safetensors file"
        )
    place = Path(path)
    if place.is_dir():
        if settings:
            raise OptionError(f"{', '.join(settings)}= are of a single file: cfg.json says them")
        return _from_folder(place)
    if not place.is_file():
        raise OptionError(f"'{place}' is not there: pass {_FOLDERS}, or one safetensors file")
    tensors = _tensors(place)
    known = {"activation", "k", "subtract_decoder_bias", "transcodes"}
    if settings.keys() - known:
        raise OptionError(f"'{place}': {min(settings.keys() - known)}= is none of {sorted(known)}")
    if "threshold" in tensors:
        settings.setdefault("activation", "jumprelu")
    if "activation" not in settings:
        raise OptionError(
            f"'{place}' does not say which activation its features have: pass activation=, one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    made = _made(place, tensors, settings)
    known_bias = "subtract_decoder_bias" in settings or made.transcodes
    if not known_bias and made.decoder_bias.any():
        raise OptionError(
            f"'{place}' does not say whether b_dec is subtracted before the encoder: pass "
            "subtract_decoder_bias=True or False"
        )
    return made


def _from_folder(place: Path) -> Dictionary:
    names = [name for name in (_SAELENS, _SPARSIFY) if (place / name).is_file()]
    if not names or not (place / "cfg.json").is_file():
        there = ", ".join(sorted(p.name for p in place.iterdir())[:8]) or "nothing"
        raise OptionError(
            f"'{place}' is not {_FOLDERS}: it holds {there}. Convert other formats with the "
            "library that wrote them; pickles (.pt, .bin) are never read"
        )
    try:
        asked = json.loads((place / "cfg.json").read_text("utf-8"))
    except ValueError as error:
        raise OptionError(f"'{place / 'cfg.json'}' is no JSON: {error}") from None
    if not isinstance(asked, dict):
        raise OptionError(f"'{place / 'cfg.json'}' holds no settings: {shown(asked)}")
    tensors, is_saelens = _tensors(place / names[0]), names[0] == _SAELENS
    settings = (_saelens if is_saelens else _sparsify)(place, asked, tensors)
    made = _made(place, tensors, settings)
    for name, width in [("d_in", made.encoder.shape[0]), ("d_sae", made.encoder.shape[1])]:
        if asked.get(name, width) != width:
            raise OptionError(f"'{place}': {name} is {asked[name]} but W_enc has {width}")
    return made


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        raise OptionError(
            f"'{file}' is no safetensors file, and pickles (.pt, .bin) can run any code when read: "
            "save its tensors with safetensors.torch.save_file"
        )
    found: dict[str, Tensor] = read_tensors(
        file, OptionError, kind="tensors", advice="save them with safetensors"
    )
    return found


def _saelens(place: Path, asked: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Read SAELens' settings, of before version 6 too; fit the tensors to them.

    A threshold below 0 is one of 0 there, as here; b_dec is subtracted unless
    `apply_b_dec_to_input` says otherwise, never in a transcoder.
    """
    architecture = str(asked.get("architecture", "standard"))
    name = architecture.removesuffix("transcoder").rstrip("_") or "standard"
    own = asked.get("activation_fn", asked.get("activation_fn_str", "relu"))
    name = str(own) if name == "standard" else name
    known = name in _KNOWN and own in ("relu", name)
    refused = {
        f"normalize_activations={asked.get('normalize_activations')!r} (if it is one number s, as "
        "in 'expected_average_only_in': multiply W_enc by s, divide W_dec and b_dec by it, and say "
        "'none')": asked.get("normalize_activations") not in (None, False, "none"),
        f"architecture={architecture!r}, activation {own!r}": not known,
        "a finetuning or scaling factor": any(
            "scaling_factor" in key and bool((tensor != 1).any()) for key, tensor in tensors.items()
        ),
    }
    _refuse(place, refused)
    settings: dict[str, Any] = {"activation": _KNOWN[name]}
    settings["subtract_decoder_bias"] = bool(asked.get("apply_b_dec_to_input", True))
    settings["transcodes"] = architecture.endswith("transcoder")
    if name == "topk":
        settings["k"] = asked.get("k", (asked.get("activation_fn_kwargs") or {}).get("k"))
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if asked.get("rescale_acts_by_decoder_norm") and "W_dec" in tensors:
        # Features are compared by how far they move the row: as if the decoder's norms were 1.
        norms = tensors["W_dec"].norm(dim=1)
        tensors |= {"W_dec": tensors["W_dec"] / norms[:, None]}
        tensors |= {n: tensors[n] * norms for n in ("W_enc", "b_enc") if n in tensors}
    return settings


def _sparsify(place: Path, asked: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Read sparsify's settings: the k largest of each row, b_dec subtracted but in a transcoder."""
    activation = asked.get("activation", "topk")
    refused = {f"activation={activation!r}": activation != "topk"}
    for name in ("signed", "skip_connection", "embed_skip", "gram_lookup"):
        refused[f"{name}={asked.get(name)!r}"] = bool(asked.get(name))
    _refuse(place, refused)
    for theirs, name in [("encoder.weight", "W_enc"), ("encoder.bias", "b_enc")]:
        if theirs in tensors:
            tensors[name] = tensors.pop(theirs).T if name == "W_enc" else tensors.pop(theirs)
    return {"activation": "topk", "k": asked.get("k"), "transcodes": bool(asked.get("transcode"))}


def _refuse(place: Path, refused: Mapping[str, bool]) -> None:
    for what, found in refused.items():
        if found:
            raise OptionError(f"'{place}' has {what}, which is not computed here")


def _made(place: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Dictionary:
    needed = {"W_enc": "encoder", "W_dec": "decoder", "b_enc": "encoder_bias"}
    needed |= {"b_dec": "decoder_bias"}
    needed |= {"threshold": "threshold"} if settings["activation"] == "jumprelu" else {}
    missing = [name for name in needed if name not in tensors]
    unknown = tensors.keys() - {*needed, "scaling_factor", "finetuning_scaling_factor"}
    if missing or unknown:
        more = f"has {', '.join(sorted(unknown))}, which is not understood"
        what = f"lacks {', '.join(missing)}" if missing else more
        raise OptionError(f"'{place}' {what}: it holds {', '.join(sorted(tensors))}")
    try:
        read: dict[str, Any] = {ours: tensors[theirs] for theirs, ours in needed.items()}
        return Dictionary(**read, **settings)
    except OptionError as error:
        raise OptionError(f"'{place}': {error}") from None
