"""Accuracy: how often do samples solve each example?"""

import zlib
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax import sharding
from premem_jax.data.pipeline import evaluation_batches
from premem_jax.evaluators.base import Context
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
        model, replicated = context.model.on(mesh=self._mesh), sharding.replicated(self._mesh)
        self._token_bytes = tokenizer.token_bytes()
        self._vocabulary = jax.device_put(vocabulary(self._token_bytes, rules), replicated)
        self._answers = answer_bytes([example.answer for example in context.data.examples], rules)
        key = jax.random.fold_in(jax.random.key(context.seed), zlib.crc32(context.split.encode()))
        self._key = jax.device_put(key, replicated)

        settings = dict(samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        program = partial(sample_and_grade, model, rules, eos_id=tokenizer.eos_id, **settings)
        self._program = Program(program, context.clock)
        self.texts: list[dict] = []

    def run(self, params, step: int, progress, only: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Counts `samples`, `correct`, `unparsed` and `decided_on_host`, row e being example e of the split.

        `texts` then holds the kept ones. Rows outside `only` are not sampled: their counts are zero.
        """
        context, self.texts = self._context, []
        count = len(context.data)
        out = {name: np.zeros(count, np.int32) for name in ("samples", "correct", "unparsed", "decided_on_host")}
        key = jax.random.fold_in(self._key, step)
        for rows, arrays in evaluation_batches(
            context.data, batch=self._batch, buckets=context.buckets, prompts_only=True, only=only
        ):
            answers = Answers(*(np.resize(x[rows], (self._batch, *x.shape[1:])) for x in self._answers))
            arrays, answers = sharding.put_batch(self._mesh, (arrays, answers))
            verdicts, drawn = self._program(
                params, arrays["tokens"], arrays["prompt_length"], arrays["ids"], answers, self._vocabulary, key
            )
            verdicts, asked = self._resolved(rows, np.asarray(verdicts), drawn)
            out["samples"][rows] = self.samples
            out["decided_on_host"][rows] = asked
            out["correct"][rows] = np.sum(verdicts == Verdict.CORRECT, axis=1)[: len(rows)]
            out["unparsed"][rows] = np.sum(verdicts == Verdict.UNPARSED, axis=1)[: len(rows)]
            kept = [(b, row) for b, row in enumerate(rows) if row < self._keep]
            self.texts += [self._text(step, row, drawn.tokens[b], drawn.length[b], verdicts[b]) for b, row in kept]
            progress(len(rows))
        self.texts.sort(key=lambda text: text["example"])
        return out

    def _resolved(self, rows, verdicts_BR: np.ndarray, drawn) -> tuple[np.ndarray, np.ndarray]:
        """The verdicts with the host's word on those that the device left open, and how many these are in each row."""
        verdicts_BR, asked = verdicts_BR.copy(), np.zeros(len(rows), np.int32)
        for b in np.flatnonzero(np.any(verdicts_BR[: len(rows)] == Verdict.UNDECIDED, axis=1)):
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
