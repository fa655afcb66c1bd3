"""What the trace holds of an example, in one function to compile: its target's NLL and a sample's verdict."""

import jax
import jax.numpy as jnp

from premem_jax.scoring.answers import Answers, Vocabulary, grade
from premem_jax.scoring.likelihood import mean_over_target
from premem_jax.scoring.rules import Rules


def score(
    logits_BTV: jax.Array,
    target_BT: jax.Array,
    weight_BT: jax.Array,
    sampled_BS: jax.Array,
    length_B: jax.Array,
    vocabulary: Vocabulary,
    answers: Answers,
    rules: str | Rules,
) -> tuple[jax.Array, jax.Array]:
    """(nll_B fp32, verdict_B int8) of each example, from the logits at its target and the ids of a response.

    Shapes: logits_BTV any float; target_BT int, the token that position t predicts; weight_BT 1 where it is part of the
    target, 0 elsewhere; sampled_BS, length_B, vocabulary, answers and rules as for `grade`. The NLL is the mean in nats
    per target token, 0 without one.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    picked_BT = jnp.take_along_axis(logits_BTV, target_BT[..., None], axis=-1)[..., 0]
    nll_BT = jnp.where(weight_BT > 0, jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT, 0.0)
    return mean_over_target(nll_BT, weight_BT), grade(sampled_BS, length_B, vocabulary, answers, rules)
