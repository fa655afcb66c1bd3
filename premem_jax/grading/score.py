r"""NLL of targets and verdicts of responses, as functions to compile: the core of the program.

    >>> import jax
    >>> from premem_jax.grading.answers import answer_bytes, vocabulary
    >>> from premem_jax.grading.score import score
    >>> from premem_jax.grading.verdict import Verdict
    >>> tables = vocabulary([bytes([i]) for i in range(256)], "gsm8k")  # once per tokenizer; here a token is a byte
    >>> answers = answer_bytes(["18"], "gsm8k")  # once per split
    >>> response = b"9 + 9 = 18\n#### 18.00"
    >>> tokens, length = jax.numpy.array([list(response)]), jax.numpy.array([len(response)])
    >>> logits, weight = jax.numpy.zeros((1, len(response), 256)), jax.numpy.ones((1, len(response)))
    >>> nll, verdict = jax.jit(score, static_argnames="rules")(
    ...     logits, tokens, weight, tokens, length, tables, answers, rules="gsm8k"
    ... )
    >>> round(float(nll[0]), 4), Verdict(int(verdict[0])).name
    (5.5452, 'WRONG')

All logits are 0 here, so each token costs log 256 nats. 18.00 is not 18, because the rules of GSM8K compare texts.
`sample_and_grade` samples the responses itself; `follow_and_grade` tells which of them the references decide.
"""

import jax
import jax.numpy as jnp

from premem_jax.grading.answers import Answers, Vocabulary, grade
from premem_jax.grading.rules import Rules
from premem_jax.grading.verdict import Verdict
from premem_jax.models.decoder import Model
from premem_jax.models.nll import mean_over_target
from premem_jax.sampling.drafted import follow
from premem_jax.sampling.sampler import sample


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
    """NLL (B,) fp32 and verdict (B,) int8 of each example, from the logits at its target and the tokens of a response.

    Shapes: logits_BTV any float; target_BT int, the token that position t predicts; weight_BT 1 on the target, 0
    elsewhere; sampled_BS, length_B, vocabulary, answers and rules (static) as in `grade`. The NLL is the mean per
    target token in nats, 0 without a target. Verdicts are codes of `Verdict`; `Grader.resolve` decides UNDECIDED ones.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    picked_BT = jnp.take_along_axis(logits_BTV, target_BT[..., None], axis=-1)[..., 0]
    nll_BT = jnp.where(weight_BT > 0, jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BT, 0.0)
    return mean_over_target(nll_BT, weight_BT), grade(sampled_BS, length_B, vocabulary, answers, rules)


def sample_and_grade(
    model: Model,
    rules: str | Rules | None,
    params,
    batch: dict,
    answers: Answers | None,
    vocabulary: Vocabulary | None,
    key: jax.Array,
    **settings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next tokens (X, T) of the responses of a `rounds.Batch`, their number, and verdicts so far (X,).

    `sample` and `grade` in one program, with the settings of `sample`; X = B * R. Without rules (answers and vocabulary
    are then None) every verdict is UNDECIDED.
    """
    given = batch["tokens"], batch["prompt_length"], batch["ids"]
    begun_BR = batch["begun"]
    drawn = sample(model, params, *given, key, first_B=batch["first"], begun_BR=begun_BR, **settings)
    tokens_XT, length_X = drawn.tokens.reshape(begun_BR.size, -1), drawn.length.reshape(-1)
    verdict_X = _verdicts(rules, batch, begun_BR, tokens_XT, length_X, answers, vocabulary, settings["longest"])
    return tokens_XT, length_X, verdict_X


def follow_and_grade(
    model: Model,
    rules: str | Rules | None,
    params,
    batch: dict,
    answers: Answers | None,
    vocabulary: Vocabulary | None,
    key: jax.Array,
    **settings,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `follow` finds for a batch of `collate`, (B, R) each, and verdicts (B, R) of the tokens kept.

    The settings are those of `follow`, the rest as in `sample_and_grade`.
    """
    reference_B = jnp.sum(batch["weights"], axis=1).astype(jnp.int32)
    given = batch["tokens"], batch["prompt_length"], reference_B, batch["ids"]
    kept_BR, ended_BR = follow(model, params, *given, key, **settings)
    nothing_X = jnp.zeros(kept_BR.size, jnp.int32)
    verdict_X = _verdicts(
        rules, batch, kept_BR, nothing_X[:, None], nothing_X, answers, vocabulary, settings["longest"]
    )
    return kept_BR, ended_BR, verdict_X.reshape(kept_BR.shape)


def _verdicts(rules, batch: dict, begun_BR, tokens_XT, length_X, answers, vocabulary, longest: int) -> jax.Array:
    """Of responses of at most `longest` tokens: those behind the prompt that they begin with, then their own."""
    R, (X, T) = begun_BR.shape[1], tokens_XT.shape
    if rules is None:
        return jnp.full(X, Verdict.UNDECIDED.value, jnp.int8)
    tokens_BP, begun_X = batch["tokens"], begun_BR.reshape(X)
    behind_BS = jnp.minimum(batch["prompt_length"][:, None] + jnp.arange(longest), tokens_BP.shape[1] - 1)
    behind_XS = jnp.repeat(jnp.take_along_axis(tokens_BP, behind_BS, axis=1), R, axis=0)
    own_XS = jnp.clip(jnp.arange(longest) - begun_X[:, None], 0, T - 1)
    own_XS = jnp.take_along_axis(tokens_XT, own_XS, axis=1)
    whole_XS = jnp.where(jnp.arange(longest) < begun_X[:, None], behind_XS, own_XS)
    answers = jax.tree.map(lambda x: jnp.repeat(x, R, axis=0), answers)
    return grade(whole_XS, begun_X + length_X, vocabulary, answers, rules)
