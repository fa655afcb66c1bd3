"""Accuracy: how often do samples solve each example?"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax import sharding
from premem_jax.data.pipeline import evaluation_batches
from premem_jax.evaluators.base import Context
from premem_jax.programs import Program
from premem_jax.sampling.sampler import sample
from premem_jax.scoring.answers import Answers, answer_bytes, grade
from premem_jax.scoring.bytes import byte_table
from premem_jax.scoring.verdict import Verdict


class Accuracy:
    """R samples per example and their verdicts, decided on the device; only counts and a few texts come back."""

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
    ):
        self._context, self._batch, self._samples, self._keep = context, batch, samples, keep_texts
        tokenizer = context.tokenizer
        replicated = sharding.replicated(context.mesh)
        self._table = jax.device_put(byte_table(tokenizer.token_bytes()), replicated)
        self._answers = answer_bytes([example.answer for example in context.data.examples])
        key = jax.random.fold_in(jax.random.key(context.seed), zlib.crc32(context.split.encode()))
        self._key = jax.device_put(key, replicated)

        def sample_and_grade(params, prompts, lengths, ids, answers, table, key):
            drawn = sample(
                context.model,
                params,
                prompts,
                lengths,
                ids,
                key,
                samples=samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                eos_id=tokenizer.eos_id,
            )
            flat = lambda x: x.reshape(-1, *x.shape[2:])
            repeated = Answers(*(jnp.repeat(x, samples, axis=0) for x in answers))
            verdicts = grade(flat(drawn.tokens), flat(drawn.length), table, repeated).reshape(-1, samples)
            count = lambda verdict: jnp.sum(verdicts == verdict, axis=1)
            return count(Verdict.CORRECT), count(Verdict.UNPARSED), verdicts, drawn

        self._program = Program(sample_and_grade, context.clock)
        self.texts: list[dict] = []

    def run(self, params, step: int, progress, only: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Counts `samples`, `correct`, `unparsed`, row e being example e of the split; `texts` holds the kept ones.

        Rows outside `only` are left out; their counts mean nothing.
        """
        context, self.texts = self._context, []
        count = len(context.data)
        out = {"samples": np.full(count, self._samples, np.int32)}
        out |= {name: np.zeros(count, np.int32) for name in ("correct", "unparsed")}
        key = jax.random.fold_in(self._key, step)
        for rows, arrays in evaluation_batches(
            context.data, batch=self._batch, buckets=context.buckets, prompts_only=True, only=only
        ):
            answers = Answers(*(np.resize(x[rows], (self._batch, *x.shape[1:])) for x in self._answers))
            arrays, answers = sharding.put_batch(context.mesh, (arrays, answers))
            correct, unparsed, verdicts, drawn = self._program(
                params, arrays["tokens"], arrays["prompt_length"], arrays["ids"], answers, self._table, key
            )
            out["correct"][rows] = np.asarray(correct)[: len(rows)]
            out["unparsed"][rows] = np.asarray(unparsed)[: len(rows)]
            kept = [(b, row) for b, row in enumerate(rows) if row < self._keep]
            self.texts += [self._text(step, row, drawn.tokens[b], drawn.length[b], verdicts[b]) for b, row in kept]
            progress(len(rows))
        self.texts.sort(key=lambda text: text["example"])
        return out

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
