"""Accuracy: how often do samples solve each example?"""

import zlib
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
from premem_jax.sampling.sampler import Samples, sample
from premem_jax.scoring.answers import Answers, Vocabulary, answer_bytes, grade, resolve, vocabulary
from premem_jax.scoring.verdict import Verdict


def sample_and_grade(
    model: Model, rules, params, prompts_BP, length_B, ids_B, answers: Answers, vocabulary: Vocabulary, key, **settings
) -> tuple[jax.Array, Samples]:
    """Responses and their verdicts (B, R): `sample` and `grade` in one program, with the settings of `sample`."""
    drawn = sample(model, params, prompts_BP, length_B, ids_B, key, **settings)
    B, R, T = drawn.tokens.shape
    repeated = Answers(*(jnp.repeat(x, R, axis=0) for x in answers))
    verdicts = grade(drawn.tokens.reshape(B * R, T), drawn.length.reshape(B * R), vocabulary, repeated, rules)
    return verdicts.reshape(B, R), drawn


class Accuracy:
    """R samples per example and their verdicts, decided on the device; only those and a few texts come back."""

    phase, layout = "sample", "decode"

    def __init__(
        self,
        context: Context,
        *,
        batch: int,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        keep_texts: int,
        skip_settled: bool = False,
    ):
        """`skip_settled` is for the suite, which then names the rows to sample."""
        self._context, self._batch, self._keep = context, batch, keep_texts
        self.samples, self.skip_settled = samples, skip_settled
        tokenizer, rules, self._mesh = context.tokenizer, context.rules, context.decode_mesh
        model = context.model.on(mesh=self._mesh)
        self._token_bytes = tokenizer.token_bytes()
        self._vocabulary = sharding.put_replicated(self._mesh, vocabulary(self._token_bytes, rules))
        self._answers = answer_bytes([example.answer for example in context.data.examples], rules)
        self._seeds = context.seed, zlib.crc32(context.split.encode())

        settings = dict(samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        program = partial(sample_and_grade, model, rules, eos_id=tokenizer.eos_id, **settings)
        self._program = Program(program, context.clock, out_shardings=sharding.replicated(self._mesh))

    def run(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """Counts `samples`, `correct`, `unparsed` and `decided_on_host` of the rows of `only` (all), batch by batch.

        With the kept texts among them.
        """
        context, size = self._context, self._batch
        here = sharding.rows_here(self._mesh, size)
        key = sharding.random_key(self._mesh, *self._seeds, step)
        for rows, arrays in evaluation_batches(
            context.data, batch=size, buckets=context.buckets, prompts_only=True, only=only, here=here
        ):
            answers = Answers(*(np.resize(x[rows], (size, *x.shape[1:]))[here] for x in self._answers))
            arrays, answers = sharding.put_batch(self._mesh, (arrays, answers), size)
            verdicts, drawn = self._program(
                params, arrays["tokens"], arrays["prompt_length"], arrays["ids"], answers, self._vocabulary, key
            )
            verdicts, asked = self._resolved(rows, np.asarray(verdicts)[: len(rows)], drawn)
            columns = {
                "samples": np.full(len(rows), self.samples, np.int32),
                "correct": np.sum(verdicts == Verdict.CORRECT, axis=1, dtype=np.int32),
                "unparsed": np.sum(verdicts == Verdict.UNPARSED, axis=1, dtype=np.int32),
                "decided_on_host": asked,
            }
            kept = [(b, row) for b, row in enumerate(rows) if row < self._keep]
            texts = [self._text(step, row, drawn.tokens[b], drawn.length[b], verdicts[b]) for b, row in kept]
            yield Part(rows, columns, texts)

    def _resolved(self, rows, verdicts_BR: np.ndarray, drawn) -> tuple[np.ndarray, np.ndarray]:
        """The verdicts with the host's word on those that the device left open, and how many these are in each row."""
        verdicts_BR, asked = verdicts_BR.copy(), np.zeros(len(rows), np.int32)
        for b in np.flatnonzero(np.any(verdicts_BR == Verdict.UNDECIDED, axis=1)):
            answers = [self._context.data.examples[rows[b]].answer] * self.samples
            verdicts_BR[b], asked[b] = resolve(
                verdicts_BR[b], drawn.tokens[b], drawn.length[b], self._token_bytes, answers, self._context.rules
            )
        return verdicts_BR, asked

    def _text(self, step: int, row: int, tokens_RT, length_R, verdict_R) -> dict:
        example, decode = self._context.data.examples[row], self._context.tokenizer.decode
        tokens, lengths, verdicts = np.asarray(tokens_RT), np.asarray(length_R), np.asarray(verdict_R)
        responses = [
            {"text": decode(t[:n]), "verdict": Verdict(v).name.lower()}
            for t, n, v in zip(tokens, lengths, verdicts, strict=True)
        ]
        return {
            "step": step,
            "split": self._context.split,
            "example": int(example.id),
            "prompt": example.prompt,
            "reference": example.target.strip(),
            "responses": responses,
        }
