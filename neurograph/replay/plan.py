"""What each layer does in one replay, as data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What each layer does in one replay; a layer in none of the sets is `idle`.

    Attributes
    ----------
    given : frozenset of str
        Return the rows supplied with the run.
    live : frozenset of str
        Compute from what arrives and pass it on.
    open : frozenset of str
        The same, for layers left out of the search: where there are two worlds they compute in
        both, as glue does.
    probed : frozenset of str
        Compute from what arrives, keep that, but pass on the recorded output (repeated if the
        layer is frozen too).
    frozen : frozenset of str
        Pass on the recorded output, repeated for every intervention.
    mixed : frozenset of str
        Compute in the moved world and pass that on where the mask supplied with the run says
        so; elsewhere the recorded output or, if the layer is live too, what it computes in the
        unmoved world (only with `worlds`).
    nudged : frozenset of str
        Layers of any role that add rows supplied with the run to what they pass on. Rows of 0 that
        require gradients give the gradient by every layer in one run, whatever glue writes to.
        With shares supplied too, only that much of their own is passed on: neurons are ablated so.
    worlds : bool
        Run two worlds side by side, rows of the unmoved one first. Only given layers, and open
        ones behind them, differ between them: a given layer returns its recorded output in the
        unmoved world.
    output_moved : bool
        Which world's model output is returned (only with `worlds`).

    Notes
    -----
    An idle layer passes on its recorded output for a single sample: nothing that is computed
    depends on it, so the glue behind it need not be executed for every intervention.
    """

    given: frozenset[str] = frozenset()
    live: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    probed: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()
    nudged: frozenset[str] = frozenset()
    worlds: bool = False
    output_moved: bool = True

    @property
    def busy(self) -> frozenset[str]:
        """Layers that pass on a row for every intervention."""
        return self.given | self.live | self.open | self.frozen | self.mixed
