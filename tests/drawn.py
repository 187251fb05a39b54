"""Programs drawn at random: small models of layers, glue, gates, state and odd habits.

A plan is a list of steps; each works on tensors that stand already, chosen by number among those
that fit, so that every list is a program and any part of one is too. `str(program)` lists it.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.drawn_steps import WIDTH, WORDS, Answer, Run, Step
from tests.zoo.network import Network, Site

LENGTH = 4
TAKES = (
    ("x",),
    ("s",),
    ("ids",),
    ("x", "flag"),
    ("s", "keep"),
    ("x", "s"),
    ("ids", "x"),
    ("x", "y"),
    ("s", "keep", "flag", "x"),
)
GIVES = ("tensor", "tuple", "dict", "dataclass", "nested", "one")


@dataclass(frozen=True)
class Plan:
    """All that a program is made of."""

    steps: tuple[Step, ...]
    takes: tuple[str, ...] = ("x",)
    gives: str = "tensor"
    seed: int = 0
    double: bool = True

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    def inputs(self, rows: int, seed: int) -> dict[str, Tensor]:
        """Keyword arguments for so many samples; a gate or two are closed in the first of them."""
        generator = torch.Generator().manual_seed(seed)
        late = torch.arange(rows) >= min(rows - 1, 3)
        made = {
            "x": torch.randn(rows, WIDTH, generator=generator, dtype=self.dtype),
            "s": torch.randn(rows, LENGTH, WIDTH, generator=generator, dtype=self.dtype),
            "y": torch.rand(rows, WIDTH, generator=generator, dtype=self.dtype),
            "ids": torch.randint(WORDS, (rows, LENGTH), generator=generator),
            "keep": torch.rand(rows, LENGTH, generator=generator) < 0.7,
            "flag": late & (torch.rand(rows, generator=generator) < 0.8),
        }
        made["keep"][:, 0] = True
        return {name: made[name] for name in self.takes}


class Program(nn.Module):
    """A model that carries out a plan.

    Attributes
    ----------
    sites : dict of str to Site
        Its layers, as the reference wants them.
    listing : list of str
        What it does, a line a step.
    ragged : set of str
        Layers that do not run on every sample in every run.
    branches : bool
        Whether what is computed depends on values, or on the other samples of a batch.
    noisy : bool
        Whether a run draws random numbers.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, self.making = plan, True
        self.sites: dict[str, Site] = {}
        self.listing: list[str] = []
        self.ragged: set[str] = set()
        self.convolved: set[tuple[int, ...]] = set()
        self.again: dict[int, str | None] = {}
        self.noisy, self.branches = False, False
        self.count, self.cache = 0, dict[str, Tensor]()
        self.eval()
        inputs = plan.inputs(6, 0)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(plan.seed)
            self(**inputs)
        self.sites = self._input_sites(inputs) | self.sites
        self.making = False
        self.count, self.cache = 0, {}

    def _input_sites(self, inputs: dict[str, Tensor]) -> dict[str, Site]:
        def site(tensor: Tensor) -> Site:
            by_map = tuple(tensor.shape[1:]) in self.convolved
            return Site("", channel=1 if by_map else -1, moves=tensor.dim() > 1)

        if len(inputs) == 1:
            return {"input": site(next(iter(inputs.values())))}
        return {f"input.{name}": site(tensor) for name, tensor in inputs.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.plan.takes, args, strict=False)) | kwargs
        return Run(self, given).output()

    def __str__(self) -> str:
        kind = "float64" if self.plan.double else "float32"
        head = f"forward({', '.join(self.plan.takes)}):  # {kind}, seed {self.plan.seed}"
        return "\n".join([head, *(f"    {line}" for line in self.listing)])


@functools.cache
def _class(takes: tuple[str, ...]) -> type[Program]:
    """Programs whose forward says what it takes."""

    def forward(self: Program, *args: Any, **kwargs: Any) -> Any:
        return Program.forward(self, *args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *takes)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type("Program", (Program,), {"forward": forward})


def build(plan: Plan) -> Program:
    """Make a plan's program: the same each time."""
    return _class(plan.takes)(plan)


def logits_of(output: Any) -> Tensor:
    if isinstance(output, Answer):
        return output.logits
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


def network(plan: Plan) -> Network:
    """A plan's program with what the reference needs of it."""
    program = build(plan)
    target = lambda output, _batch: logits_of(output)[:, 0].tanh()  # noqa: E731
    return Network("drawn", program, plan.inputs, target, program.sites)
