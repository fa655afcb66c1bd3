"""Records a run of any trainer as a trace with texts, which `analyze` and the report read. Without JAX.

    recorder = Recorder("runs/mine", task="my task", model="my model")
    recorder.examples("train", ids, prompts, references)
    recorder.log(step, "train", ids, nll, correct, samples, epoch=1.0)
    recorder.report()

`callback` measures a Hugging Face or TRL run and records it so. docs/own_trainer.md has the whole way.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils.epath import Path

import premem_jax
from premem_jax import strict_json
from premem_jax.analysis import trace
from premem_jax.analysis.conclusion import RULES, conclude
from premem_jax.analysis.texts import body_of, sampled_texts, texts_of_run, write_texts
from premem_jax.analysis.trace_table import VALUES
from premem_jax.errors import UserError
from premem_jax.grading.verdict import Verdict
from premem_jax.running import sealed, storage, workdir
from premem_jax.running.atomic import write_text

THRESHOLD: dict[str, Any] = {"rule": "heldout_quantile", "split": "heldout", "quantile": 0.01, "perplexity": 0.0}
VERDICTS = tuple(verdict.name.lower() for verdict in Verdict if verdict != Verdict.UNDECIDED)


class Recorder:
    """The folder of one run. Every call writes at once and whole, so a killed trainer keeps what it recorded.

    Several processes may record one run one after another, as when samples are drawn after training.
    """

    def __init__(self, folder: str | os.PathLike, *, task: str, model: str, threshold: Mapping[str, object] = {}):
        """Opens a folder, or makes it.

        Args:
          task, model: what was trained on what; runs with the same two are studied together.
          threshold: settings of the memorization threshold, as of a finetune: `rule` (`heldout_quantile`, `given` or
            `none`), `split`, `quantile`, `perplexity`.

        Raises:
          UserError: an unknown setting, or the folder holds something else.
        """
        settings = THRESHOLD | dict(threshold)
        if settings.keys() != THRESHOLD.keys() or settings["rule"] not in RULES:
            raise UserError(
                f"threshold={dict(threshold)}: it may have {', '.join(THRESHOLD)}; rule: {', '.join(RULES)}"
            )
        self.folder, self._threshold = storage.path(folder), settings
        config = {"experiment": "recorded", "data": {"task": task}, "model": {"preset": model}, "threshold": settings}
        workdir.check(self.folder, config)
        write_text(self.folder / "config.json", json.dumps(config, indent=2) + "\n")

    def examples(
        self, split: str, ids: Sequence[int], prompts: Sequence[str], references: Sequence[str], metadata=None
    ) -> None:
        """The texts of the examples of a split, for the report; replaces those of an earlier call.

        Args:
          split: `train`, `heldout`, `test`, or another name.
          ids: of the examples, whole numbers, unique within the split.
          prompts, references: what the model is asked, and the solution it should give.
          metadata: for each example, {name: text} or None.
        """
        columns = zip(ids, prompts, references, metadata or [None] * len(ids), strict=True)
        rows = [
            {"split": split, "example": int(id), "prompt": prompt, "reference": reference.strip()}
            | ({"metadata": dict(more)} if more else {})
            for id, prompt, reference, more in columns
        ]
        path = self.folder / "examples.jsonl"
        others = [row for row in _rows(path) if row["split"] != split]
        write_text(path, "".join(json.dumps(row) + "\n" for row in [*others, *rows]))

    def log(
        self,
        step: int,
        split: str,
        ids: Sequence[int],
        nll: Sequence[float] | None = None,
        correct: Sequence[int] | None = None,
        samples: Sequence[int] | int | None = None,
        texts: Sequence[Sequence[tuple[str, str]]] | None = None,
        *,
        epoch: float,
        **more: Sequence[float],
    ) -> None:
        """Records what was measured on examples of a split after `step` updates.

        What was recorded before of this step stays, except the values of the same examples that are given again. So
        likelihoods and samples may come in two calls.

        Args:
          step: number of updates so far.
          split: `train`, `heldout`, `test`, or another name.
          ids: of the E examples.
          nll: (E,) mean negative log-likelihood of the target, nats per token.
          correct, samples: (E,) correct responses, and responses drawn; one number of samples may be given for all.
          texts: (E,) for each example the responses to show, as pairs (text, verdict), verdicts from `VERDICTS`.
          epoch: passes over the training data so far.
          more: other columns of `trace.write_evaluation`, such as `target_tokens` and `unparsed`.

        Raises:
          ValueError: columns of other lengths, a repeated id, more correct responses than samples, a negative or
            infinite NLL, an unknown verdict.
        """
        given = {"target_nll": nll, "correct": correct, "samples": samples} | more
        ids_E = np.asarray(ids, np.int64)
        columns = {key: np.asarray(values) for key, values in given.items() if values is not None}
        columns = {key: np.broadcast_to(x, ids_E.shape) if x.ndim == 0 else x for key, x in columns.items()}
        if any(np.any(~np.isfinite(x) | (x < 0)) for key, x in columns.items() if key != "log_confidence"):
            raise ValueError(f"Split {split!r} at step {step}: a value is negative, infinite or no number.")
        rows = [
            {"step": int(step), "split": split, "example": int(id), "responses": [_response(*pair) for pair in pairs]}
            for id, pairs in zip(ids, texts or [()] * len(ids), strict=True)
            if pairs
        ]
        folder = self.folder / "trace"
        try:
            before = trace.read_evaluation(folder, step)
        except FileNotFoundError:
            before = trace.Evaluation(epoch, {}, {})
        here = {"example": ids_E, **columns}
        splits = before.splits | {("", split): _joined(before.splits.get(("", split), {}), here)}
        again = {(row["split"], row["example"]) for row in rows}
        old = sampled_texts(self.folder, step, before.texts) if before.texts else []
        rows = [row for row in old or () if (row["split"], row["example"]) not in again] + rows
        body = body_of(rows)
        trace.write_evaluation(folder, step, epoch, splits, before.measures, texts=sealed.digest(body) if rows else "")
        if rows:
            write_texts(self.folder, step, body)

    def recorded(self, step: int) -> list[str]:
        """The splits of which something was recorded at `step`."""
        try:
            return [name for _, name in trace.read_evaluation(self.folder / "trace", step).splits]
        except FileNotFoundError:
            return []

    def report(self) -> Path:
        """Writes `summary.json`, `figures/` and `report.html` from what is recorded; returns the page.

        Raises:
          UserError: nothing is recorded.
        """
        # Matplotlib, which recording does without.
        from premem_jax.report import audit_page
        from premem_jax.report.page import write_report

        found = trace.read_trace(self.folder / "trace")
        chosen, curves = conclude(found, **self._threshold)
        config = json.loads((self.folder / "config.json").read_text())
        summary = {
            "task": config["data"]["task"],
            "model": config["model"]["preset"],
            **{name: float(x[-1]) for name, x in curves.items() if np.isfinite(x[-1])},
            "threshold": chosen and chosen.at_end,
            "threshold_rule": chosen.rule if chosen else "none",
            "evaluations": len(found.steps),
            "workdir": str(self.folder),
            "version": premem_jax.__version__,
        }
        sealed.write_json(self.folder / "summary.json", summary)
        examples, samples = _rows(self.folder / "examples.jsonl"), texts_of_run(self.folder, found)
        audited = audit_page.audited(self.folder, found, chosen, curves)
        return write_report(self.folder, found, curves, chosen, summary, examples, samples, audited=audited)


def _rows(path: Path) -> list[dict]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [strict_json.loads(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _response(text: str, verdict: str) -> dict:
    if verdict not in VERDICTS:
        raise ValueError(f"The verdict {verdict!r} is not among {', '.join(VERDICTS)}.")
    return {"text": text, "verdict": verdict}


def _joined(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of the examples of both; where both have a value of an example, the new one stands."""
    lengths = {key: x.shape[:1] for key, x in new.items()}
    if len(set(lengths.values())) > 1 or len(np.unique(new["example"])) < len(new["example"]):
        raise ValueError(f"The columns are not of one length ({lengths}), or an example id is repeated.")
    example = np.union1d(old.get("example", []), new["example"]).astype(np.int64)
    joined = {"example": example}
    for key in (old.keys() | new.keys()) - {"example"}:
        parts = [part for part in (old, new) if key in part]
        width = [max(part[key].shape[1] for part in parts)] if key == "answers" else []
        joined[key] = np.full([len(example), *width], np.nan if key in VALUES else 0)
        for part in parts:
            at = np.searchsorted(example, part["example"])
            joined[key][(at, slice(part[key].shape[1])) if width else at] = part[key]
    return joined
