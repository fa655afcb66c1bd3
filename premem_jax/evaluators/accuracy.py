"""Accuracy: how often do samples solve each example?"""

import zlib
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax import sharding
from premem_jax.evaluators.base import Context, Part
from premem_jax.models.decoder import Model
from premem_jax.programs import Program
from premem_jax.sampling.rounds import Drawn, Rounds, round_tokens
from premem_jax.sampling.sampler import sample
from premem_jax.scoring.answers import Answers, Vocabulary, answer_bytes, grade, resolve, vocabulary
from premem_jax.scoring.verdict import Verdict


def sample_and_grade(
    model: Model, rules, params, batch: dict, answers: Answers, vocabulary: Vocabulary, key, **settings
) -> tuple[jax.Array, ...]:
    """What comes next in the responses of a `rounds.Batch`: its tokens (X, T), their number, verdicts so far (X,).

    `sample` and `grade` in one program, with the settings of `sample`; X = B * R.
    """
    begun_Bt = batch["begun"]
    given = batch["tokens"], batch["prompt_length"], batch["ids"]
    drawn = sample(model, params, *given, key, first_B=batch["first"], begun=begun_Bt.shape[1], **settings)
    B, R, T = drawn.tokens.shape
    tokens_XT, length_X = drawn.tokens.reshape(B * R, T), drawn.length.reshape(B * R)
    begun_Xt, answers = jax.tree.map(lambda x: jnp.repeat(x, R, axis=0), (begun_Bt, answers))
    whole = jnp.concatenate([begun_Xt, tokens_XT], axis=1)
    return tokens_XT, length_X, grade(whole, begun_Xt.shape[1] + length_X, vocabulary, answers, rules)


class Accuracy:
    """R samples per example, drawn in rounds, and their verdicts, which are decided on the device."""

    phase, layout = "sample", "decode"

    def __init__(
        self,
        context: Context,
        *,
        batch: int,
        samples: int,
        max_new_tokens: int,
        first_round: int,
        temperature: float,
        top_p: float,
        keep_texts: int,
        skip_settled: bool = False,
    ):
        """`first_round` is for `round_tokens`; `skip_settled` for the suite, which then names the rows to sample."""
        self._context, self._batch, self._keep = context, batch, keep_texts
        self.samples, self.skip_settled = samples, skip_settled
        tokenizer, rules, self._mesh = context.tokenizer, context.rules, context.decode_mesh
        model = context.model.on(mesh=self._mesh)
        self._token_bytes = tokenizer.token_bytes()
        self._vocabulary = sharding.put_replicated(self._mesh, vocabulary(self._token_bytes, rules))
        self._answers = answer_bytes([example.answer for example in context.data.examples], rules)
        self._seeds = context.seed, zlib.crc32(context.split.encode())

        settings = dict(temperature=temperature, top_p=top_p, eos_id=tokenizer.eos_id)
        tokens = round_tokens(max_new_tokens, first_round)
        self._rounds = partial(Rounds, context.data, samples, tokens, context.buckets)
        self._programs = [
            Program(
                partial(sample_and_grade, model, rules, samples=1 if i else samples, max_new_tokens=T, **settings),
                context.clock,
                out_shardings=sharding.replicated(self._mesh),
            )
            for i, T in enumerate(tokens)
        ]

    def run(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """Counts `samples`, `correct`, `unparsed` and `decided_on_host` of the rows of `only` (all), as they complete.

        With the kept texts among them.
        """
        rounds = self._rounds()
        key = sharding.random_key(self._mesh, *self._seeds, step)
        for batch in rounds.batches(self._batch, only, partial(sharding.rows_here, self._mesh)):
            size, here = batch.size, sharding.rows_here(self._mesh, batch.size)
            answers = Answers(*(np.resize(x[batch.rows], (size, *x.shape[1:]))[here] for x in self._answers))
            arrays, answers = sharding.put_batch(self._mesh, (batch.arrays, answers), size)
            out = self._programs[batch.round](params, arrays, answers, self._vocabulary, key)
            complete = rounds.add(batch, *(np.asarray(x)[: len(batch.at)] for x in out))
            if complete:
                yield self._part(step, complete, [rounds.take(row) for row in complete])

    def _part(self, step: int, rows: list[int], drawn: list[Drawn]) -> Part:
        verdicts, asked = zip(*(self._resolved(row, mine) for row, mine in zip(rows, drawn, strict=True)), strict=True)
        columns = {
            "samples": np.full(len(rows), self.samples, np.int32),
            "correct": np.sum(np.equal(verdicts, Verdict.CORRECT), axis=1, dtype=np.int32),
            "unparsed": np.sum(np.equal(verdicts, Verdict.UNPARSED), axis=1, dtype=np.int32),
            "decided_on_host": np.array(asked, np.int32),
        }
        kept = [b for b, row in enumerate(rows) if row < self._keep]
        return Part(rows, columns, [self._text(step, rows[b], drawn[b], verdicts[b]) for b in kept])

    def _resolved(self, row: int, drawn: Drawn) -> tuple[np.ndarray, int]:
        """The verdicts of a row with the host's word on those that the device left open, and how many these are."""
        answers = [self._context.data.examples[row].answer] * self.samples
        return resolve(drawn.verdict, drawn.tokens, drawn.length, self._token_bytes, answers, self._context.rules)

    def _text(self, step: int, row: int, drawn: Drawn, verdict_R: np.ndarray) -> dict:
        example, decode = self._context.data.examples[row], self._context.tokenizer.decode
        responses = [
            {"text": decode(tokens[:length]), "verdict": Verdict(verdict).name.lower()}
            for tokens, length, verdict in zip(drawn.tokens, drawn.length, verdict_R, strict=True)
        ]
        return {
            "step": step,
            "split": self._context.split,
            "example": int(example.id),
            "prompt": example.prompt,
            "reference": example.target.strip(),
            "responses": responses,
        }
