"""All evaluators of a run: which are due when, and one trace file per evaluation."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np

from premem_jax import progress, sharding
from premem_jax.analysis import premem, trace
from premem_jax.atomic import write_text
from premem_jax.errors import UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Context
from premem_jax.evaluators.confidence import Confidence
from premem_jax.evaluators.distance import Distance
from premem_jax.evaluators.gradient_variance import GradientVariance
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.programs import Program

TYPES = {
    "likelihood": Likelihood,
    "accuracy": Accuracy,
    "confidence": Confidence,
    "gradient_variance": GradientVariance,
    "distance": Distance,
}


def scheduled_steps(epochs, steps_per_epoch: int, steps: int) -> tuple[int, ...]:
    """The steps of an evaluator: the one nearest to each entry of `epochs` within the run, and always the last."""
    return tuple(
        sorted({round(epoch * steps_per_epoch) for epoch in epochs if epoch * steps_per_epoch <= steps} | {steps})
    )


class Suite:
    """The evaluators that the config names, run together at each step where any of them is due."""

    def __init__(
        self,
        configs: dict[str, dict],
        contexts: dict[str, Context],
        steps_per_epoch: int,
        steps: int,
        workdir: Path,
        perplexity: float | None = None,
    ):
        """`configs`: name → {type, split, epochs, **options}; `contexts`: what an evaluator of each split gets.

        `perplexity` is the memorization threshold, where it is known before the run: evaluators with `skip_settled`
        then leave out the examples of which `premem.settled` says that sampling them changes nothing.

        Raises:
          UserError: an unknown type or split.
        """
        self._workdir, self._per_epoch, self._perplexity = workdir, steps_per_epoch, perplexity
        self._items = {}
        # Likelihoods come first, since they say whose samples may be skipped.
        for name, options in sorted(configs.items(), key=lambda item: item[1]["type"] == "accuracy"):
            options = dict(options)
            kind, split, epochs = options.pop("type"), options.pop("split"), options.pop("epochs")
            if kind not in TYPES or split not in contexts:
                raise UserError(
                    f"evals.{name}: no type {kind!r} ({', '.join(TYPES)}) or no split {split!r} ({', '.join(contexts)})"
                )
            opening = options.pop("opening", "")
            context = contexts[split].after(opening) if opening else contexts[split]
            evaluator = TYPES[kind](context, **options)
            self._items[name] = (evaluator, context, scheduled_steps(epochs, steps_per_epoch, steps))
        self.steps = frozenset(step for _, _, due in self._items.values() for step in due)
        context = next(iter(contexts.values()))
        self._clock, self._decode_mesh = context.clock, context.decode_mesh
        self._decode_layout = None
        self._dtype = context.model.dtype

    def run(self, step: int, params) -> None:
        """Runs what is due at `step` and writes its trace file, unless that file is already there.

        Where nothing is due, after the last good step of a run that fails, everything is run.
        """
        if trace.evaluation_path(self._workdir / "trace", step).exists():
            return
        splits: dict[str, dict] = {}
        texts: list[dict] = []
        measures: dict[str, float] = {}
        layouts = {"train": params}
        for name, (evaluator, context, due) in self._items.items():
            if step in self.steps and step not in due:
                continue
            if evaluator.layout not in layouts:
                layouts["decode"] = self._to_decode_layout(params)
            columns = splits.setdefault(context.split, {"example": context.data.ids})
            rows = {}
            if getattr(evaluator, "skip_settled", False):
                settled = self._settled(context, columns, step)
                columns["skipped"] = settled * evaluator.samples
                rows["only"] = np.flatnonzero(~settled)
            examples = len(rows["only"]) if rows else getattr(evaluator, "examples", len(context.data))
            bar = progress.bar(examples, f"  {name}", "ex", leave=False)
            with self._clock(evaluator.phase), bar:
                columns |= evaluator.run(layouts[evaluator.layout], step, bar.update, **rows)
            texts += getattr(evaluator, "texts", [])
            measures |= getattr(evaluator, "measures", {})
        write_text(self._workdir / "samples" / f"step-{step:08d}.jsonl", "".join(json.dumps(t) + "\n" for t in texts))
        trace.write_evaluation(self._workdir / "trace", step, step / self._per_epoch, splits, measures)

    def _settled(self, context: Context, columns: dict[str, np.ndarray], step: int) -> np.ndarray:
        """(E,) bool: the examples that need no samples at `step`, from their likelihood there and the trace so far."""
        if self._perplexity is None or "target_nll" not in columns:
            return np.zeros(len(context.data), bool)
        nll_ME, accuracy_ME = columns["target_nll"][None], np.full((1, len(context.data)), np.nan)
        folder = self._workdir / "trace"
        if any(earlier < step for earlier in trace.evaluation_steps(folder)):
            past = trace.read_trace(folder, up_to=step - 1).splits.get(context.split)
            if past is not None:
                at = np.searchsorted(past.example, context.data.ids)
                nll_ME = np.concatenate([past.nll[:, at], nll_ME])
                accuracy_ME = np.concatenate([past.accuracy_or_skipped[:, at], accuracy_ME])
        return premem.settled(accuracy_ME, nll_ME, self._perplexity)[-1]

    def _to_decode_layout(self, params):
        """Weights in the compute dtype and the sampling layout, resharded once per evaluation."""
        if self._decode_layout is None:
            layout = sharding.shardings(self._decode_mesh, params)
            self._decode_layout = Program(partial(cast, self._dtype), self._clock, out_shardings=layout)
        with self._clock("sample"):
            return self._decode_layout(params)


def cast(dtype, tree):
    """The arrays of `tree` in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)
