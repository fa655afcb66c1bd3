"""How far the forecast elbow is known: the posterior of the law, and a bootstrap over whole subsets.

The posterior takes the noise of rows as independent. The finetunes on one subset share its draw, though, and a shift of
the elbow from subset to subset makes such an interval far too narrow (docs/emergence.md). The bootstrap draws whole
(amount, subset) groups.

Priors, stated in full: flat over the box of `prior`, with the elbow at the largest amount not below the one at `shots`.
"""

from typing import NamedTuple

import emcee
import numpy as np

from premem_jax.analysis.emergence_law import Fit, Law, Problem, fit
from premem_jax.analysis.emergence_table import Rows

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
WALKERS, STEPS, BURN_IN = 40, 2500, 500
NAMES = ("elbow", "elbow_largest", "alpha", "slope", "floor", "log_noise", "fewshot_difference")
R_HAT = 1.1  # chains that differ more than this have not met
LEAST_AMOUNTS = 3  # of a bootstrap draw that is fitted


class Posterior(NamedTuple):
    """Draws (S, P) of the parameters `NAMES` (without few-shot rows, without the last), and diagnostics."""

    draws: np.ndarray
    r_hat: float  # of the elbow, between walkers and halves of them
    effective: float  # independent draws that the elbow's are worth
    acceptance: float

    @property
    def elbow(self) -> np.ndarray:
        return self.draws[:, 0]

    @property
    def converged(self) -> bool:
        return bool(self.r_hat < R_HAT and self.effective > 100)


class Box(NamedTuple):
    """A prior that is flat between `low` and `high` of each parameter in `NAMES`."""

    low: np.ndarray
    high: np.ndarray


def prior(problem: Problem) -> Box:
    """The wide box: elbows as in a fit, a slope of up to the whole score within a twentieth of the range of losses."""
    low, high = problem.bounds()
    steepest = 20 * 2 / problem.range
    low, high = [*low, 0.0, -1.0, np.log(1e-5)], [*high, steepest, 1.0, 0.0]
    if problem.floors == 2:
        low, high = [*low, -1.0], [*high, 1.0]
    return Box(np.array(low), np.array(high))


def log_density(problem: Problem, box: Box, theta_WP: np.ndarray) -> np.ndarray:
    """(W,) log posterior density of each row of parameters, up to a constant."""
    inside = np.all((theta_WP >= box.low) & (theta_WP <= box.high), axis=1) & (theta_WP[:, 1] >= theta_WP[:, 0])
    theta = np.where(inside[:, None], theta_WP, box.low)  # any place where the law has a value
    slope, floor, log_noise = theta[:, 3, None], theta[:, 4, None], theta[:, 5]
    mean_WN = slope * problem.ramp(theta[:, :3]) + floor
    if problem.floors == 2:
        mean_WN = mean_WN + theta[:, 6, None] * problem.fewshot
    squares = np.sum(problem.weight * (problem.y - mean_WN) ** 2, axis=1)
    value = -0.5 * squares * np.exp(-2 * log_noise) - len(problem.y) * log_noise
    return np.where(inside, value, -np.inf)


def posterior(rows: Rows, best: Law, seed: int, *, box: Box | None = None, steps: int = STEPS) -> Posterior:
    """Draws by emcee's stretch moves (Goodman and Weare's affine-invariant ensemble).

    Args:
      best: the law of maximum likelihood, about which the walkers start.
      box: another prior than `prior`.
      steps: of each walker; of them a fifth is thrown away.
    """
    problem = Problem(rows, best.shots, best.form)
    box = box or prior(problem)
    at = [best.elbow, best.elbow_largest, best.alpha, best.slope, best.floor, np.log(max(best.noise, 1e-4))]
    at = np.array([*at, best.fewshot_floor - best.floor][: len(box.low)])
    random = np.random.RandomState(seed)
    begin = _begin(problem, box, at, random)
    density = lambda theta: log_density(problem, box, theta)
    sampler = emcee.EnsembleSampler(WALKERS, len(at), density, vectorize=True, moves=emcee.moves.StretchMove())
    sampler.log_prob_fn = density  # without the wrapper, which prints a traceback of all that ends it, also of a stop
    sampler.random_state = random.get_state()
    sampler.run_mcmc(begin, steps, skip_initial_state_check=True)
    chain_SWP = sampler.get_chain(discard=steps // 5)
    elbow_SW = chain_SWP[:, :, 0]
    tau = emcee.autocorr.integrated_time(chain_SWP[:, :, :1], tol=0)[0]
    tau = tau if np.isfinite(tau) and tau > 0 else float(elbow_SW.size)
    return Posterior(
        draws=chain_SWP[:: max(1, int(tau / 4))].reshape(-1, len(at)),
        r_hat=split_r_hat(elbow_SW),
        effective=float(elbow_SW.size / tau),
        acceptance=float(np.mean(sampler.acceptance_fraction)),
    )


def _begin(problem: Problem, box: Box, at: np.ndarray, random) -> np.ndarray:
    """(W, P) walkers about the best law and inside the box."""
    scale = np.array([0.03, 0.03, 0.1 * at[2] / problem.range, 0.05 * at[3] / problem.range, 0.01, 0.1, 0.01])
    scale = scale[: len(at)] * np.where(np.arange(len(at)) < 4, problem.range, 1)
    margin = 1e-6 * (box.high - box.low)
    walkers = np.clip(at + scale * random.normal(size=(WALKERS, len(at))), box.low + margin, box.high - margin)
    gap = walkers[:, 0] - walkers[:, 1]
    walkers[:, 0] -= np.where(gap > 0, gap + 1e-3 * problem.range * random.uniform(size=WALKERS), 0)
    return np.clip(walkers, box.low + margin, box.high - margin)


def split_r_hat(chain_SW: np.ndarray) -> float:
    """Gelman and Rubin's R-hat of chains (steps, walkers), each split into halves."""
    half = len(chain_SW) // 2
    halves = np.concatenate([chain_SW[:half], chain_SW[half : 2 * half]], axis=1)
    within = halves.var(axis=0, ddof=1).mean()
    between = halves.mean(axis=0).var(ddof=1)
    return float(np.sqrt((half - 1) / half + between / within)) if within > 0 else np.inf


# ---- Bootstrap -------------------------------------------------------------------------------------------------------


def bootstrap(rows: Rows, best: Fit, draws: int, seed: int, told=lambda: None) -> list[Law]:
    """Laws fitted to draws of whole (amount, subset) groups, as many as there are, with replacement.

    Few-shot rows are one group that is in every draw. A draw with fewer than three amounts is drawn again.
    """
    law = best.law
    finetuned = np.flatnonzero(rows.amount > 0)
    groups: dict[tuple, list[int]] = {}
    for i in finetuned:
        groups.setdefault((rows.amount[i], rows.subset[i]), []).append(int(i))
    members, fewshot = list(groups.values()), np.flatnonzero(rows.amount == 0)
    if len({amount for amount, _ in groups}) < LEAST_AMOUNTS:
        return []
    generator = np.random.default_rng(seed)
    laws: list[Law] = []
    while len(laws) < draws:
        chosen = [members[i] for i in generator.integers(len(members), size=len(members))]
        drawn = rows.where(np.concatenate([*chosen, fewshot]).astype(int))
        if len(np.unique(drawn.amount[drawn.amount > 0])) < LEAST_AMOUNTS or drawn.amount.max() <= law.shots:
            continue
        laws.append(fit(drawn, law.shots, law.form, starts=3).law)
        told()
    return laws


def percentiles(values: np.ndarray) -> dict[str, float]:
    """The percentiles that the paper prints."""
    return {f"{p}%": float(x) for p, x in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}
