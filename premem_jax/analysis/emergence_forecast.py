"""A forecast of emergence from a table's rows, or a refusal with its reason; and how it turned out."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from premem_jax.analysis import emergence_intervals as intervals
from premem_jax.analysis.emergence_baselines import baselines, flops_to_loss
from premem_jax.analysis.emergence_elbow import elbow
from premem_jax.analysis.emergence_law import FORMS, Fit, Law, fit
from premem_jax.analysis.emergence_table import Rows, checksum
from premem_jax.errors import UserError

LEAST_AMOUNTS = LEAST_MODELS = 3
SURE = 0.99  # of the test whether any finetuned row is above its floor
SHIFT = 2.0  # standard errors by which finetuning must move the elbow
WIDEST = 0.5  # a 90 % interval, as a share of the range of losses
GRID = 121  # losses at which a curve is written down


def forecast(
    rows: Rows, shots: int, form: str, draws: int, seed: int, told: Callable[[], object] = lambda: None
) -> dict:
    """Everything that is predicted, as a document.

    Args:
      shots: examples in the prompt of the few-shot evaluation.
      draws: of the bootstrap over subsets; 0 does without.
      told: hears of each draw.

    Returns:
      `elbow` (None where it is refused), `interval` (5 % and 95 %) and what it is from, `refused` (why, or None),
      `law`, `diagnostics`, `forms`, `curve` (few-shot accuracy at losses) and `baselines`.

    Raises:
      UserError: `shots` is not below the amounts of data.
    """
    about = {
        "rows_sha256": checksum(rows),
        "rows": len(rows.loss),
        "models": len(np.unique(rows.model)),
        "amounts": np.unique(rows.finetuned.amount).astype(int).tolist(),
        "losses": [float(rows.loss.min()), float(rows.loss.max())],
        "flops_of_the_strongest": float(np.max(rows.flops)) if np.isfinite(rows.flops).all() else None,
        "shots": shots,
        "form": form,
    }
    if why := too_little(rows):
        return about | _nothing(why, rows, shots)
    if shots >= rows.amount.max():
        raise UserError(f"shots={shots}: must be below the largest amount of data, {rows.amount.max():g}")
    best = fit(rows, shots, form)
    if why := nothing_learned(best, rows):
        return about | _nothing(why, rows, shots)
    return about | _measured(rows, best, draws, seed, told) | _others(rows, shots)


def _measured(rows: Rows, best: Fit, draws: int, seed: int, told: Callable[[], object]) -> dict:
    """The law, its intervals and diagnostics, and whether they are worth a number."""
    posterior = intervals.posterior(rows, best.law, seed)
    laws = intervals.bootstrap(rows, best, draws, seed, told)
    spread = {"posterior": posterior.elbow} | ({"bootstrap": np.array([law.elbow for law in laws])} if laws else {})
    used = "bootstrap" if laws and repeated(rows) else "posterior"
    interval = np.percentile(spread[used], [5, 95])
    shift, error = elbow_shift(rows, best.law, posterior, laws)
    why = out_of_reach(rows, interval) or unmoved(shift, error)
    at = grid(rows)
    return {
        "refused": why,
        "elbow": None if why else best.law.elbow,
        "interval": interval.tolist(),
        "interval_from": used,
        "law": described(best),
        "percentiles": {name: intervals.percentiles(values) for name, values in spread.items()},
        "diagnostics": {
            "r_hat": posterior.r_hat,
            "effective_draws": posterior.effective,
            "acceptance": posterior.acceptance,
            "converged": posterior.converged,
            "bootstrap_draws": len(laws),
            "shift_of_elbow": shift,
            "shift_error": error,
        },
        "forms": held_out(rows, best.law.shots),
        "curve": {"loss": at.tolist(), "accuracy": best.law.accuracy(at, 0).tolist()},
        "notes": notes(rows, posterior, used),
    }


def _nothing(why: str, rows: Rows, shots: float) -> dict:
    """What is left of a forecast that is refused before an interval is computed."""
    unknown = dict.fromkeys(("elbow", "interval", "interval_from", "law", "diagnostics", "forms", "curve"))
    return {"refused": why, **unknown, "percentiles": {}, "notes": [], **_others(rows, shots)}


def _others(rows: Rows, shots: float) -> dict:
    at = grid(rows)
    named = {
        name: {
            "title": one.title,
            "elbow": one.elbow,
            "curve": None if one.curve is None else one.curve(at).tolist(),
            "why_not": one.why_not,
        }
        for name, one in baselines(rows, shots).items()
    }
    return {"baselines": named, "grid": at.tolist(), "flops_to_loss": flops_to_loss(rows)}


def grid(rows: Rows) -> np.ndarray:
    """Losses from those of the rows to twice their range beyond, in increasing order."""
    low, high = rows.loss.min(), rows.loss.max()
    return np.linspace(max(low - 2 * (high - low), 0), high, GRID)


def described(best: Fit) -> dict:
    """The numbers of a law and of its fit."""
    k, c = best.law.k_and_c()
    return {
        **vars(best.law),
        "k": k,
        "c": c,
        "log_likelihood": best.log_likelihood,
        "log_likelihood_flat": best.log_likelihood_flat,
        "log_likelihood_one_elbow": best.log_likelihood_one_elbow,
    }


# ---- Refusals --------------------------------------------------------------------------------------------------------


def too_little(rows: Rows) -> str | None:
    """Why the rows cannot hold a law: it has three numbers for the elbow, and a curve has three as well."""
    amounts, models = (len(np.unique(column)) for column in (rows.finetuned.amount, rows.finetuned.loss))
    if amounts < LEAST_AMOUNTS:
        return f"{amounts} amount{'s' * (amounts != 1)} of finetuning data; how the elbow moves takes {LEAST_AMOUNTS}"
    if models < LEAST_MODELS:
        return f"finetuned models of {models} different losses; a curve with an elbow takes {LEAST_MODELS}"
    return None


def nothing_learned(best: Fit, rows: Rows) -> str | None:
    """No finetuned row leaves the floor by more than noise does."""
    gain = 2 * (best.log_likelihood - best.log_likelihood_flat)
    if gain >= stats.chi2.ppf(SURE, df=4):  # slope, two elbows, alpha
        return None
    return "no finetuned model is above chance: accuracies are as well described by one constant"


def elbow_shift(rows: Rows, best: Law, posterior: intervals.Posterior, laws: list[Law]) -> tuple[float, float]:
    """How far finetuning moves the elbow from the smallest to the largest amount, in nats, and its standard error.

    The larger error of two counts: that of the posterior, and that of the bootstrap over subsets.
    """
    smallest = rows.finetuned.amount.min()
    moved = lambda law: float(law.elbow_at(best.largest) - law.elbow_at(smallest))
    draws = (Law(best.form, best.shots, best.largest, *theta[:3]) for theta in posterior.draws[::4])
    errors = [np.std([moved(law) for law in draws])]
    if laws:
        errors.append(np.std([moved(law) for law in laws]))
    return moved(best), float(max(errors))


def unmoved(shift: float, error: float) -> str | None:
    """The elbow does not move by more than the error of its move."""
    if shift >= SHIFT * error:
        return None
    return f"finetuning does not move the elbow here: {shift:.3f} ± {error:.3f} nats from the least data to the most"


def out_of_reach(rows: Rows, interval: np.ndarray) -> str | None:
    """The interval says little more than that the elbow lies somewhere on the axis."""
    width, span = float(np.ptp(interval)), float(np.ptp(rows.loss))
    if width < WIDEST * span:
        return None
    return f"the elbow is not in reach: its 90 % interval is {width:.2f} nats wide, all losses fitted span {span:.2f}"


# ---- What else to know -----------------------------------------------------------------------------------------------


def repeated(rows: Rows) -> bool:
    """Whether all amounts but the largest, which may be all there is, have several subsets."""
    finetuned = rows.finetuned
    amounts = np.unique(finetuned.amount)[:-1]
    return all(len(np.unique(finetuned.subset[finetuned.amount == amount])) > 1 for amount in amounts)


def notes(rows: Rows, posterior: intervals.Posterior, used: str) -> list[str]:
    """What a reader should know before trusting the number."""
    found = []
    if used == "posterior":
        found.append("one subset per amount, or no bootstrap: the interval leaves out the chance of a subset's draw")
    if not posterior.converged:
        found.append(f"the posterior's chains have not met (R-hat {posterior.r_hat:.2f}): its interval is a rough one")
    few = rows.fewshot
    curve = elbow(few.loss, few.accuracy, few.items)
    if curve and curve.bends and curve.elbow > few.loss.min():
        found.append(
            f"few-shot accuracy of the models fitted rises below {curve.elbow:.3f} nats already; the law wants models "
            "from before that"
        )
    return found


def held_out(rows: Rows, shots: float) -> dict[str, dict[str, float | None]]:
    """Mean log-likelihood of rows left out, by form: of the smallest amount, and of the strongest model."""
    finetuned = rows.finetuned
    out = {
        "smallest_amount": rows.amount == finetuned.amount.min(),
        "strongest_model": rows.loss == finetuned.loss.min(),
    }
    return {form: {name: _left_out(rows, left, shots, form) for name, left in out.items()} for form in FORMS}


def _left_out(rows: Rows, left: np.ndarray, shots: float, form: str) -> float | None:
    rest, left_rows = rows.where(~left), rows.where(left)
    if too_little(rest) or shots >= rest.amount.max():
        return None
    law = fit(rest, shots, form).law
    error = left_rows.accuracy - law.accuracy(left_rows.loss, left_rows.amount)
    return float(np.mean(stats.norm.logpdf(error, scale=max(law.noise, 1e-4))))


# ---- How it turned out -----------------------------------------------------------------------------------------------


def verdict(found: dict, weak: Rows, strong: Rows) -> dict:
    """A forecast against the few-shot accuracies of stronger models.

    Args:
      found: what `forecast` returned.
      weak: the rows that it was made from.
      strong: few-shot rows of the models that it is about.

    Raises:
      UserError: no few-shot row, or too few losses for an elbow.
    """
    few, news = weak.fewshot, strong.fewshot
    if not len(news.loss):
        raise UserError("the truth has no few-shot rows (amount 0)")
    every = [np.concatenate(pair) for pair in zip(few, news, strict=True)]
    every = Rows(*every)
    curve = elbow(every.loss, every.accuracy, every.items)
    truth = curve.elbow if curve else None
    methods = {"emergence_law": (found["elbow"], (found["curve"] or {}).get("accuracy"))}
    methods |= {name: (one["elbow"], one["curve"]) for name, one in found["baselines"].items()}
    scores = {name: _score(found, value, line, every, news, truth) for name, (value, line) in methods.items()}
    if found["flops_to_loss"] and found["baselines"]["accuracy_sigmoid"]["curve"] and np.isfinite(news.flops).all():
        a, b = found["flops_to_loss"]
        line = found["baselines"]["accuracy_sigmoid"]["curve"]
        guess = np.interp(np.exp(a + b * np.log(news.flops)), found["grid"], line)
        scores["two_step"] = {"elbow": None, "error": None, "accuracy_error": _root(guess - news.accuracy)}
    low, high = found["interval"] or (None, None)
    return {
        "elbow": truth,
        "bends": bool(curve and curve.bends),
        "aic": curve.aic if curve else None,
        "range_of_losses": float(np.ptp(every.loss)),
        "covered": None if truth is None or low is None else bool(low <= truth <= high),
        "flops_ahead": _flops_ahead(found, news, truth),
        "scores": scores,
    }


def _score(found: dict, value: float | None, line: list | None, every: Rows, news: Rows, truth: float | None) -> dict:
    """Error of the elbow in nats and as a share of the losses' range, and of the accuracies where there is a curve."""
    accuracy_error = None
    if line is not None:
        accuracy_error = _root(np.interp(news.loss, found["grid"], line) - news.accuracy)
        if value is None and not (found["refused"] and line is (found["curve"] or {}).get("accuracy")):
            one = elbow(every.loss, np.interp(every.loss, found["grid"], line))
            value = one.elbow if one else None
    error = None if value is None or truth is None else value - truth
    share = None if error is None else error / float(np.ptp(every.loss))
    return {"elbow": value, "error": error, "error_share": share, "accuracy_error": accuracy_error}


def _root(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


def _flops_ahead(found: dict, news: Rows, truth: float | None) -> float | None:
    """FLOPs of the cheapest model past the true elbow over those of the strongest one fitted."""
    past = [] if truth is None else news.flops[(news.loss < truth) & np.isfinite(news.flops)]
    fitted = found["flops_of_the_strongest"]
    return float(min(past) / fitted) if len(past) and fitted else None
