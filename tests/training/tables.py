"""A model without a network: its logits are its parameters, so that losses and gradients can be written by hand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class _Bound(NamedTuple):
    logits_BTV: jax.Array

    def __call__(self, tokens_BT, segments_BT=None):
        return tokens_BT, None

    def next_token_nll(self, hidden, next_BT):
        logp = jax.nn.log_softmax(self.logits(hidden))
        return -jnp.take_along_axis(logp, next_BT[..., None], axis=-1)[..., 0]

    def logits(self, hidden):
        return self.logits_BTV


class Table:
    """Stands in for `Model`; `params` is `{"logits": (B, T, V)}`."""

    def bind(self, params):
        return _Bound(params["logits"])
