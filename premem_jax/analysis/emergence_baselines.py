"""What else could have predicted few-shot ability from the same rows: simple answers that the law must beat.

Each gives an elbow, or a curve of few-shot accuracy against loss, from which an elbow is read as from the truth.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from premem_jax.analysis.emergence_elbow import LEAST, elbow
from premem_jax.analysis.emergence_table import Rows

Curve = Callable[[np.ndarray], np.ndarray]


class Baseline(NamedTuple):
    """A forecast, or why there is none: an elbow in nats, or accuracies at given losses."""

    title: str
    elbow: float | None = None
    curve: Curve | None = None
    why_not: str = ""


def baselines(rows: Rows, shots: float) -> dict[str, Baseline]:
    """Every baseline by its name."""
    return {
        **_elbows(rows, shots),
        "last_loss": Baseline("loss of the strongest model fitted", float(rows.loss.min())),
        "last_value": _last_value(rows),
        "gold_logprob_linear": _gold_logprob("gold log-probability, linear in loss", rows, _linear),
        "gold_logprob_sigmoid": _gold_logprob("gold log-probability, sigmoid in loss", rows, _sigmoid_logprob),
        "pass_rate": _pass_rate(rows),
        "accuracy_sigmoid": _accuracy_sigmoid(rows),
    }


def flops_to_loss(rows: Rows) -> tuple[float, float] | None:
    """(a, b) of ln L = a + b ln FLOPs over the models, the first of two steps FLOPs → loss → accuracy."""
    known = np.isfinite(rows.flops)
    points = np.unique(np.stack([rows.flops[known], rows.loss[known]], axis=1), axis=0)
    if len(np.unique(points[:, 0])) < 3:
        return None
    b, a = np.polyfit(np.log(points[:, 0]), np.log(points[:, 1]), 1)
    return float(a), float(b)


# ---- Elbows of single curves -----------------------------------------------------------------------------------------


def _elbows(rows: Rows, shots: float) -> dict[str, Baseline]:
    finetuned = rows.finetuned
    found = {}
    for amount in np.unique(finetuned.amount):
        mine = finetuned.where(finetuned.amount == amount)
        if one := elbow(mine.loss, mine.accuracy, mine.items):
            found[float(amount)] = one
    names = {
        "smallest_amount": "elbow of the smallest amount",
        "best_single_curve": "best elbow of one amount",
        "linear_in_log_amount": "line through the elbows, in ln D",
    }
    if not found:
        why = "no amount's curve rises over enough models"
        return {name: Baseline(title, why_not=why) for name, title in names.items()}
    best = min(found.values(), key=lambda one: one.aic["relu"] - min(one.aic["line"], one.aic["constant"]))
    values = {"smallest_amount": found[min(found)].elbow, "best_single_curve": best.elbow}
    if len(found) > 1:
        slope, start = np.polyfit(np.log(list(found)), [one.elbow for one in found.values()], 1)
        values["linear_in_log_amount"] = float(start + slope * np.log(shots))
    return {
        name: Baseline(title, values.get(name), why_not="" if name in values else "one amount's curve rises alone")
        for name, title in names.items()
    }


# ---- Curves of few-shot accuracy -------------------------------------------------------------------------------------


def _last_value(rows: Rows) -> Baseline:
    title = "few-shot accuracy of the strongest model fitted"
    few = rows.fewshot
    if not len(few.loss):
        return Baseline(title, why_not="no few-shot rows")
    value = float(few.accuracy[np.argmin(few.loss)])
    return Baseline(title, curve=lambda loss: np.full(np.shape(loss), value))


def _gold_logprob(title: str, rows: Rows, against_loss) -> Baseline:
    """Few-shot log-probability against loss, then accuracy from log-probability by a sigmoid over all rows."""
    few = rows.fewshot
    few = few.where(np.isfinite(few.gold_logprob))
    if len(np.unique(few.loss)) < LEAST:
        return Baseline(title, why_not=f"gold_logprob of fewer than {LEAST} models evaluated few-shot")
    both = rows.where(np.isfinite(rows.gold_logprob))
    curve, to_accuracy = against_loss(few.loss, few.gold_logprob), _sigmoid(-both.gold_logprob, both.accuracy)
    return Baseline(title, curve=lambda loss: to_accuracy(-np.minimum(curve(loss), 0)))


def _linear(loss: np.ndarray, y: np.ndarray) -> Curve:
    slope, start = np.polyfit(loss, y, 1)
    return lambda at: start + slope * at


def _sigmoid_logprob(loss: np.ndarray, y: np.ndarray) -> Curve:
    curve = _sigmoid(loss, np.exp(y))
    return lambda at: np.log(np.clip(curve(at), 1e-12, 1))


def _pass_rate(rows: Rows) -> Baseline:
    """The log of the pass rate is a line in loss: for tasks that are solved rarely before they are solved often."""
    title = "pass rate, its log linear in loss"
    few = rows.fewshot
    rate = np.where(np.isfinite(few.pass_rate), few.pass_rate, few.accuracy)
    few, rate = few.where(rate > 0), rate[rate > 0]
    if len(np.unique(few.loss)) < LEAST:
        return Baseline(title, why_not=f"fewer than {LEAST} models with a pass rate above 0")
    line = _linear(few.loss, np.log(rate))
    return Baseline(title, curve=lambda loss: np.exp(np.minimum(line(loss), 0)))


def _accuracy_sigmoid(rows: Rows) -> Baseline:
    title = "few-shot accuracy, sigmoid in loss"
    few = rows.fewshot
    if len(np.unique(few.loss)) < LEAST:
        return Baseline(title, why_not=f"fewer than {LEAST} models evaluated few-shot")
    return Baseline(title, curve=_sigmoid(few.loss, few.accuracy))


def _sigmoid(x: np.ndarray, y: np.ndarray) -> Curve:
    """floor + (1 - floor) * sigmoid((middle - x) / width), by least squares from several starts."""
    span = max(float(np.ptp(x)), 1e-9)

    def model(p: np.ndarray, at: np.ndarray) -> np.ndarray:
        return p[0] + (1 - p[0]) * expit((p[1] - at) / np.exp(p[2]))

    low, high = np.array([-1, x.min() - 3 * span, np.log(span / 200)]), np.array([0.999, x.max() + span, np.log(span)])
    starts = [
        np.clip([y.min(), middle, np.log(span / part)], low + 1e-9, high - 1e-9)
        for middle in (x.min() - span, x.min(), np.median(x))
        for part in (4, 20)
    ]
    fits = [least_squares(lambda p: model(p, x) - y, start, bounds=(low, high)) for start in starts]
    best = min(fits, key=lambda fit: fit.cost).x
    return lambda at: model(best, np.asarray(at, float))
