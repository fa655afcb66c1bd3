"""Confidence: how likely is the model to give the very response that is its likeliest, token by token?"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax import sharding
from premem_jax.data.pipeline import evaluation_batches
from premem_jax.evaluators.base import Context, Part
from premem_jax.models.decoder import Model
from premem_jax.programs import Program
from premem_jax.sampling.sampler import sample
from premem_jax.scoring.likelihood import token_nll


def greedy_log_confidence(
    model: Model, params, prompts_BP, length_B, ids_B, key, *, max_new_tokens: int, eos_id: int
) -> jax.Array:
    """(B,) log-probability in nats of the greedy response to each prompt, with its stop marker if it has one.

    The response is scored by one more pass over prompt and response, so that sampling pays nothing for it.
    """
    settings = dict(samples=1, max_new_tokens=max_new_tokens, temperature=0.0, top_p=1.0, eos_id=eos_id)
    drawn = sample(model, params, prompts_BP, length_B, ids_B, key, **settings)
    response_BT, end_B1 = drawn.tokens[:, 0], drawn.length
    T = max_new_tokens
    text_BS = jnp.pad(prompts_BP, [(0, 0), (0, T)])
    place_BS = jnp.arange(text_BS.shape[1]) - length_B[:, None]  # in the response
    response_BT = jnp.where(jnp.arange(T) == end_B1, eos_id, response_BT)
    own_BS = jnp.take_along_axis(response_BT, jnp.clip(place_BS, 0, T - 1), axis=1)
    counts_BS = (place_BS >= 0) & (place_BS <= end_B1) & (place_BS < T)
    nll_BS = token_nll(model, params, jnp.where(counts_BS, own_BS, text_BS))
    return -jnp.sum(jnp.where(counts_BS, nll_BS, 0), axis=1)


class Confidence:
    """The log-probability of each example's greedy response: what average thresholded confidence is made of.

    Garg et al. (arXiv 2201.04234), as a baseline of Kang et al. (arXiv 2411.07681) uses it for sampled text.
    """

    phase, layout = "sample", "decode"

    def __init__(self, context: Context, *, batch: int, max_new_tokens: int):
        self._context, self._batch, self._mesh = context, batch, context.decode_mesh
        self._key = sharding.random_key(self._mesh, 0)  # greedy: nothing is drawn
        settings = dict(max_new_tokens=max_new_tokens, eos_id=context.tokenizer.eos_id)
        program = partial(greedy_log_confidence, context.model.on(mesh=self._mesh), **settings)
        self._program = Program(program, context.clock, out_shardings=sharding.replicated(self._mesh))

    def run(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """`log_confidence` of the rows of `only` (all), batch by batch."""
        context, size = self._context, self._batch
        here = sharding.rows_here(self._mesh, size)
        for rows, arrays in evaluation_batches(
            context.data, batch=size, buckets=context.buckets, prompts_only=True, only=only, here=here
        ):
            arrays = sharding.put_batch(self._mesh, arrays, size)
            values = self._program(params, arrays["tokens"], arrays["prompt_length"], arrays["ids"], self._key)
            yield Part(rows, {"log_confidence": np.asarray(values)[: len(rows)]})
