"""What makes two sentences alike? The neurons of MiniLM that bring a paraphrase pair together.

Both sentences go through one encoder, so each of its modules is called twice: `dense` and
`dense#1` in the circuit are the same neurons, reading the first sentence and the second. In the
counterfactual of a pair each sentence is exchanged for one of another pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import neurograph as ng
from hooks import (
    Neurons,
    ablated,
    against_chance,
    check,
    kept_neurons,
    mean_and_range,
    record,
    strongest,
)
from pretrained import minilm
from report import measured, publish

# Each has ten tokens, so that a sentence and the one it is exchanged for have the same shape.
PAIRS = (
    ("The cat is asleep on the sofa.", "A kitten naps on the couch."),
    ("How can I learn to cook quickly?", "Is there a fast way to cook?"),
    ("The company raised its prices last year.", "Last year the firm charged customers more."),
    ("He forgot the keys in his car.", "His keys were left inside the car."),
    ("The teacher explained the lesson once again.", "Once more she taught the same lesson."),
    ("My phone does not charge any more.", "The phone battery has stopped charging completely."),
    ("Scientists have discovered a distant planet.", "A remote world was found by astronomers."),
    ("The bank refused to lend them money.", "They got no loan from the bank."),
)  # fmt: skip
WIDTH = 1536  # MLP neurons of a layer
HEADS, NEURONS = "attention.output.dense:input", "layer.*.output.dense:input"


class Similarity(nn.Module):
    """The cosine of two sentences' vectors."""

    def __init__(self, encoder: minilm.SentenceEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, first: Tensor, first_mask: Tensor, second: Tensor, second_mask: Tensor
    ) -> Tensor:
        """Compare two batches of sentences, ``[batch, tokens]`` each: ``[batch]``."""
        return (self.encoder(first, first_mask) * self.encoder(second, second_mask)).sum(1)


def similarity(output: Tensor, _batch: object) -> Tensor:
    """The target is the output itself."""
    return output


def main() -> None:
    with measured("model"):
        encoder, tokenizer = minilm.load()
        model = Similarity(encoder).eval()

    first, first_mask = minilm.tokenize(tokenizer, [pair[0] for pair in PAIRS])
    second, second_mask = minilm.tokenize(tokenizer, [pair[1] for pair in PAIRS])
    masks = {"first_mask": first_mask, "second_mask": second_mask}
    pairs = {"first": first, "second": second, **masks}
    unrelated = {"first": first.roll(1, dims=0), "second": second.roll(2, dims=0), **masks}
    with torch.no_grad():
        alike = model(**pairs)
        mixed = [model(**{**pairs, "second": second.roll(shift, dims=0)}) for shift in (1, 2, 3)]
    print(f"paraphrases {alike.min():.2f} to {alike.max():.2f}, mean {alike.mean():.2f}; "
          f"sentences of different pairs {torch.cat(mixed).mean():.2f}")  # fmt: skip

    with measured("search"):
        circuit = ng.search(
            model,
            pairs,
            similarity,
            layers=[HEADS, NEURONS],
            groups={HEADS: "heads"},
            contrast=ng.Counterfactual(unrelated),
            reference=len(PAIRS),
            keep="top:3",
            budget=8,
            paths=20,
            memory="2GB",
        )
    publish(
        circuit, "paraphrase_similarity", source="encoder.bert.encoder.layer.4.output.dense:input"
    )

    def size(layer: str) -> int:
        heads = encoder.bert.config.num_attention_heads
        return encoder.bert.config.hidden_size // heads if "attention" in layer else 1

    kept = kept_neurons(circuit, "positive")
    values = record(model, kept, lambda: model(**unrelated))
    for layer in ("*.output.dense:input", "*.output.dense#1:input"):
        check(circuit, model, strongest(circuit, layer), lambda: model(**pairs), values, size=size)
    compare_sentences(kept)

    def alike_without(neurons: Neurons) -> float:
        with ablated(model, neurons, values, size=size):
            return model(**pairs).mean().item()

    widths = {layer: values[layer].shape[-1] // size(layer) for layer in kept}
    without, chance = against_chance(alike_without, kept, widths)
    print(
        f"similarity with these {sum(map(len, kept.values()))} as in unrelated sentences: "
        f"{without:.3f}; with as many others of the same layers, 20 times: "
        f"{mean_and_range(chance, '.3f')}"
    )


def compare_sentences(kept: Neurons) -> None:
    """Print how many MLP neurons work on both sentences, and how many would by chance."""
    both, by_chance = 0, 0.0
    for layer in kept:
        twin = layer.replace("dense:", "dense#1:")
        if "attention" not in layer and twin != layer and twin in kept:
            both += len(set(kept[layer]) & set(kept[twin]))
            by_chance += len(kept[layer]) * len(kept[twin]) / WIDTH
    print(f"{both} MLP neurons are kept for both sentences; by chance {by_chance:.2f} would be")


if __name__ == "__main__":
    main()
