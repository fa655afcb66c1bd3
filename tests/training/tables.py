"""A model without a network: its logits are its parameters, so that losses and gradients can be written by hand."""

from typing import NamedTuple

import jax


class _Bound(NamedTuple):
    logits_BTV: jax.Array

    def __call__(self, tokens_BT):
        return tokens_BT, None

    def logits(self, hidden):
        return self.logits_BTV


class Table:
    """Stands in for `Model`; `params` is `{"logits": (B, T, V)}`."""

    def bind(self, params):
        return _Bound(params["logits"])
