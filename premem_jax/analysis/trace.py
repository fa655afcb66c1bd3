"""The trace: measurements of each example at each evaluation, one Parquet file per evaluation.

A stack of members trained in one program has one trace, with a column `member`.

Training writes it, analysis reads it, and neither imports the other. Other trainers write it through
premem_jax.recorder. The metric needs `target_nll`, `samples` and `correct` of a split `train`; test accuracy needs
`samples` and `correct` of a split `test`; the threshold needs `target_nll` of held-out examples.
"""

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils.epath import Path

from premem_jax.analysis import premem, trace_table
from premem_jax.errors import UserError
from premem_jax.running import atomic

_FILE_NAME = re.compile(r"step-(\d{8,})\.parquet")


@dataclass(frozen=True)
class SplitTrace:
    """One split over M evaluations and E examples; NaN and zero where an evaluation left an example out."""

    example: np.ndarray  # (E,) int64, ascending
    nll: np.ndarray  # (M, E) float64, mean nats per target token; NaN where the likelihood was not run
    tokens: np.ndarray  # (E,) int64, target tokens; 0 where never recorded
    samples: np.ndarray  # (M, E) int64, responses sampled
    correct: np.ndarray  # (M, E) int64
    unparsed: np.ndarray  # (M, E) int64, responses in which no answer was found
    decided_on_host: np.ndarray | int = 0  # (M, E) int64, responses that the device could not decide exactly
    skipped: np.ndarray | int = 0  # (M, E) int64, responses not sampled since the metric is 0 whatever they say
    log_confidence: np.ndarray | None = None  # (M, E) float64, log-probability of the greedy response, nats; NaN: no
    answers: np.ndarray | None = None  # (M, E, R) uint32, `verdict.answer_hash` of each sample; 0: no sample

    @property
    def accuracy(self) -> np.ndarray:
        """(M, E) float64: correct / samples, NaN where nothing was sampled."""
        nothing = np.full(self.samples.shape, np.nan)
        return np.divide(self.correct, self.samples, out=nothing, where=self.samples > 0)

    @property
    def accuracy_or_skipped(self) -> np.ndarray:
        """(M, E) float64: the accuracy, and 0 where sampling was skipped; the input of the metric.

        Targets of skipped rows are memorized, so any accuracy there gives the same metric at the threshold of skipping
        and at every higher one.
        """
        return np.where(self.skipped_ME, 0.0, self.accuracy)

    @property
    def mean_accuracy(self) -> np.ndarray:
        """(M,) float64: the mean over the sampled examples, NaN if there are none.

        Also NaN if some were skipped: these are memorized, so the mean of the others would be too low.
        """
        return np.where(self.skipped_ME.any(axis=1), np.nan, premem.measured_mean(self.accuracy))

    @property
    def skipped_ME(self) -> np.ndarray:
        """(M, E) bool: where sampling was skipped."""
        return np.broadcast_to(np.asarray(self.skipped) > 0, self.samples.shape)


@dataclass(frozen=True)
class Trace:
    """A run over M evaluations, in the order of their steps."""

    steps: np.ndarray  # (M,) int64
    epochs: np.ndarray  # (M,) float64, passes over the training data
    splits: Mapping[str, SplitTrace]
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)  # (M,) each; NaN where not measured
    lost: tuple[int, ...] = ()  # steps before the last whose evaluation was due and is not there
    texts: Mapping[int, str] = field(default_factory=dict)  # step to the SHA-256 of the file of its sampled texts
    earlier: Mapping[str, Sequence[int]] = field(default_factory=dict)  # changed evaluator to its steps before

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices about lost evaluations, and about evaluators that were changed; mostly empty."""
        shown = lambda steps: ", ".join(f"{step:,}" for step in steps)
        lost = (
            f"the evaluation at step {shown(self.lost)} is lost: its file was damaged or deleted, and the weights of "
            "that step are not kept; the pre-memorization accuracy is a maximum over evaluations, so it may be too low"
        )
        changed = [
            f"the evaluator {name} was changed when the run was extended: its values at step {shown(steps)} are of the "
            "options before, since the weights of these steps are not kept"
            for name, steps in self.earlier.items()
        ]
        return ((lost,) if self.lost else ()) + tuple(changed)

    def split(self, name: str) -> SplitTrace:
        """The split called `name`. Raises UserError for an unknown name, and lists the known ones."""
        if name not in self.splits:
            raise UserError(f"The trace has no split {name!r}; it has: {', '.join(sorted(self.splits)) or 'none'}.")
        return self.splits[name]


class Evaluation(NamedTuple):
    """One evaluation as `write_evaluation` takes it; its keys are (member, name)."""

    epoch: float
    splits: dict[tuple[str, str], dict[str, np.ndarray]]
    measures: dict[tuple[str, str], float]
    due: tuple[int, ...] = ()
    texts: str = ""
    made: Mapping[str, str] = MappingProxyType({})


NOTHING = Trace(np.zeros(0, np.int64), np.zeros(0), {})  # of a run that evaluates nothing


def evaluation_path(folder: str | os.PathLike, step: int) -> Path:
    """The file of the evaluation at `step`."""
    return Path(folder) / f"step-{step:08d}.parquet"


def write_evaluation(
    folder: str | os.PathLike,
    step: int,
    epoch: float,
    splits: Mapping[str, Mapping[str, np.ndarray]] | Mapping[tuple[str, str], Mapping[str, np.ndarray]],
    measures: Mapping[str, float] | Mapping[tuple[str, str], float] | None = None,
    *,
    due: Collection[int] = (),
    texts: str = "",
    made: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes one evaluation atomically; the same input gives the same bytes.

    Args:
      folder: the trace folder, created if missing.
      step: number of optimizer steps; an existing evaluation of this step is replaced.
      epoch: passes over the training data so far.
      splits: split name to columns of one length (E,): `example` (unique ids) and any of `target_nll` (mean nats per
        target token, NaN where not run), `target_tokens`, `samples`, `correct`, `unparsed`, `decided_on_host`,
        `skipped` (0 where left out), `log_confidence` (log-probability of the greedy response, NaN where not run),
        `answers` (E, R) (`grading.verdict.answer_hash` of each sample). Of a stack of members trained together, the
        keys are (member, split name).
      measures: values of the whole run at this step, such as `gradient_variance`; of a stack, keys as for `splits`.
      due: the steps of all evaluations of the run, so that a reader knows of one that is lost.
      texts: the SHA-256 of the file of the texts that were sampled.
      made: a digest of the settings of each evaluator that made this, by its name.

    Raises:
      ValueError: an unknown column, unequal lengths, a repeated id, more verdicts than samples, or an
        example both sampled and skipped.
    """
    tables = [
        trace_table.of_split(step, epoch, *key, columns)
        for key, columns in sorted((_key(key), columns) for key, columns in splits.items())
    ]
    if not any(table.num_rows for table in tables):
        raise ValueError(f"The evaluation at step {step} has no rows.")
    values: dict[str, dict[str, float]] = {}
    for (member, name), value in sorted((_key(key), float(value)) for key, value in (measures or {}).items()):
        if math.isfinite(value):
            values.setdefault(member, {})[name] = value
    about = {"due": sorted(due), "texts": texts, "made": dict(sorted(made.items()))}
    atomic.write_bytes(evaluation_path(folder, step), trace_table.sealed(tables, values, about))


def named_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the evaluations in `folder` by their file names, ascending; no file is opened."""
    place = Path(folder)
    steps = [_named_step(path) for path in place.iterdir()] if place.is_dir() else []
    return sorted(step for step in steps if step is not None)


def _named_step(path: Path) -> int | None:
    match = _FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def evaluation_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the evaluations in `folder`, ascending; empty if there is no such folder.

    Temporary files are ignored. Raises UserError for a file without a readable Parquet footer, as after truncation by
    another program; `write_evaluation` itself leaves none.
    """
    steps = named_steps(folder)
    for step in steps:
        trace_table.footer(evaluation_path(folder, step))
    return steps


def members(folder: str | os.PathLike) -> list[str]:
    """The members of the trace in `folder`; one with an empty name if it is not of a stack."""
    tables = [trace_table.read(evaluation_path(folder, step), step) for step in evaluation_steps(folder)]
    return sorted({name for table in tables for name in table["member"].unique().to_pylist()})


def read_trace(folder: str | os.PathLike, up_to: int | None = None, member: str = "") -> Trace:
    """Reads the evaluations in `folder`, up to step `up_to` if given; of a stack, those of one `member`.

    Raises:
      UserError: no evaluation, a damaged file, another format version, an unknown member, or evaluations of different
        runs (an example whose number of target tokens changes).
    """
    steps = [step for step in evaluation_steps(folder) if up_to is None or step <= up_to]
    if not steps:
        until = "" if up_to is None else f" at or before step {up_to}"
        raise UserError(f"There is no evaluation{until} in {folder}; run the training first, or name another folder.")
    every = [trace_table.read(evaluation_path(folder, step), step) for step in steps]
    there = sorted({name for table in every for name in table["member"].unique().to_pylist()})
    if member not in there:
        raise UserError(f"{folder} has no member {member!r}; it is a stack of: {', '.join(filter(None, there))}")
    of_member = [table.filter(pc.equal(table["member"].cast(pa.string()), member)) for table in every]
    # A member whose loss stopped being finite has no rows in later evaluations.
    kept = [(step, table) for step, table in zip(steps, of_member, strict=True) if len(table)]
    steps, tables = [step for step, _ in kept], [table for _, table in kept]
    parts = [trace_table.by_split(table) for table in tables]
    nothing = {key: values[:0] for key, values in next(iter(parts[0].values())).items()}
    names = sorted({name for part in parts for name in part})
    measures = [trace_table.measures(table).get(member, {}) for table in tables]
    about = [trace_table.about(table) for table in tables]
    due = {step for each in about for step in each["due"] if step < steps[-1]}
    return Trace(
        steps=np.array(steps, np.int64),
        epochs=np.array([table["epoch"][0].as_py() for table in tables], np.float64),
        splits={name: line_up([part.get(name, nothing) for part in parts], name, folder) for name in names},
        measures={
            name: np.array([values.get(name, np.nan) for values in measures])
            for name in sorted({name for values in measures for name in values})
        },
        lost=tuple(sorted(due - set(steps))),
        texts={step: each["texts"] for step, each in zip(steps, about, strict=True) if each["texts"]},
        earlier=_changed({step: each.get("made", {}) for step, each in zip(steps, about, strict=True)}),
    )


def _changed(made: Mapping[int, Mapping[str, str]]) -> dict[str, list[int]]:
    """The steps at which an evaluator had other settings than at its last one, by its name, where there are any."""
    last = {name: digest for digests in made.values() for name, digest in digests.items()}
    steps = {name: [step for step, had in made.items() if had.get(name, now) != now] for name, now in last.items()}
    return {name: found for name, found in steps.items() if found}


def read_evaluation(folder: str | os.PathLike, step: int) -> Evaluation:
    """The evaluation at `step`, all members.

    Raises:
      FileNotFoundError: there is none.
      Damaged: its file is unreadable or its checksum does not match.
    """
    path = evaluation_path(folder, step)
    if not path.exists():
        raise FileNotFoundError(path)
    table = trace_table.read(path, step)
    splits: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for member in table["member"].unique().to_pylist():
        found = trace_table.by_split(table.filter(pc.equal(table["member"].cast(pa.string()), member)))
        splits |= {(member, name): columns for name, columns in found.items()}
    measures = trace_table.measures(table)
    about = trace_table.about(table)
    return Evaluation(
        epoch=float(table["epoch"][0].as_py()),
        splits=splits,
        measures={(member, name): value for member, of in measures.items() for name, value in of.items()},
        due=tuple(about["due"]),
        texts=about["texts"],
        made=about.get("made", {}),
    )


def texts_digest(folder: str | os.PathLike, step: int) -> str:
    """The SHA-256 of the texts of the evaluation at `step`; empty if its trace file names none.

    Raises:
      FileNotFoundError: there is no such evaluation.
      Damaged: its file is unreadable or its checksum does not match.
    """
    return read_evaluation(folder, step).texts


def line_up(parts: Sequence[Mapping[str, np.ndarray]], name: str, source: str | os.PathLike) -> SplitTrace:
    """Aligns the rows of one split over M evaluations by example id.

    Args:
      parts: for each evaluation, in order, the columns of `write_evaluation`.
      name, source: the split and the folder or file, for messages.

    Raises:
      UserError: an example whose number of target tokens changes.
    """
    example = np.unique(np.concatenate([np.asarray(part["example"], np.int64) for part in parts]))
    shape = (len(parts), len(example))
    values = {key: np.full(shape, np.nan) for key in trace_table.VALUES}
    counts = {key: np.zeros(shape, np.int64) for key in trace_table.COUNTS}
    hashed = [np.asarray(part.get("answers", np.zeros((len(part["example"]), 0))), np.uint32) for part in parts]
    answers = np.zeros((*shape, max(x.shape[1] for x in hashed)), np.uint32)
    for m, part in enumerate(parts):
        at = np.searchsorted(example, part["example"])
        for key, value in values.items():
            value[m, at] = part.get(key, np.nan)
        for key, count in counts.items():
            count[m, at] = part.get(key, 0)
        answers[m, at, : hashed[m].shape[1]] = hashed[m]
    tokens_ME = counts["target_tokens"]
    tokens = tokens_ME.max(axis=0, initial=0)
    odd = np.any((tokens_ME != tokens) & (tokens_ME != 0), axis=0)
    if odd.any():
        raise UserError(
            f"In {source}, example {example[odd][0]} of split {name!r} changes its number of target tokens between "
            "evaluations: it mixes runs with different data or tokenizers. Keep one run per folder."
        )
    del counts["target_tokens"]
    known = dict(log_confidence=values["log_confidence"], answers=answers)
    return SplitTrace(example, values["target_nll"], tokens, **counts, **known)


def _key(key: str | tuple[str, str]) -> tuple[str, str]:
    return ("", key) if isinstance(key, str) else key
