"""Train the heart-disease network from several seeds; print each run's test accuracy and time."""

from __future__ import annotations

import argparse
import tempfile
import time
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.table import Table

from neurograph.demos import heart

REQUIRED = 0.85


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0 on")
    parser.add_argument("--epochs", type=int, help="epochs of each run (default: the demo's)")
    arguments = parser.parse_args()
    options = {} if arguments.epochs is None else {"epochs": arguments.epochs}

    table = Table("seed", "best epoch", "validation", "test accuracy", "seconds")
    accuracies = []
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            fitted = heart.train(seed, directory, **options)
        seconds = time.perf_counter() - started
        best = min(fitted.history, key=lambda epoch: epoch["validation_loss"])
        accuracies.append(fitted.test["test_accuracy"])
        table.add_row(
            str(seed),
            f"{best['epoch']:.0f}",
            f"{best['validation_accuracy']:.3f}",
            f"{accuracies[-1]:.3f}",
            f"{seconds:.1f}",
        )
    spread = f" ± {stdev(accuracies):.3f}" if len(accuracies) > 1 else ""
    console = Console()
    console.print(table)
    console.print(
        f"mean test accuracy {mean(accuracies):.3f}{spread} over {len(accuracies)} seeds, "
        f"{torch.get_num_threads()} threads (required: {REQUIRED})"
    )
    return 0 if mean(accuracies) >= REQUIRED else 1


if __name__ == "__main__":
    raise SystemExit(main())
