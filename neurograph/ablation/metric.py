"""Metrics of a model on labelled data: one number, of predictions read off its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurograph.data.source import Batch, Source, concatenate
from neurograph.errors import DataError, OptionError
from neurograph.model.observe import call_model
from neurograph.model.target import logits_of

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Predict", "Score"]

Predict = Callable[[Any], Any]
"""From a model's output to what a metric takes for predictions."""


class Score:
    """A metric of a model on data that are kept, to be measured again and again.

    The model is run as it is found: in eval mode and without gradients if that is wanted.

    Parameters
    ----------
    model : Module
    data : data of any kind, with labels
    metric : Metric
        A copy is used.
    predictions : callable, optional
        As for `masking_curves`.
    rows : int
        Samples run at once.
    class_names : sequence of str, optional
        Where labels are words: these in the order of their numbers.

    Raises
    ------
    DataError
        No labels, or labels that are not one number or row a sample.
    OptionError
        No single metric, one of several classes for a single logit, or words without class_names.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        metric: Metric,
        predictions: Predict | None,
        rows: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        from torchmetrics import Metric  # seconds, spent by who uses it

        if not isinstance(metric, Metric):
            raise OptionError(
                f"metric is {type(metric).__name__}, not a torchmetrics.Metric: pass one, like "
                "torchmetrics.classification.BinaryAccuracy() (of a MetricCollection one by one)"
            )
        source = Source(data, model, batch_size=rows, class_names=class_names)
        self.model = model
        self.batches = list(_cut([_labelled(batch) for batch in source], rows))
        refuse_guessed(source)
        self.metric = metric.clone().to(self.batches[0].labels.device)
        self._read = predictions or logits_of
        self._binary = self._column = False
        if predictions is None:
            self._look()

    def __call__(self) -> float:
        """Run the model on all data and compute the metric.

        Raises
        ------
        OptionError
            The metric does not take the predictions and labels, or gives several numbers.
        """
        return self.of((self._output(batch), batch.labels) for batch in self.batches)

    def of(self, predicted: Iterable[tuple[Any, Tensor]]) -> float:
        """Compute the metric of predictions, as `read` gives them, and labels; raises as a call."""
        self.metric.reset()
        for predictions, labels in predicted:
            self._update(predictions, labels)
        value = self.metric.compute()
        name = type(self.metric).__name__
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OptionError(
                f"metric {name} gives {shape}, not one number: choose how it is averaged"
            )
        return float(value)

    def read(self, output: Any) -> Any:
        """Read predictions off what the model returned."""
        return self._read(output)

    def _output(self, batch: Batch) -> Any:
        return self.read(call_model(self.model, batch))

    def _update(self, predictions: Any, labels: Tensor) -> None:
        if self._column:
            predictions, labels = predictions.reshape(-1), labels.reshape(-1)
        if self._binary:
            predictions, labels = predictions.sigmoid(), labels.long()
        try:
            self.metric.update(predictions, labels)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            shape = tuple(predictions.shape) if isinstance(predictions, Tensor) else predictions
            raise OptionError(
                f"metric {type(self.metric).__name__} does not take predictions of shape {shape} "
                f"with labels of shape {tuple(labels.shape)} ({error}): choose another, or pass "
                "predictions=, from the model's output to what it takes"
            ) from error

    def _look(self) -> None:
        """Find out what a single output is: a binary logit where all labels are 0 or 1."""
        first = self._output(self.batches[0])
        labels = self.batches[0].labels
        self._column = first.dim() == 1 or (first.dim() == 2 and first.shape[1] == 1)
        self._column &= first.numel() == labels.numel()
        if not self._column or not all(_are_bits(batch.labels) for batch in self.batches):
            return
        self._binary = True
        several = getattr(self.metric, "num_classes", None)
        if several is not None or type(self.metric).__name__.startswith("Multi"):
            raise OptionError(
                f"metric {type(self.metric).__name__} is of several classes or labels, but the "
                "model has a single logit: pass the binary one, or predictions= from the model's "
                "output to what it takes"
            )
        # A metric would take a model's probabilities for what they are, and so must this.
        outputs = torch.cat([self._output(batch).reshape(-1) for batch in self.batches])
        if outputs.min() >= 0 and outputs.max() <= 1:
            raise OptionError(
                "the model's single output is in [0, 1] for all samples, so it may be a "
                "probability as well as a logit: pass predictions=torch.flatten for the one, "
                "predictions=lambda logits: logits.flatten().sigmoid() for the other"
            )


def refuse_guessed(source: Source) -> None:
    """OptionError where labels are words and nobody said which number each has."""
    if source.guessed_classes:
        first, second = (*source.guessed_classes, "…")[:2]
        raise OptionError(
            f"labels are words ({first!r}, {second!r}, …), and a metric is of their numbers: pass "
            "class_names=, all of them in the order of the model's outputs"
        )


def _are_bits(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _labelled(batch: Batch) -> Batch:
    """Check a batch's labels."""
    if batch.labels is None:
        raise DataError("the data hold no labels, which a metric needs: pass (X, y)")
    try:
        labels = torch.as_tensor(batch.labels)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"labels are {type(batch.labels).__name__}, not numbers: encode them as integers"
        ) from None
    if labels.shape[:1] != (batch.size,):
        raise DataError(
            f"labels have shape {tuple(labels.shape)} for {batch.size} samples: pass one, or one "
            "row of them, for each"
        )
    first = next(batch.tensors())
    return replace(batch, labels=labels.to(first.device))


def _cut(batches: list[Batch], rows: int) -> Iterator[Batch]:
    """Join batches and cut them again into pieces of equal size, where they can be joined."""
    tensors = [(t, b.size) for b in batches for t in b.tensors()]
    try:
        if any(tensor.shape[:1] != (size,) for tensor, size in tensors):
            raise DataError("tensors that are the same for all samples cannot be joined")
        whole = concatenate(batches)
    except DataError:
        yield from batches
        return
    for start in range(0, whole.size, rows):
        piece = slice(start, start + rows)
        yield whole.map(lambda leaf, piece=piece: leaf[piece])
