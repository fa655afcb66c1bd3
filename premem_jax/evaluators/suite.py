"""All evaluators of a run: their schedule, and one trace file per evaluation."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils.epath import Path

from premem_jax import evaluators
from premem_jax.analysis import trace
from premem_jax.analysis.texts import body_of, sampled_texts, write_texts
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Collected, Evaluator, Split, checked
from premem_jax.evaluators.run import Run
from premem_jax.evaluators.unfinished import Unfinished
from premem_jax.running import processes, progress, sealed

log = logging.getLogger(__name__)


def scheduled_steps(epochs, steps_per_epoch: int, steps: int) -> tuple[int, ...]:
    """The steps of an evaluator: the nearest to each entry of `epochs` within the run, and always the last."""
    return tuple(
        sorted({round(epoch * steps_per_epoch) for epoch in epochs if epoch * steps_per_epoch <= steps} | {steps})
    )


def everything(evaluator: Evaluator, splits: Mapping[str, Mapping], step: int, member: str) -> np.ndarray:
    """All rows of the evaluator's split (E,)."""
    return np.ones(len(evaluator.split.data), bool)


class Suite:
    """The evaluators of a config. At each step, all that are due run together."""

    def __init__(
        self,
        configs: Mapping[str, Mapping],
        splits: Mapping[str, Split],
        run: Run,
        steps_per_epoch: int,
        steps: int,
        workdir: Path,
        wanted: Callable[[Evaluator, Mapping[str, Mapping], int, str], np.ndarray] = everything,
    ):
        """`configs`: name → {type, split, epochs, **options}; `splits`: the data by name.

        `wanted(evaluator, splits, step, member)` selects the rows (E,) of an evaluator, given the columns of the
        evaluators before it, by split.

        Raises:
          UserError: an unknown type, option or split.
        """
        self._workdir, self._run, self._per_epoch, self._wanted = workdir, run, steps_per_epoch, wanted
        made = {name: (_evaluator(name, options, splits, run), options["epochs"]) for name, options in configs.items()}
        # Evaluators of the training weights come first: their results may save samples.
        made = sorted(made.items(), key=lambda item: item[1][0].layout != "train")
        self.evaluators: dict[str, Evaluator] = {name: evaluator for name, (evaluator, _) in made}
        self._made_by = {name: _digest(options) for name, options in configs.items()}
        self._due = {name: scheduled_steps(epochs, steps_per_epoch, steps) for name, (_, epochs) in made}
        self.steps = frozenset(step for due in self._due.values() for step in due)

    def run(self, step: int, weights: Mapping[str, Callable[[], Any]]) -> None:
        """Runs the evaluators due at `step` and writes trace file and texts.

        What the file has already from evaluators of the same settings is kept and not made again.

        If none is due, as at the last good step of a failed run, all are run. `weights` gives those of each member by
        name; a run without members has one, with an empty name.
        """
        missing = processes.once(lambda: self._missing(step))
        if not missing:
            return
        examples = {(m, name): len(self.evaluators[name].split.data) for m in weights for name in missing}
        unfinished = Unfinished(self._workdir / "unfinished.npz", step, {"/".join(k): e for k, e in examples.items()})
        before = self._before(step)
        splits, measures = dict(before.splits), dict(before.measures)
        old = (before.texts and sampled_texts(self._workdir, step, before.texts)) or []
        texts: list[dict] = []
        for member, params in weights.items():
            said = {"member": member} if member else {}
            for split, columns, found in self._look(member, params(), step, missing, splits, unfinished):
                splits[member, split] = columns
                texts += [text | said for text in sorted(found.texts, key=lambda text: text["example"])]
                measures |= {(member, name): value for name, value in found.measures.items()}
        of = lambda text: (text.get("member", ""), text["split"])
        again = set(map(of, texts))
        texts = [text for text in old if of(text) not in again] + texts
        if processes.leads():
            made = before.made | {name: self._made_by[name] for name in missing}
            due = {*before.due, *self.steps}
            about = dict(due=due, texts=write_texts(self._workdir, step, body_of(texts)), made=made)
            trace.write_evaluation(self._workdir / "trace", step, step / self._per_epoch, splits, measures, **about)
        unfinished.clear()

    def _missing(self, step: int) -> list[str]:
        """The evaluators that are due at `step` and have not made its trace file with their settings, in order."""
        due = [name for name in self.evaluators if step not in self.steps or step in self._due[name]]
        if not self._whole(step):
            return due
        made = trace.read_evaluation(self._workdir / "trace", step).made
        return [name for name in due if made.get(name) != self._made_by[name]]

    def _before(self, step: int) -> trace.Evaluation:
        """What the file of `step` has already, as when a run is extended by an evaluator."""
        if not processes.once(lambda: self._whole(step)):
            return trace.Evaluation(step / self._per_epoch, {}, {})
        return trace.read_evaluation(self._workdir / "trace", step)

    def _look(
        self, member: str, params, step: int, names: Sequence[str], before: Mapping, unfinished: Unfinished
    ) -> Iterator[tuple[str, dict, Collected]]:
        """Runs evaluators on one member: the split of each, its columns so far, and its results.

        `before` has the columns of an earlier launch, by (member, split); those of `names` are replaced.
        """
        splits = {split: columns for (of, split), columns in before.items() if of == member}
        layouts = {"train": params}
        for name in names:
            evaluator, found = self.evaluators[name], unfinished.of[f"{member}/{name}"]
            columns = splits[evaluator.split.name] = _kept(evaluator, splits.get(evaluator.split.name))
            for column in (*evaluator.columns, "skipped") if "samples" in evaluator.columns else evaluator.columns:
                columns.pop(column, None)
            wanted = self._wanted(evaluator, splits, step, member)
            if not found.finished:
                layout = evaluator.layout
                if layout not in layouts:
                    with self._run.clock(evaluator.phase):
                        layouts[layout] = self._run.weights(params, layout)
                self._evaluate(name, member, layouts[layout], step, wanted, unfinished)
            columns |= evaluator.left_out(~wanted) | found.columns
            yield evaluator.split.name, columns, found

    def make_again(self, kept: Sequence[int], weights_at: Callable[[int], Mapping | None]) -> None:
        """Sets damaged evaluations aside, and repeats missing ones if the weights of their steps are kept.

        Training starts at the last step of `kept` and repeats later evaluations itself. `weights_at(step)` may be None.
        A warning names lost evaluations; the metric's running maximum then omits them.
        """
        begin, due = max(kept, default=0), set(self.steps)
        named = lambda: set(processes.once(lambda: trace.named_steps(self._workdir / "trace")))
        for step in sorted(named() | due):
            again = not self._complete(step) and step in due and step in kept and step < begin
            if again and (weights := weights_at(step)) is not None:
                self.run(step, weights)
        if lost := sorted(step for step in due - named() if step < begin):
            log.warning(
                "the evaluation at step %s is lost, and no checkpoint of that step is kept: the pre-memorization "
                "accuracy may come out too low, since its maximum leaves that step out; the report says so",
                ", ".join(map(str, lost)),
            )

    def _complete(self, step: int) -> bool:
        """Whether trace file and texts of `step` are intact and have all that is due; damaged ones are set aside."""
        return not processes.once(lambda: self._missing(step))

    def _whole(self, step: int) -> bool:
        path = trace.evaluation_path(self._workdir / "trace", step)
        wanted = lambda path: trace.texts_digest(path.parent, step)
        digest = sealed.unless_damaged(wanted, path, self._workdir, "it is made again where the weights are there")
        return digest is not None and sampled_texts(self._workdir, step, digest) is not None

    def _evaluate(self, name: str, member: str, params, step: int, wanted: np.ndarray, unfinished: Unfinished) -> None:
        """Runs one evaluator on the rows that are wanted and not there yet, which keeps the batches what they were."""
        evaluator, found = self.evaluators[name], unfinished.of[f"{member}/{name}"]
        total = min(wanted.sum(), evaluator.examples)
        title = f"  {member} {name}" if member else f"  {name}"
        bar = progress.bar(total, title, "ex", leave=False, initial=(found.done & wanted).sum())
        with self._run.clock(evaluator.phase), bar:
            parts = evaluator.measure(params, step, np.flatnonzero(wanted & ~found.done))
            for part in checked(f"evals.{name} at step {step}", evaluator.split, parts):
                found.add(part)
                bar.update(len(part.rows))
                try:
                    processes.poll()
                except processes.Stopped:
                    unfinished.keep(now=True)
                    raise
                unfinished.keep()
            found.finished = True


def _kept(evaluator: Evaluator, columns: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The columns that the evaluator's split has, if any, in the order of its ids."""
    ids = evaluator.split.data.ids
    if columns is None or np.array_equal(columns["example"], ids):
        return {"example": ids} | dict(columns or {})
    at = np.searchsorted(columns["example"], ids)  # of a file, which is sorted
    return {key: values[at] for key, values in columns.items()}


def _digest(options: Mapping) -> str:
    """Of what an evaluator measures; not of when, nor of how the same responses are drawn."""
    said = {key: value for key, value in options.items() if key not in ("epochs", "drafted")}
    return sealed.digest(json.dumps(said, sort_keys=True).encode())[:16]


def _evaluator(name: str, options: Mapping, splits: Mapping[str, Split], run: Run) -> Evaluator:
    options = dict(options)
    kind, split, _ = (options.pop(key) for key in ("type", "split", "epochs"))
    if split not in splits:
        raise UserError(f"evals.{name}: no split {split!r} (there are: {', '.join(splits)})")
    try:
        return evaluators.find(kind)(splits[split], run, **evaluators.options(kind, options))
    except UserError as error:
        raise UserError(f"evals.{name}: {error}") from error
