"""All evaluators of a run: which are due when, and one trace file per evaluation."""

import json
from functools import partial

import jax
import numpy as np
from etils.epath import Path

from premem_jax import processes, progress, sharding
from premem_jax.analysis import premem, trace
from premem_jax.atomic import write_text
from premem_jax.errors import UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Context
from premem_jax.evaluators.confidence import Confidence
from premem_jax.evaluators.distance import Distance
from premem_jax.evaluators.gradient_variance import GradientVariance
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.evaluators.unfinished import Unfinished
from premem_jax.models.decoder import unstack
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
            context = contexts[split].perturbed(options.pop("opening", ""), options.pop("reworded", False))
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
        if processes.once(lambda: trace.evaluation_path(self._workdir / "trace", step).exists()):
            return
        items = {name: item for name, item in self._items.items() if step not in self.steps or step in item[2]}
        examples = {name: len(context.data) for name, (_, context, _) in items.items()}
        unfinished = Unfinished(self._workdir / "unfinished.npz", step, examples)
        splits: dict[str, dict] = {}
        texts: list[dict] = []
        measures: dict[str, float] = {}
        layouts = {"train": params}
        for name, (evaluator, context, _) in items.items():
            columns = splits.setdefault(context.split, {"example": context.data.ids})
            found, wanted = unfinished.of[name], np.ones(len(context.data), bool)
            if getattr(evaluator, "skip_settled", False):
                wanted = ~self._settled(context, columns, step)
                columns["skipped"] = ~wanted * evaluator.samples
            if not found.finished:
                if evaluator.layout not in layouts:
                    layouts["decode"] = self._to_decode_layout(params)
                self._evaluate(name, evaluator, layouts[evaluator.layout], step, wanted, unfinished)
            columns |= found.columns
            texts += sorted(found.texts, key=lambda text: text["example"])
            measures |= found.measures
        if processes.leads():
            lines = "".join(json.dumps(text) + "\n" for text in texts)
            write_text(self._workdir / "samples" / f"step-{step:08d}.jsonl", lines)
            trace.write_evaluation(self._workdir / "trace", step, step / self._per_epoch, splits, measures)
        unfinished.clear()

    def _evaluate(self, name: str, evaluator, params, step: int, wanted: np.ndarray, unfinished: Unfinished) -> None:
        """Runs one evaluator on the rows that are wanted and not there yet, which keeps the batches what they were."""
        found = unfinished.of[name]
        total = min(wanted.sum(), getattr(evaluator, "examples", len(wanted)))
        bar = progress.bar(total, f"  {name}", "ex", leave=False, initial=(found.done & wanted).sum())
        with self._clock(evaluator.phase), bar:
            for part in evaluator.run(params, step, np.flatnonzero(wanted & ~found.done)):
                found.add(part)
                bar.update(len(part.rows))
                try:
                    processes.poll()
                except processes.Stopped:
                    unfinished.keep(now=True)
                    raise
                unfinished.keep()
            found.finished = True

    def _settled(self, context: Context, columns: dict[str, np.ndarray], step: int) -> np.ndarray:
        """(E,) bool: the examples that need no samples at `step`, from their likelihood there and the trace so far."""
        if self._perplexity is None or "target_nll" not in columns:
            return np.zeros(len(context.data), bool)
        return np.array(processes.once(lambda: self._settled_now(context, columns, step).tolist()), bool)

    def _settled_now(self, context: Context, columns: dict[str, np.ndarray], step: int) -> np.ndarray:
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
        """Weights in the compute dtype and the sampling layout, unstacked and resharded once per evaluation."""
        if self._decode_layout is None:
            convert = partial(to_decode, self._dtype)
            layout = sharding.shardings(self._decode_mesh, jax.eval_shape(convert, params))
            self._decode_layout = Program(convert, self._clock, out_shardings=layout)
        with self._clock("sample"):
            return self._decode_layout(params)


def to_decode(dtype, params):
    """Parameters for many tokens to decode: in `dtype`, layer by layer."""
    return jax.tree.map(lambda x: x.astype(dtype), unstack(params))
