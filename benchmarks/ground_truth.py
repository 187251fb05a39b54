"""Circuits that are known beforehand, and how well each contrast and scorer ranks them.

    python benchmarks/ground_truth.py --write docs/ground_truth.md

Writes the figure too, beside the page in figures/. Compiled programs are read from
../shared/ground_truth, and left out where that is not there.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import neurograph as ng  # noqa: E402
from neurograph.effects.contrast import Resample  # noqa: E402
from neurograph.errors import ModelError  # noqa: E402
from neurograph.report.figures.style import (  # noqa: E402
    DASHES,
    PALETTE,
    key,
    legend,
    look,
    outer,
    panels,
)
from tests.planted import planted  # noqa: E402
from tests.programs import PROGRAMS  # noqa: E402
from tests.ranking import auroc, planted_aurocs, program_edges  # noqa: E402
from tests.rasp import Program, load  # noqa: E402
from tests.trained import (  # noqa: E402
    SEEING,
    greater_than,
    later_years,
    margin,
    modular_addition,
)

COMPILED = ROOT.parent / "shared" / "ground_truth"
FIGURE = "ground_truth_noise.png"
LENGTHS = (4, 8)
CONTRASTS: dict[str, Any] = {
    "resample": "resample",
    "same position": Resample(positions=False),
    "zero": "zero",
    "mean": "mean",
    "quantiles": "quantiles",
    "pooled": "pooled",
}
SCORERS: dict[str, dict[str, Any]] = {
    "exact": {"scorer": "exact"},
    "auto, budget=4": {"scorer": "auto", "budget": 4},
    "hybrid": {"scorer": "hybrid"},
    "gradient": {"scorer": "gradient"},
    "integrated": {"scorer": "integrated"},
}
NOISE = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
SEEDS = range(5)


def programs() -> Iterator[tuple[str, Program]]:
    """Every program with its name."""
    if COMPILED.exists():
        for path in sorted(COMPILED.glob("*.npz")):
            yield f"{path.stem} (compiled)", load(COMPILED, path.stem)[0]
    for name, build in PROGRAMS.items():
        for length in LENGTHS:
            yield f"{name}, {length} positions", build(length)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; numbers with three decimals, without zeros behind."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_written, line)) + " |" for line in lines)


def _written(value: object) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def program_tables() -> tuple[str, str]:
    """AUROC of every program by contrast, and by scorer."""
    by_contrast: list[list[Any]] = []
    by_scorer: list[list[Any]] = []
    for name, program in programs():
        true = f"{sum(program.edges.values())} of {len(program.edges)}"
        found = [
            auroc(program_edges(program, contrast=c), program.edges) for c in CONTRASTS.values()
        ]
        by_contrast.append([name, true, *found])
        by_scorer.append([name, *(_by_scorer(program, how) for how in SCORERS.values())])
    columns = zip(*(row[2:] for row in by_contrast), strict=True)
    by_contrast.append(["lowest", "", *map(min, columns)])
    return (
        table(["program", "true edges", *CONTRASTS], by_contrast),
        table(["program", *SCORERS], by_scorer),
    )


def _by_scorer(program: Program, how: Mapping[str, Any]) -> float | str:
    """AUROC by one scorer; of one that is blind in the program, that it is refused."""
    try:
        return auroc(program_edges(program, contrast="resample", **how), program.edges)
    except ModelError:
        return "refused"


def noise_curves() -> dict[str, np.ndarray]:
    """AUROC of neurons and edges by scorer, ``[noise, seed, 2]``."""
    return {
        name: np.array(
            [[planted_aurocs(planted(seed, noise), **how) for seed in SEEDS] for noise in NOISE]
        )
        for name, how in SCORERS.items()
    }


def noise_table(curves: Mapping[str, np.ndarray], what: int) -> str:
    rows = [
        [f"{noise:g}", *(f"{found[i, :, what].mean():.3f}" for found in curves.values())]
        for i, noise in enumerate(NOISE)
    ]
    return table(["noise", *curves], rows)


def draw(curves: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw AUROC against noise."""
    with look():
        title = "Planted circuits: how well they are ranked against noise\nmean of five networks"
        figure, axes = panels(2, title, height=2.9, sharey=True)
        looks = [
            {"color": colour, "linestyle": DASHES[i % len(DASHES)], "marker": "o"}
            for i, colour in zip(range(len(curves)), PALETTE, strict=False)
        ]
        for what, (ax, first, _) in enumerate(outer(axes)):
            for style, found in zip(looks, curves.values(), strict=True):
                ax.plot(NOISE, found[..., what].mean(1), **style)
            ax.set_title(("neurons", "edges")[what])
            ax.set_xlabel("noise: what distractors add")
            ax.set_xscale("symlog", linthresh=NOISE[1])
            ax.minorticks_off()
            ax.set_xticks(NOISE, [f"{noise:g}" for noise in NOISE])
            ax.tick_params(labelleft=first)
            if first:
                ax.set_ylabel("AUROC")
        legend(figure, [key(**style) for style in looks], list(curves))
    figure.savefig(path, dpi=150)


def addition_rows() -> tuple[str, list[object]]:
    """What is known of modular addition, and AUROC by contrast."""
    network = modular_addition()
    data, known = (network.X, network.y), dict(enumerate(network.key.tolist()))
    alone, without = network.accuracy(network.key), network.accuracy(~network.key)
    text = (
        "Modular addition (a + b modulo 23; squares between two layers: Gromov 2023, "
        "arXiv:2301.02679; Nanda et al. 2023, arXiv:2301.05217): "
        f"{int(network.key.sum())} of {len(known)} hidden neurons follow one frequency, and are "
        f"not silent; right sums: {network.accuracy():.0%}, with these neurons alone {alone:.0%}, "
        f"without them {without:.0%} (a guess: {1 / 23:.0%})"
    )
    found = []
    for contrast in CONTRASTS.values():
        scores = ng.score(
            network.model,
            data,
            margin,
            layers=["0"],
            contrast=contrast,
            reference=64,
            scorer="exact",
            progress=False,
        )
        found.append(auroc(scores.ranking()["0"], known))
    return text, ["modular addition: hidden neurons", *found]


def greater_rows() -> tuple[str, list[object]]:
    """What is known of greater-than, and AUROC by contrast."""
    network = greater_than()
    rest = torch.arange(1, 20).double().log()[18 - network.year]
    text = (
        "Greater-than (which years come after the one in the sentence; after Hanna et al. 2023, "
        f"arXiv:2305.00586): only head {SEEING} may see the year; cross-entropy "
        f"{network.loss():.3f}, a guess among the later years has {float(rest.mean()):.3f}. So "
        "what can matter is the embedding where the year stands and the output of that head at "
        "the end; other tokens are random, and other heads have seen only them"
    )
    found = []
    for contrast in CONTRASTS.values():
        scores = ng.score(
            network.model,
            (network.ids, network.year),
            later_years,
            contrast=contrast,
            reference=64,
            scorer="exact",
            progress=False,
            **network.options,
        )
        found.append(auroc(scores.ranking(), network.neurons))
    return text, ["greater-than: embeddings and heads by position", *found]


def page(curves: Mapping[str, np.ndarray]) -> str:
    by_contrast, by_scorer = program_tables()
    (addition, first), (greater, second) = addition_rows(), greater_rows()
    known = "\n".join(
        textwrap.fill(f"- {text}.", 100, subsequent_indent="  ") for text in (addition, greater)
    )
    return f"""# Ground truth

Written by `python benchmarks/ground_truth.py --write docs/ground_truth.md`. Circuits that are known
beforehand, and the AUROC with which the size of effects tells what is in them from what is not: 1
where everything true stands above everything false, 0.5 by chance. Ties count half. Nothing is
tuned: options are the defaults, 32 reference samples.

## Programs

Transformers whose weights were compiled from RASP programs, or written by hand
(`tests/programs.py`), so that every edge between embeddings, heads (their queries, keys and values)
and MLPs is known to matter or not. Edges that carry only constants, a direction that is always 1 or
whether a token is the BOS, are false. The target is minus the squared distance of all logits to
those of the unmoved model, which cannot cancel. Effects are exact.

{by_contrast}

Zeroing breaks constants and finds edges that carry nothing else. Means, quantiles and values of
other samples at the *same position* never move what says where something stands. `resample` takes
values of other samples from random positions, and leaves alone positions at which a layer is the
same in all samples: its false edges have an effect of exactly 0. `pooled` quantiles move position
embeddings, but one channel at a time knows nothing of the others: a group of channels at their
quantiles is no value that it ever has.

What no values that occur can tell from a constant is an edge that carries the same wherever there
is no BOS, such as whether a token is any word at all: on sentences of one length it never changes.
Where shorter ones are filled up it does, and is found.

The same edges under `resample`, by scorer. At the unmoved model this target is at its best, so its
slope there is 0: scorers that take slopes at the background alone, `hybrid` and `gradient`, see
nothing and are refused. `auto` measures, on top of what it screens, 4 neurons of each layer and
sign and 16 edges between each two layers: here, all.

{by_scorer}

## Planted circuits

Random sparse tanh networks, 3 hidden layers of 6 neurons, each reading at least 2 of the layer
before, among 26 distractors a layer that read everything and each other (`tests/planted.py`).
Without noise nothing of the distractors reaches a teacher or the output. Noise is the standard
deviation of what all distractors of a layer together add where each is at ±1: then they do matter,
and what was planted is no longer all that there is. Contrast: quantiles. Means of
{len(SEEDS)} networks.

![AUROC against noise](figures/{FIGURE})

Neurons:

{noise_table(curves, 0)}

Edges:

{noise_table(curves, 1)}

## Trained models

Trained in seconds, from random weights (`tests/trained.py`).

{known}

{table(["neurons", *CONTRASTS], [first, second])}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="also write the page to this file")
    path = parser.parse_args().write
    curves = noise_curves()
    text = page(curves)
    print(text)
    if path is not None:
        path.write_text(text, encoding="utf-8")
        (path.parent / "figures").mkdir(exist_ok=True)
        draw(curves, path.parent / "figures" / FIGURE)


if __name__ == "__main__":
    main()
