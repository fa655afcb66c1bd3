"""Data for the explorer of single examples. Everything is computed here; the page only displays it.

Numbers are base64 of little-endian arrays, and each text is stored once, so 8,000 examples and ten evaluations take a
few megabytes, mostly texts.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup

from premem_jax.analysis import premem
from premem_jax.analysis.threshold import Threshold
from premem_jax.analysis.trace import SplitTrace, Trace

VERDICTS = ("correct", "wrong", "unparsed")
HIGH, LOW = 2 / 3, 1 / 3  # fragile: solved at least this often in the end, and at most this often before memorization
SCRIPTS = ("chart.js", "explorer.js")


def explorer(
    trace: Trace,
    threshold: Threshold | None,
    examples: Iterable[Mapping],
    samples: Iterable[Mapping],
    train: str,
    pairs: Mapping[str, Mapping[int, float]] | None = None,
) -> dict:
    """The explorer's parts of `page.html`: `data` (a JSON text), `script`, and `digest` of the script for the CSP.

    Args:
      trace: the run's trace.
      threshold: the memorization threshold on perplexity; None: nothing counts as memorized.
      examples: rows {split, example, prompt, reference}, and `rejected` of a pair; an example without one is shown
        without texts. A split that looks at the prompts of another, and begins with its name, has the texts of that.
      samples: rows {step, split, example, responses: [{text, verdict}]}, verdicts from `VERDICTS`.
      train: the training split, shown first.
      pairs: further columns of the chosen responses to the training prompts: `ches` or `change`, by example.

    Raises:
      ValueError: an unknown verdict.
    """
    texts = Texts()
    shown = {
        (row["split"], row["example"]): [texts[row.get(key, "")] for key in ("prompt", "reference", "rejected")]
        for row in examples
    }
    kept = _responses(samples, texts)
    order = sorted(trace.splits, key=lambda name: (name != train, not trace.splits[name].samples.any(), name))
    split = lambda name: _split(name, trace, threshold, shown, kept, texts, name == train)
    splits = {name: split(name) for name in order}
    for key, values in (pairs or {}).items():
        if of := splits.get(f"{train} chosen"):
            of["columns"][key] = packed(np.array([values.get(id, np.nan) for id in of["example"]], np.float64))
    data = {
        "steps": trace.steps.tolist(),
        "epochs": [float(f"{epoch:.4g}") for epoch in trace.epochs],
        "nll": threshold and threshold.nll(len(trace.steps)).tolist(),
        "verdicts": VERDICTS,
        "splits": list(splits.values()),
        "texts": list(texts),
    }
    script = "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return {"data": in_script(data), "script": Markup(script), "digest": digest}


class Texts(dict):
    """Index of each text, in order of first use; 0 is the empty text."""

    def __init__(self):
        super().__init__({"": 0})

    def __missing__(self, text: str) -> int:
        return self.setdefault(text, len(self))


def in_script(data: object) -> Markup:
    """`data` as JSON for a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def packed(values: np.ndarray) -> list[str]:
    """[type, base64] of an array in row order: `f4` for floats; the narrowest of `u1`, `u2`, `u4` for counts."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        kind = "f4"
    else:
        kind = next(kind for kind in ("u1", "u2", "u4") if values.max(initial=0) <= np.iinfo(kind).max)
    return [kind, base64.b64encode(values.astype(f"<{kind}").tobytes()).decode("ascii")]


def groups(split: SplitTrace, premem_E: np.ndarray, threshold: Threshold | None) -> list[dict]:
    """The useful filters of a split: name, explanation, and `members` (E,) bool."""
    accuracy_E = last_known(split.accuracy)
    solved_E = split.correct.sum(axis=0) > 0
    found = [("all", "every example of the split", np.ones(len(split.example), bool))]
    if threshold and np.isfinite(split.nll).any():
        means = f"the target's last perplexity is below the threshold, {threshold.at_end:.4g} at the end"
        below_ME = np.where(np.isnan(split.nll), np.nan, split.nll < premem.log_threshold(threshold.perplexity))
        found.append(("memorized", means, last_known(below_ME) == 1))
    if np.isfinite(premem_E).any():
        means = "solved in two of three samples or more at the end, in one of three or fewer before memorization"
        fragile_E = (accuracy_E > HIGH - 1e-9) & (premem_E < LOW + 1e-9)
        found.append(("fragile", means, fragile_E))
    if split.samples.any():
        found.append(("never solved", "no sample of any evaluation was correct", ~solved_E & np.isfinite(accuracy_E)))
    return [dict(name=name, means=means, members=members) for name, means, members in found]


def last_known(values_ME: np.ndarray) -> np.ndarray:
    """The last value of each example that is not NaN, (E,) float; NaN if there is none."""
    known_ME = np.isfinite(values_ME)
    last_E = len(values_ME) - 1 - known_ME[::-1].argmax(axis=0)
    return np.take_along_axis(values_ME, last_E[None], axis=0)[0]


def _split(
    name: str, trace: Trace, threshold: Threshold | None, shown: Mapping, kept: Mapping, texts: Texts, trained: bool
) -> dict:
    split = trace.splits[name]
    premem_ME, memorized_E = np.full(split.nll.shape, np.nan), np.full(len(split.example), len(trace.steps))
    if threshold:
        memorized_E = premem.first_memorized(split.nll, threshold.perplexity)
        if trained:
            premem_ME = premem.pre_memorization_accuracy(split.accuracy, split.nll, threshold.perplexity)
    premem_E = last_known(premem_ME)
    bases = {base for base, _ in shown if name == base or name.startswith(f"{base} ")}
    of = max(bases, key=len, default=name)
    said = np.array([shown.get((of, int(id)), (0, 0, 0)) for id in split.example], int).reshape(-1, 3)
    at = {int(step): m for m, step in enumerate(trace.steps)}
    row = {int(id): e for e, id in enumerate(split.example)}
    responses: dict[int, dict[int, list]] = {}
    for (of, id, step), drawn in kept.items():
        if of == name and id in row and step in at:
            responses.setdefault(row[id], {})[at[step]] = drawn
    return {
        "name": name,
        "trained": trained,
        "example": split.example.tolist(),
        **{key: packed(said[:, i]) for i, key in enumerate(("prompt", "reference", "rejected"))},
        "columns": {
            "premem": packed(premem_E),
            "accuracy": packed(last_known(split.accuracy)),
            "nll": packed(last_known(split.nll)),
            "memorized": packed(memorized_E),
            "tokens": packed(split.tokens),
        },
        "curves": {
            "premem": packed(premem_ME),
            "nll": packed(split.nll),
            "correct": packed(split.correct),
            "unparsed": packed(split.unparsed),
            "samples": packed(split.samples),
        },
        "groups": [group | {"members": packed(group["members"])} for group in groups(split, premem_E, threshold)],
        "responses": responses,
    }


def _responses(samples: Iterable[Mapping], texts: Texts) -> dict[tuple, list]:
    """Maps (split, example, step) to pairs [text, verdict] of indices."""
    kept = {}
    for row in samples:
        unknown = {response["verdict"] for response in row["responses"]} - set(VERDICTS)
        if unknown:
            raise ValueError(f"Example {row['example']}: verdicts {sorted(unknown)} are not among {VERDICTS}.")
        pairs = [[texts[response["text"]], VERDICTS.index(response["verdict"])] for response in row["responses"]]
        kept[row["split"], row["example"], row["step"]] = pairs
    return kept
