"""Exemplars of a circuit's neurons as a page shows them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neurograph.errors import NeurographError
from neurograph.model.layers import Neuron

if TYPE_CHECKING:
    from neurograph.discovery.exemplars import Exemplars, Shown
    from neurograph.questions.study import Study

__all__ = ["add_exemplars"]

_PIXELS = 64  # of a side, at most
_TOKENS = 6  # on each side of the one where a neuron peaks


def add_exemplars(data: dict[str, Any], study: Study, count: int) -> None:
    """Put samples of the data on what a page of a circuit shows, and say so.

    Parameters
    ----------
    data : dict
        What the page shows; its nodes get ``exemplars``, itself ``pictures``, by sample.
    study : Study
        Which finds them.
    count : int
        How many at each end.
    """
    nodes = {_neuron(node): node for node in data["nodes"]}
    recorded = study.experiment.recording.layers
    asked = [neuron for neuron in nodes if not recorded[neuron.layer].routed]
    try:
        found = study.exemplars(neurons=asked, count=count)
    except NeurographError as error:
        data["notes"].append(f"no exemplars are shown: {error}")
        return
    for neuron in asked:
        nodes[neuron]["exemplars"] = _of(found, neuron)
    pictures = {}
    for (_, sample), shown in found.shown.items():
        if sample not in pictures and (picture := _picture(shown)) is not None:
            pictures[sample] = picture
    data["pictures"] = pictures
    count = len({sample for _, sample in found.shown})
    data["notes"].append(
        f"this page holds {count:,} samples of the data, as exemplars of neurons: exemplars=0 "
        "leaves them out"
    )


def _neuron(node: dict[str, Any]) -> Neuron:
    return Neuron(node["layer"], node["index"], node.get("position"))


def _of(found: Exemplars, neuron: Neuron) -> list[dict[str, Any]]:
    rows = found.of(neuron).to_dict("records")
    listed = []
    for row in rows:
        shown = found.shown[neuron, row["sample"]]
        one = {key: row[key] for key in ("end", "sample", "value", "label")}
        one |= {"shows": row["shows"] if shown.tokens is None else ""}
        one |= {"tokens": _tokens(shown), "outline": _outline(shown)}
        listed.append({key: value for key, value in one.items() if value not in (None, "")})
    return listed


def _tokens(shown: Shown) -> list[tuple[str, float]] | None:
    """Tokens around the peak, each with its value as a share of the largest."""
    if shown.tokens is None:
        return None
    tokens, values = list(shown.tokens), shown.values
    if values.shape != (len(tokens),) or shown.place is None:
        return [(token, 0.0) for token in tokens[: 2 * _TOKENS + 1]]
    first = max(0, shown.place[0] - _TOKENS)
    largest = float(np.nanmax(np.abs(values))) or 1.0
    shades = np.nan_to_num(values / largest)
    return [
        (tokens[i], round(float(shades[i]), 3))
        for i in range(first, min(len(tokens), shown.place[0] + _TOKENS + 1))
    ]


def _outline(shown: Shown) -> list[float] | None:
    """Left, top, width and height of the place in a map, as shares of the image."""
    if shown.place is None or len(shown.place) != 2:
        return None
    (row, column), (height, width) = shown.place, shown.values.shape
    return [column / width, row / height, 1 / width, 1 / height]


def _picture(shown: Shown) -> dict[str, Any] | None:
    """An image, small: width, height and the grey or colours of its pixels, in base 64."""
    image = shown.picture
    if image is None:
        return None
    colours = torch.from_numpy(image if image.ndim == 3 else image[..., None]).movedim(2, 0)
    if max(image.shape[:2]) > _PIXELS:
        scale = _PIXELS / max(image.shape[:2])
        size = tuple(max(1, round(n * scale)) for n in image.shape[:2])
        colours = torch.nn.functional.adaptive_avg_pool2d(colours, size)
    pixels = (colours.movedim(0, 2) * 255).round().to(torch.uint8).numpy()
    height, width, channels = pixels.shape
    text = base64.b64encode(pixels.tobytes()).decode()
    return {"width": width, "height": height, "channels": channels, "pixels": text}
