"""The emergence law (Snell et al., arXiv 2411.16035) and its maximum-likelihood fit.

A model of pretraining loss L (nats per token), finetuned on D examples, has the accuracy

    accuracy = slope * max(E(D) - L, 0) + floor

with one slope and one floor for all D, and an elbow that moves with the data:

    log power law   E(D) = k (ln D)^alpha + C
    power law       E(D) = k D^alpha + C

Few-shot ability is to appear at E(shots): the law where finetuning data is as scarce as examples in a prompt. Few-shot
rows are rows at D = shots with a floor of their own.

The fit is written in the elbow at `shots`, the elbow at the largest D and alpha, from which k and C follow: the first
is the forecast itself, and it depends less on the others than k and C do. Given these three, slope and floors are a
linear least-squares problem (variable projection), so a coarse grid and a few simplex searches find the optimum.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from premem_jax.analysis.emergence_table import Rows, make

FORMS = ("log_power_law", "power_law")
ALPHA = (0.05, 8.0)  # beyond, a form is a step or a constant over all D that people use
STARTS = 6  # points of the grid from which simplex searches start
SHAPES = (0.5, 1.0, 2.0, 4.0)  # alphas of the grid
TINY = 1e-12


@dataclass(frozen=True)
class Law:
    """A law with all its numbers. Elbows in nats per token, slope in accuracy per nat."""

    form: str
    shots: float
    largest: float  # the largest amount of data of the rows
    elbow: float  # at `shots`: where few-shot ability is to appear
    elbow_largest: float
    alpha: float
    slope: float = 0.0
    floor: float = 0.0
    fewshot_floor: float = 0.0
    noise: float = 0.0  # standard deviation of a row of average test size

    def elbow_at(self, amount):
        """E(D), for any shape of `amount`."""
        part = progress(self.form, np.asarray(amount, float), self.shots, self.largest, self.alpha)
        return self.elbow + (self.elbow_largest - self.elbow) * part

    def accuracy(self, loss, amount):
        """Accuracy at a loss after finetuning on `amount` examples; with amount 0, few-shot."""
        amount = np.asarray(amount, float)
        fewshot = amount == 0
        height = np.maximum(self.elbow_at(np.where(fewshot, self.shots, amount)) - loss, 0)
        return self.slope * height + np.where(fewshot, self.fewshot_floor, self.floor)

    def k_and_c(self) -> tuple[float, float]:
        """The law's k and C as the paper writes them. k alone says little: it depends on alpha and on the unit of D."""
        low, high = (_raised(self.form, x, self.alpha) for x in (self.shots, self.largest))
        k = (self.elbow_largest - self.elbow) / (high - low)
        return float(k), float(self.elbow - k * low)

    @classmethod
    def from_k_and_c(cls, form: str, k: float, alpha: float, c: float, shots: float, largest: float, **rest) -> "Law":
        """The law with the paper's parameters."""
        ends = (k * _raised(form, x, alpha) + c for x in (shots, largest))
        return cls(form, shots, largest, *map(float, ends), alpha, **rest)


@dataclass(frozen=True)
class Fit:
    """A law at its maximum likelihood, and the likelihood of the two simpler models that it must beat."""

    law: Law
    log_likelihood: float
    log_likelihood_flat: float  # no row above its floor
    log_likelihood_one_elbow: float  # finetuning does not move the elbow
    sse: float


def progress(form: str, amount, shots: float, largest: float, alpha):
    """How far E(D) is on its way from E(shots), 0, to E(largest), 1; `amount` and `alpha` broadcast."""
    low, high = (_raised(form, x, alpha) for x in (shots, largest))
    return (_raised(form, amount, alpha) - low) / (high - low)


def _raised(form: str, amount, alpha):
    return np.power(np.log(amount) if form == "log_power_law" else np.asarray(amount, float), alpha)


class Problem:
    """Rows as the arrays that a fit needs: losses, amounts (few-shot as `shots`), weights of mean 1."""

    def __init__(self, rows: Rows, shots: float, form: str):
        self.form, self.shots = form, float(shots)
        self.loss, self.y = rows.loss, rows.accuracy
        self.fewshot = rows.amount == 0
        self.amount = np.where(self.fewshot, self.shots, rows.amount)
        self.largest = float(rows.amount.max())
        self.weight = rows.items / rows.items.mean()  # binomial: the variance falls with the number of test items
        self.amounts, self.at = np.unique(self.amount, return_inverse=True)
        self.low, self.high = float(self.loss.min()), float(self.loss.max())
        self.range = max(self.high - self.low, TINY)
        floors = [np.ones(len(self.y)), self.fewshot][: 1 + self.fewshot.any()]  # few-shot: what it differs by
        self.floors = len(floors)
        self._root = np.sqrt(self.weight)
        self._basis, triangle = np.linalg.qr(np.stack(floors, axis=1) * self._root[:, None])
        self._inverse = np.linalg.inv(triangle)
        self._left_y = self._without_floors(self.y * self._root)

    def _without_floors(self, x: np.ndarray) -> np.ndarray:
        """(..., N) what no choice of floors explains of weighted rows."""
        return x - (x @ self._basis) @ self._basis.T

    def ramp(self, theta_P3: np.ndarray) -> np.ndarray:
        """(P, N) max(E(D) - L, 0) for each (elbow, elbow at the largest, alpha)."""
        elbow, largest, alpha = theta_P3.T[:, :, None]
        part = progress(self.form, self.amounts, self.shots, self.largest, alpha)
        return np.maximum((elbow + (largest - elbow) * part)[:, self.at] - self.loss, 0)

    def solve(self, theta_P3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted sum of squares (P,) and slope and floors (P, 2 or 3) that minimise it.

        Slopes are not negative: where the best one is, and where no row is above its elbow, the model is flat.
        """
        ramp_PN = self.ramp(theta_P3) * self._root
        left_PN = self._without_floors(ramp_PN)
        norm_P = np.einsum("pn,pn->p", left_PN, left_PN)
        slope_P = np.where(norm_P > TINY, np.maximum(left_PN @ self._left_y, 0) / np.maximum(norm_P, TINY), 0)
        sse_P = np.sum((self._left_y - slope_P[:, None] * left_PN) ** 2, axis=1)
        floors = ((self.y * self._root - slope_P[:, None] * ramp_PN) @ self._basis) @ self._inverse.T
        return sse_P, np.concatenate([slope_P[:, None], floors], axis=1)

    def allowed(self, theta_P3: np.ndarray) -> np.ndarray:
        """Whether elbows and alpha lie in the box of the fit and of the prior, see `bounds`."""
        low, high = self.bounds()
        return np.all((theta_P3 >= low) & (theta_P3 <= high), axis=1) & (theta_P3[:, 1] >= theta_P3[:, 0])

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of (elbow, elbow at the largest, alpha). An elbow further away than this is no forecast."""
        low = np.array([self.low - 2 * self.range, self.low - 2 * self.range, ALPHA[0]])
        return low, np.array([self.high, self.high + self.range, ALPHA[1]])

    def log_likelihood(self, sse: float) -> float:
        """Gaussian, at the best noise."""
        n = len(self.y)
        return -0.5 * n * (np.log(2 * np.pi * max(sse, TINY) / n) + 1) + 0.5 * np.sum(np.log(self.weight))


def fit(rows: Rows, shots: float, form: str = "log_power_law", starts: int = STARTS) -> Fit:
    """The law of maximum likelihood: Gaussian noise on accuracy, its variance inverse to a row's test items.

    Args:
      rows: of weak models, with one amount of data at least.
      shots: examples in the prompt of the few-shot evaluation, below the largest amount of data.
      form: one of `FORMS`.
    """
    problem = Problem(rows, shots, form)
    grid = _grid(problem)
    sse, _ = problem.solve(grid)
    begin = grid[_spread(grid, sse, starts, problem.range)]
    found = [_search(problem, theta) for theta in begin]
    theta = min(found, key=lambda theta: problem.solve(theta[None])[0][0])
    theta = _search(problem, theta)  # a simplex may have collapsed early; a fresh one goes on
    [sse], [linear] = problem.solve(theta[None])
    return Fit(
        law=_law(problem, theta, linear, sse),
        log_likelihood=problem.log_likelihood(sse),
        log_likelihood_flat=problem.log_likelihood(_flat(problem)),
        log_likelihood_one_elbow=problem.log_likelihood(_one_elbow(problem)),
        sse=float(sse),
    )


def _law(problem: Problem, theta: np.ndarray, linear: np.ndarray, sse: float) -> Law:
    floors = linear[1:]
    law = Law(problem.form, problem.shots, problem.largest, *map(float, theta), slope=float(linear[0]))
    noise = float(np.sqrt(sse / len(problem.y)))
    return replace(law, floor=float(floors[0]), fewshot_floor=float(floors.sum()), noise=noise)


def _grid(problem: Problem) -> np.ndarray:
    """(P, 3) starts: elbows over and beyond the losses of the rows."""
    low, high, span = problem.low, problem.high, problem.range
    elbows = np.linspace(low - span, high - 0.05 * span, 14)
    largest = np.linspace(low, high + 0.5 * span, 13)
    grid = np.stack(np.meshgrid(elbows, largest, SHAPES, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid[grid[:, 1] >= grid[:, 0]]


def _spread(grid: np.ndarray, sse: np.ndarray, count: int, span: float) -> list[int]:
    """The best points of the grid, none next to a better one: several valleys are looked into."""
    chosen: list[int] = []
    for i in np.argsort(sse, kind="stable"):
        apart = [max(abs(grid[i] - grid[j])[:2]) > 0.12 * span or grid[i, 2] != grid[j, 2] for j in chosen]
        if all(apart):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return chosen


def _search(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """A simplex search over (elbow, elbow at the largest, ln alpha)."""
    scale = float(np.sum(problem.weight * (problem.y - problem.y.mean()) ** 2)) + TINY

    def cost(x: np.ndarray) -> float:
        point = np.array([[x[0], x[1], np.exp(x[2])]])
        return problem.solve(point)[0][0] / scale if problem.allowed(point)[0] else np.inf

    step = np.diag([0.1 * problem.range, 0.1 * problem.range, 0.3])
    begin = np.array([theta[0], theta[1], np.log(theta[2])])
    step[0, 0] = -step[0, 0]  # away from E(largest) >= E(shots)
    step[2, 2] *= -1 if begin[2] > 0 else 1
    simplex = np.concatenate([begin[None], begin + step])
    options = dict(initial_simplex=simplex, xatol=1e-6, fatol=1e-13, maxiter=600)
    with np.errstate(invalid="ignore"):  # of infinite costs
        end = minimize(cost, begin, method="Nelder-Mead", options=options).x
    return np.array([end[0], end[1], np.exp(end[2])])


def _flat(problem: Problem) -> float:
    """Sum of squares without any slope."""
    theta = np.array([[problem.low - 1, problem.low - 1, 1.0]])
    return float(problem.solve(theta)[0][0])


def _one_elbow(problem: Problem) -> float:
    """Sum of squares of the best elbow that all amounts share."""
    elbows = np.linspace(problem.low, problem.high + problem.range, 400)
    theta = np.stack([elbows, elbows, np.ones_like(elbows)], axis=1)
    return float(problem.solve(theta)[0].min())


# ---- Rows of a known law ---------------------------------------------------------------------------------------------


def planted(
    law: Law, loss, amounts, *, subsets: int = 2, noise: float = 0.0, shift: float = 0.0, seed: int = 0
) -> Rows:
    """Rows as models of these losses would have them if `law` were true: what a fit is tried on.

    Args:
      subsets: draws of the data for each amount.
      noise: standard deviation of each accuracy.
      shift: standard deviation, in nats, by which the elbow of all rows of one subset is off together.
    """
    loss, random = np.asarray(loss, float), np.random.default_rng(seed)
    columns: dict[str, list] = {"loss": [], "amount": [], "accuracy": [], "subset": []}
    for amount, count in [*((amount, subsets) for amount in amounts), (0, 1)]:
        for subset in range(count):
            off = random.normal(0, shift) if amount else 0.0
            columns["loss"].extend(loss)
            columns["amount"].extend([amount] * len(loss))
            columns["accuracy"].extend(law.accuracy(loss - off, amount) + random.normal(0, noise, len(loss)))
            columns["subset"].extend([str(subset)] * len(loss))
    return make(**columns)
