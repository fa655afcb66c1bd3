"""Batches of responses to prompts, as losses take them."""

import numpy as np


def batch_of(tokens_BRT, weights_BRT, micro_batches: int = 1, **given) -> dict:
    """A batch in which each response has a row of its own, in the micro-batch of its prompt."""
    B, R, T = tokens_BRT.shape
    order = [b * R + r for a in range(micro_batches) for b in range(a, B, micro_batches) for r in range(R)]
    order = np.reshape(order, (micro_batches, -1)).T.ravel()  # micro-batch a has the rows a, a + A, ...
    segments = 1 + np.arange(B * R, dtype=np.int32)
    return {
        "tokens": tokens_BRT.reshape(B * R, T)[order],
        "weights": weights_BRT.reshape(B * R, T)[order],
        "segments": np.repeat(segments[order, None], T, axis=1),
        "responses": segments.reshape(B, R),
        **given,
    }
