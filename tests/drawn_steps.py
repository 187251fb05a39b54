"""What the steps of a drawn program do: layers, glue, gates, branches, state, and odd habits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from tests.zoo.network import Site

WIDTH, WORDS = 3, 7
_POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
    "in float32": lambda t: t.float().mul(0.5).to(t.dtype),
}


@dataclass(frozen=True)
class Step:
    """One instruction: what it does, which tensors it takes (0 is the newest), and a choice."""

    do: str
    a: int = 0
    b: int = 0
    c: int = 0


@dataclass
class Answer:
    """An output that PyTorch's pytrees do not look into."""

    hidden: Tensor
    logits: Tensor


class Halved(nn.Module):
    """A parametrisation without parameters."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh() * 0.5


class Run:
    """One run of a program: what it was given and has made, and the step that it is at."""

    def __init__(self, program: Any, given: dict[str, Tensor]) -> None:
        self.program, self.plan, self.making = program, program.plan, program.making
        self.given = given
        self.names = [name for name in ("s", "x", "y") if name in given]
        self.made = [given[name] for name in self.names]

    def output(self) -> Any:
        for number, step in enumerate(self.plan.steps):
            self.number, self.step = number, step
            made = getattr(self, f"do_{self.step.do}")()
            if made is not None:
                self._add(made)
        self.number, self.step = len(self.plan.steps), Step("end")
        hidden = self.some()
        self.say(f"head, and return {self.plan.gives}", hidden)
        hidden = hidden.flatten(2).mean(2) if hidden.dim() > 2 else hidden
        width = 1 if self.plan.gives == "one" else 2
        logits = self.layer("head", lambda: nn.Linear(hidden.shape[1], width))(hidden)
        match self.plan.gives:
            case "tuple":
                return logits, hidden
            case "dict":
                return {"hidden": hidden, "logits": logits}
            case "dataclass":
                return Answer(hidden, logits)
            case "nested":
                return {"logits": logits, "more": (hidden, [logits * 2])}
            case _:
                return logits

    # -- choosing ------------------------------------------------------------------------------

    def _add(self, tensor: Tensor) -> None:
        self.made.append(tensor)
        self.names.append(f"t{self.number}")

    def some(self, *dims: int, second: bool = False) -> Tensor:
        """The tensor a step names, of those with so many dimensions, or one made to have them."""
        if not self.made:
            self._add(self.do_embed())
        wanted = self.step.b if second else self.step.a
        found = [t for t in self.made if not dims or t.dim() in dims]
        if found:
            return found[-1 - wanted % len(found)]
        tensor = self.made[-1 - wanted % len(self.made)]
        while tensor.dim() < dims[0]:
            tensor = torch.stack([tensor, tensor.tanh()], 1)
        return tensor if tensor.dim() == dims[0] else tensor.flatten(dims[0] - 1)

    def like(self, tensor: Tensor) -> Tensor:
        """The tensor that the step names second, of those of the same shape."""
        found = [t for t in self.made if t.shape[1:] == tensor.shape[1:]] or [tensor]
        return found[-1 - self.step.b % len(found)]

    def gate(self) -> Tensor:
        """One number a sample, ``[samples]``, mostly 0 or 1."""
        if "flag" in self.given:
            return self.given["flag"].to(self.plan.dtype)
        tensor = self.some(second=True).flatten(1)
        choices = [
            lambda: (tensor[:, 0] > 0).to(tensor.dtype),
            lambda: F.relu(tensor[:, 0] - 0.3),
            lambda: torch.sigmoid(tensor.mean(1)),
        ]
        return choices[self.step.c % 3]()

    @staticmethod
    def over(gate: Tensor, tensor: Tensor) -> Tensor:
        return gate.view(-1, *[1] * (tensor.dim() - 1))

    def say(self, text: str, *tensors: Tensor) -> None:
        if self.making:
            named = [
                next((n for n, t in zip(self.names, self.made, strict=True) if t is one), "(…)")
                for one in tensors
            ]
            self.program.listing.append(f"t{self.number} = {text}({', '.join(named)})")

    # -- layers --------------------------------------------------------------------------------

    def layer(
        self, name: str, make: Callable[[], nn.Module], leaves: int = 1, channel: int = -1
    ) -> nn.Module:
        """A layer, made the first time and told to the reference."""
        if self.making and name not in self.program._modules:
            self.program.add_module(name, make().to(self.plan.dtype).eval())
            self.site(name, leaves, channel)
        return self.program.get_submodule(name)

    def site(self, call: str, leaves: int = 1, channel: int = -1, batch: int = 1) -> None:
        self.program.sites[call] = Site(call, channel=channel)
        for leaf in range(1, leaves):
            key = f"{call}:1" if leaves == 2 else f"{call}:1.{leaf - 1}"
            self.program.sites[key] = Site(call, leaf=leaf, batch=batch)

    def linear(self, tensor: Tensor, tag: str = "") -> nn.Module:
        width = (3, 4, 2, 6)[self.step.c % 4]
        return self.layer(f"linear{self.number}{tag}", lambda: nn.Linear(tensor.shape[-1], width))

    def do_linear(self) -> Tensor:
        tensor = self.some(2, 3)
        self.say("Linear", tensor)
        return self.linear(tensor)(tensor)

    def do_again(self) -> Tensor:
        """Call a Linear that was called before, if any fits."""
        tensor = self.some(2, 3)
        same = [
            name
            for name, module in self.program.named_children()
            if type(module) is nn.Linear and name.startswith("linear")
            if module.in_features == tensor.shape[-1] and name not in self.program.ragged
        ]
        if self.making:
            name = same[self.step.b % len(same)] if same else None
            self.program.again[self.number] = name
            if name is not None:
                calls = sum(one == name for one in self.program.again.values())
                self.site(f"{name}#{calls}")
        name = self.program.again[self.number]
        self.say(f"{name} again" if name else "Linear", tensor)
        return self.program.get_submodule(name)(tensor) if name else self.linear(tensor)(tensor)

    def do_embed(self) -> Tensor:
        if "ids" not in self.given:
            return self.do_linear()
        name, limit = f"embed{self.number}", 1.0 if self.step.c % 4 == 3 else None
        self.say(f"Embedding(max_norm={limit})")
        make = lambda: nn.Embedding(WORDS, WIDTH, max_norm=limit)  # noqa: E731
        return self.layer(name, make)(self.given["ids"])

    def do_conv(self) -> Tensor:
        tensor, width = self.some(3), (3, 2)[self.step.c % 2]
        self.program.convolved.add(tuple(tensor.shape[1:]))
        self.say("Conv1d", tensor)
        make = lambda: nn.Conv1d(tensor.shape[1], width, 3, padding=1)  # noqa: E731
        return self.layer(f"conv{self.number}", make, channel=1)(tensor)

    def do_conv2d(self) -> Tensor:
        tensor = self.some(3).unsqueeze(1)
        self.program.convolved.add(tuple(tensor.shape[1:]))
        self.say("Conv2d of unsqueeze", self.some(3))
        make = lambda: nn.Conv2d(1, 2, 3, padding=1, stride=1)  # noqa: E731
        return self.layer(f"conv{self.number}", make, channel=1)(tensor)

    def do_recurrent(self) -> Tensor:
        tensor, lstm = self.some(3), self.step.c % 2
        kind = nn.LSTM if lstm else nn.GRU
        self.say(f"{kind.__name__}, part {self.step.c % 3}", tensor)
        make = lambda: kind(tensor.shape[-1], 3, batch_first=True)  # noqa: E731
        output, state = self.layer(f"rnn{self.number}", make, 3 if lstm else 2)(tensor)
        last = state[0] if lstm else state
        return (output, last[-1], output + last[-1][:, None])[self.step.c % 3]

    def do_cell(self) -> Tensor:
        tensor, name = self.some(3), f"cell{self.number}"
        self.say("LSTMCell over", tensor)
        cell = self.layer(name, lambda: nn.LSTMCell(tensor.shape[-1], 3))
        hidden = memory = tensor.new_zeros(len(tensor), 3)
        for time in range(tensor.shape[1]):
            if self.making:
                call = f"{name}#{time}" if time else name
                states = {call: Site(call), f"{call}:1": Site(call, leaf=1)}
                self.program.sites.update(states)
            hidden, memory = cell(tensor[:, time], (hidden, memory))
        return hidden

    def do_attention(self) -> Tensor:
        tensor = self.some(3)
        keep = self.given.get("keep")
        fits = keep is not None and keep.shape[1] == tensor.shape[1]
        weighed = self.step.c % 2 == 1
        self.say(f"MultiheadAttention(weights={weighed}, masked={fits})", tensor)
        make = lambda: nn.MultiheadAttention(tensor.shape[-1], 1, batch_first=True)  # noqa: E731
        name = f"attention{self.number}"
        attention = self.layer(name, make)
        if weighed and self.making:
            self.program.sites[f"{name}:1"] = Site(name, leaf=1)
        mask = ~keep if fits else None
        out, weights = attention(tensor, tensor, tensor, mask, need_weights=weighed)
        return torch.cat([out, weights], 2) if weighed and self.step.b % 2 else out

    def do_bilinear(self) -> Tensor:
        left, right = self.some(2), self.some(2, second=True)
        self.say("Bilinear", left, right)
        make = lambda: nn.Bilinear(left.shape[1], right.shape[1], 3)  # noqa: E731
        return self.layer(f"bilinear{self.number}", make)(left, right)

    # -- glue ----------------------------------------------------------------------------------

    def do_pointwise(self) -> Tensor:
        tensor = self.some()
        name = list(_POINTWISE)[self.step.c % len(_POINTWISE)]
        self.say(name, tensor)
        return _POINTWISE[name](tensor)

    def do_two(self) -> Tensor:
        tensor = self.some()
        other = self.like(tensor)
        name, combine = (
            ("add", torch.add),
            ("mul", torch.mul),
            ("maximum", torch.maximum),
            ("where positive", lambda a, b: torch.where(a > 0, a, b)),
            ("cat", lambda a, b: torch.cat([a, b], -1)),
            ("sub", torch.sub),
        )[self.step.c % 6]
        self.say(name, tensor, other)
        return combine(tensor, other)

    def do_one(self) -> Tensor:
        tensor = self.some()
        name, change = (
            ("softmax", lambda t: t.softmax(-1)),
            ("half", lambda t: t.chunk(2, -1)[0] if t.shape[-1] > 1 else t),
            ("transpose", lambda t: t.transpose(1, 2) if t.dim() > 2 else t.flip(1)),
            ("flatten", lambda t: t.flatten(1)),
            ("mean", lambda t: t.mean(1) if t.dim() > 2 else t - t.mean(1, keepdim=True)),
            ("max", lambda t: t.amax(1) if t.dim() > 2 else t.sort(1).values),
            ("last", lambda t: t[:, -1] if t.dim() > 2 else t.roll(1, 1)),
            ("stacked", lambda t: torch.stack([t, t.tanh()], 1) if t.dim() < 3 else t),
            ("detach", lambda t: t.detach()),
            ("layer_norm", lambda t: F.layer_norm(t, t.shape[-1:])),
            ("bool", lambda t: (t > 0).to(t.dtype)),
            ("int", lambda t: (t * 4).long().to(t.dtype)),
        )[self.step.c % 12]
        self.say(name, tensor)
        return change(tensor)

    def do_mix(self) -> Tensor:
        """Attention without layers, masked if there is a mask."""
        tensor = self.some(3)
        other = self.like(tensor)
        self.say("softmax attention", tensor, other)
        scores = tensor @ other.transpose(1, 2)
        keep = self.given.get("keep")
        if keep is not None and keep.shape[1] == scores.shape[2]:
            scores = scores.masked_fill(~keep[:, None], float("-inf"))
        return scores.softmax(-1) @ other

    def do_masked(self) -> Tensor:
        tensor, keep = self.some(3), self.given.get("keep")
        fits = keep is not None and keep.shape[1] == tensor.shape[1]
        self.say("masked mean" if fits else "mean", tensor)
        if not fits:
            return tensor.mean(1)
        weight = keep[:, :, None].to(tensor.dtype)
        return (tensor * weight).sum(1) / weight.sum(1)

    def do_norm(self) -> Tensor:
        tensor = self.some(2, 3)
        self.say("BatchNorm1d" if self.step.c % 2 else "LayerNorm", tensor)
        name, width = f"norm{self.number}", tensor.shape[1 if self.step.c % 2 else -1]
        if self.making:
            norm = nn.BatchNorm1d(width) if self.step.c % 2 else nn.LayerNorm(width)
            self.program.add_module(name, norm.to(self.plan.dtype).eval())
        return self.program.get_submodule(name)(tensor)

    def do_scale(self) -> Tensor:
        tensor = self.some()
        self.say("times a parameter of the model", tensor)
        if self.making:
            weight = torch.rand(tensor.shape[-1], dtype=self.plan.dtype) + 0.5
            self.program.register_parameter(f"scale{self.number}", nn.Parameter(weight))
        return tensor * self.program.get_parameter(f"scale{self.number}")

    def do_write(self) -> None:
        """Change a tensor in place, wherever else it stands."""
        tensor = self.some()
        if tensor.data_ptr() in {v.data_ptr() for v in self.given.values()} and self.step.c < 6:
            tensor = tensor.clone()  # a model seldom writes into its inputs
            self._add(tensor)
        other = self.like(tensor)
        text = ("+=", "relu_", "[:, 0] = 0", "[:, :1] *= 2", "*= sigmoid", "clamp_")
        self.say(text[self.step.c % 6], tensor, other)
        match self.step.c % 6:
            case 0:
                tensor += other.clone()
            case 1:
                tensor.relu_()
            case 2:
                tensor[:, 0] = 0
            case 3:
                tensor[:, :1] *= 2
            case 4:
                tensor *= torch.sigmoid(other)
            case 5:
                tensor.clamp_(-0.5, 0.5)

    # -- gates and branches --------------------------------------------------------------------

    def do_gated(self) -> Tensor:
        """A branch of its own, let through where a gate is open."""
        tensor = self.some(2, 3)
        gate = self.gate()
        self.say(f"gate {self.step.c % 3} times Linear", tensor)
        branch = self.layer(f"linear{self.number}", lambda: nn.Linear(*2 * tensor.shape[-1:]))
        out = self.over(gate, tensor) * branch(tensor)
        return out if self.step.b % 2 else out + (1 - self.over(gate, tensor)) * tensor

    def do_either(self) -> Tensor:
        """One of two layers for the whole batch, by a statistic of it."""
        tensor = self.some(2, 3)
        one, two = self.linear(tensor, "a"), self.linear(tensor, "b")
        self.program.branches = True
        self.program.ragged |= {f"linear{self.number}a", f"linear{self.number}b"}
        if "flag" in self.given and self.step.b % 2:
            self.say("Linear a if flag.any() else Linear b", tensor)
            return one(tensor) if self.given["flag"].any() else two(tensor)
        self.say("Linear a if mean > 0 else Linear b", tensor)
        return one(tensor) if tensor.mean() > 0 else two(tensor)

    def do_switch(self) -> Tensor:
        """One of two activations for the whole batch, by a statistic of it."""
        tensor, other = self.some(), self.some(second=True)
        self.program.branches = True
        self.say("relu if mean > 0 else tanh", tensor, other)
        return tensor.relu() if other.mean() > 0 else tensor.tanh()

    def do_experts(self) -> Tensor:
        """Each sample goes to the expert that a router chose for it."""
        tensor = self.some(2)
        self.say("one of three experts", tensor)
        router = self.layer(f"router{self.number}", lambda: nn.Linear(tensor.shape[1], 3))
        experts = [self.linear(tensor, tag) for tag in "abc"]
        self.program.ragged |= {f"linear{self.number}{tag}" for tag in "abc"}
        self.program.branches = True
        top, chosen = router(tensor).softmax(-1).max(-1)
        out = tensor.new_zeros(len(tensor), experts[0].out_features)
        for number, expert in enumerate(experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                out[rows] = top[rows, None] * expert(tensor[rows])
        return out

    def do_dead(self) -> None:
        tensor = self.some(2, 3)
        self.say("Linear nobody reads", tensor)
        self.layer(f"linear{self.number}", lambda: nn.Linear(tensor.shape[-1], 2))(tensor)

    # -- state ---------------------------------------------------------------------------------

    def do_counter(self) -> Tensor:
        tensor = self.some()
        self.say("times 1 + runs / 10" if self.step.c % 2 else "counted", tensor)
        self.program.count += 1
        if self.step.c % 2 == 0:
            return tensor * 1.5
        return tensor * (1 + self.program.count / 10)

    def do_cached(self) -> Tensor:
        """Keeps something of a run, and may use it in the next."""
        tensor = self.some()
        self.say("minus what it was in the last run" if self.step.c % 2 else "remembered", tensor)
        before = self.program.cache.get("last")
        self.program.cache["last"] = tensor.detach().clone()
        if self.step.c % 2 == 0:
            return tensor * 1.0
        self.program.branches = True  # its mean is that of a batch, if a step before kept it
        return tensor - 0.1 * before.mean() if before is not None else tensor * 1.0

    def do_running(self) -> Tensor:
        """A running mean that each run moves, in place or anew, and subtracts or not."""
        tensor, name = self.some(2), f"running{self.number}"
        self.say(f"running mean, kind {self.step.c % 4}", tensor)
        if self.making:
            self.program.register_buffer(name, tensor.new_zeros(tensor.shape[1]))
        buffer = self.program.get_buffer(name)
        if self.step.c % 2:
            setattr(self.program, name, 0.9 * buffer + 0.1 * tensor.detach().mean(0))
        else:
            buffer.mul_(0.9).add_(0.1 * tensor.detach().mean(0))
        if self.step.c % 4 < 2:
            return tensor * 1.0
        self.program.branches = True  # samples are no longer independent
        return tensor - self.program.get_buffer(name)

    def do_batch_statistics(self) -> Tensor:
        tensor = self.some(2)
        self.program.branches = True  # samples are no longer independent
        self.say("minus the batch's mean", tensor)
        return tensor - tensor.mean(0)

    def do_noise(self) -> Tensor:
        tensor = self.some()
        self.say("dropout, always", tensor)
        self.program.noisy = True
        return F.dropout(tensor, 0.5, training=True)

    # -- layers of odd habits ------------------------------------------------------------------

    def do_odd(self) -> Tensor:
        tensor = self.some(2, 3)
        odd = ("instance forward", "functional_call", "weight_norm", "parametrized", "hook", "data")
        name, habit = f"linear{self.number}", odd[self.step.c % 6]
        self.say(f"Linear ({habit})", tensor)
        new = self.making and name not in self.program._modules
        layer = self.layer(name, lambda: nn.Linear(tensor.shape[-1], 3))
        if new and habit == "instance forward":
            up = torch.randn(3, tensor.shape[-1], dtype=self.plan.dtype)
            plain = layer.forward
            layer.forward = lambda h: plain(h) + h @ up.T
        elif new and habit == "weight_norm":
            parametrizations.weight_norm(layer)
        elif new and habit == "parametrized":
            parametrize.register_parametrization(layer, "weight", Halved())
        elif new and habit == "hook":
            layer.register_forward_hook(lambda _module, _args, out: out * 1.5 + 0.25)
        elif habit == "functional_call":
            weights = {"weight": layer.weight * 2 + 0.5, "bias": layer.bias}
            return functional_call(layer, weights, (tensor,))
        elif habit == "data":
            before = layer.weight.data
            try:
                layer.weight.data = before * 2
                return layer(tensor)
            finally:
                layer.weight.data = before
        return layer(tensor)


DOES = {
    "layers": [
        *("linear", "linear", "embed", "conv", "conv2d", "recurrent", "cell", "attention"),
        *("bilinear", "again", "again"),
    ],
    "glue": [
        *("pointwise", "pointwise", "two", "two", "one", "one", "mix", "masked", "norm"),
        *("scale", "write", "write"),
    ],
    "branches": ["gated", "gated", "either", "switch", "experts", "dead"],
    "odd": ["odd", "odd", "counter", "cached", "running", "batch_statistics", "noise"],
}
"""What steps may do, by kind."""
