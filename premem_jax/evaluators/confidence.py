"""Confidence: log-probability of the greedy response to each example."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Evaluator, Part


class Confidence(Evaluator):
    """The log-probability of each example's greedy response, from which average thresholded confidence is computed.

    Source: Garg et al. (arXiv 2201.04234), as adapted to sampled text by Kang et al. (arXiv 2411.07681).
    """

    phase, layout = "sample", "decode"
    columns = ("log_confidence",)
    OPTIONS: ClassVar = {key: Accuracy.OPTIONS[key] for key in ("batch", "max_new_tokens")}

    def __init__(self, split, run, *, batch: int = 64, max_new_tokens: int = 512):
        from premem_jax.sampling.greedy import greedy_log_confidence

        super().__init__(split, run)
        self._batch = batch
        settings = dict(max_new_tokens=max_new_tokens, eos_ids=run.tokenizer.eos_ids)
        self._program = self.run.program(greedy_log_confidence, self.run.model, **settings)

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """`log_confidence` in nats of the rows `only` (default: all), batch by batch."""
        key = self.run.key()  # greedy: nothing is drawn
        for rows, arrays in self.run.batches(self.split.data, self._batch, only, prompts_only=True):
            values = self._program(params, arrays["tokens"], arrays["prompt_length"], arrays["ids"], key)
            yield Part(rows, {"log_confidence": np.asarray(values)[: len(rows)]})
