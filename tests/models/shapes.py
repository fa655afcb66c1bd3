"""Small decoders that differ as the families do."""

import dataclasses

from premem_jax.models.architecture import GEMMA2, RopeScaling
from tests import tiny

SHAPES = {
    "grouped": tiny.CONFIG,
    "multi-query": dataclasses.replace(tiny.CONFIG, K=1, rope_theta=10_000.0),
    "multi-head, tied": dataclasses.replace(tiny.CONFIG, K=4, tied_embedding=True, norm_eps=1e-2),
    "stretched positions": dataclasses.replace(tiny.CONFIG, rope_scaling=RopeScaling(8.0, 0.5, 2.0, 16)),
    "biases, normalised heads, one window": dataclasses.replace(
        tiny.CONFIG, biases=("q", "k", "v"), head_norms=True, windows=(4,)
    ),
    "gemma": dataclasses.replace(
        tiny.CONFIG,
        **GEMMA2 | dict(rope_theta=100.0, attention_softcap=2.0, final_softcap=5.0),
        L=4,
        H=12,
        query_scale=0.4,
        windows=(4, None),
    ),
}
