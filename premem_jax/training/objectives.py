"""Losses on whole responses: every one of them pushes the logits of response r along c_r (π − y).

A loss that sees a response only through its log-likelihood l_r = Σ_t log π(y_t) has the logit gradient
∂L/∂z_t = c_r (π_t − y_t) at each token of it, with c_r = −∂L/∂l_r: c > 0 pulls the response up, c < 0 pushes it down.
So there is one implementation, `Responses`, and an objective says how large c is (Ren & Sutherland, arXiv 2407.10490,
sections 2 and 3; where the paper's signs and the derivatives differ, these are the derivatives).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from premem_jax.models.decoder import Model
from premem_jax.models.nll import by_segment, token_nll
from premem_jax.training.losses import LossSum

CHOSEN, REJECTED = 0, 1  # places of a pair's responses


class Pull(NamedTuple):
    """Value of an objective on B prompts, and the coefficient of (π − y) for each of their R responses."""

    loss_B: jax.Array
    coefficient_BR: jax.Array


class Objective(Protocol):
    """A function of log-likelihoods (nats, summed over a response) and of one further array of the batch.

    `given` names that array (B, R); empty if there is none. `scale` converts a log-ratio to the reference into the
    reward in the metrics; 0 if there is no reward.
    """

    given: str
    scale: float

    def __call__(self, policy_BR: jax.Array, given_BR: jax.Array | None) -> Pull: ...


def _pair(loss_B, chosen_B, rejected_B) -> Pull:
    return Pull(loss_B, jnp.stack([chosen_B, rejected_B], axis=1))


def _log_ratios(policy_BR, given_BR):
    ratio_BR = policy_BR - given_BR
    return ratio_BR[:, CHOSEN], ratio_BR[:, REJECTED]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Supervised finetuning on all responses of the batch: −Σ_r l_r, a sum over tokens as in the paper."""

    given: ClassVar[str] = ""
    scale: ClassVar[float] = 0.0

    def __call__(self, policy_BR, given_BR) -> Pull:
        return Pull(-jnp.sum(policy_BR, axis=1), jnp.ones_like(policy_BR))


@dataclasses.dataclass(frozen=True)
class Ascent:
    """Gradient ascent on the rejected response only, l⁻: the step of the squeezing effect. Unbounded below."""

    given: ClassVar[str] = ""
    scale: ClassVar[float] = 0.0

    def __call__(self, policy_BR, given_BR) -> Pull:
        rejected_B = policy_BR[:, REJECTED]
        return _pair(rejected_B, jnp.zeros_like(rejected_B), -jnp.ones_like(rejected_B))


@dataclasses.dataclass(frozen=True)
class DPO:
    """−log σ(βh), h = r⁺ − r⁻, r = l − l_ref (Rafailov et al., arXiv 2305.18290).

    `label_smoothing` ε is the assumed share of swapped pairs (conservative DPO). With `reference_free`, h = l⁺ − l⁻.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    reference_free: bool = False

    @property
    def given(self) -> str:
        return "" if self.reference_free else "reference"

    @property
    def scale(self) -> float:
        return self.beta

    def __call__(self, policy_BR, given_BR) -> Pull:
        chosen_B, rejected_B = _log_ratios(policy_BR, 0 if self.reference_free else given_BR)
        x_B, wrong = self.beta * (chosen_B - rejected_B), self.label_smoothing
        loss_B = -(1 - wrong) * jax.nn.log_sigmoid(x_B) - wrong * jax.nn.log_sigmoid(-x_B)
        c_B = self.beta * (jax.nn.sigmoid(-x_B) - wrong)
        return _pair(loss_B, c_B, -c_B)


@dataclasses.dataclass(frozen=True)
class IPO:
    """(h − 1/(2β))² (Azar et al., arXiv 2310.12036), of summed log-likelihoods; reverses where h > 1/(2β)."""

    given: ClassVar[str] = "reference"
    beta: float = 0.1

    @property
    def scale(self) -> float:
        return self.beta

    def __call__(self, policy_BR, given_BR) -> Pull:
        chosen_B, rejected_B = _log_ratios(policy_BR, given_BR)
        rest_B = 1 / (2 * self.beta) - (chosen_B - rejected_B)
        return _pair(rest_B**2, 2 * rest_B, -2 * rest_B)


@dataclasses.dataclass(frozen=True)
class SLiC:
    """max(0, δ − (l⁺ − l⁻)) − λ l⁺ (Zhao et al., arXiv 2305.10425), with the chosen answer as the one to stay near."""

    given: ClassVar[str] = ""
    scale: ClassVar[float] = 0.0
    delta: float = 1.0
    weight: float = 0.1

    def __call__(self, policy_BR, given_BR) -> Pull:
        chosen_B, rejected_B = policy_BR[:, CHOSEN], policy_BR[:, REJECTED]
        rest_B = self.delta - (chosen_B - rejected_B)
        open_B = (rest_B > 0).astype(rest_B.dtype)
        return _pair(jnp.maximum(rest_B, 0) - self.weight * chosen_B, open_B + self.weight, -open_B)


@dataclasses.dataclass(frozen=True)
class SPPO:
    """(r⁺ − η/2)² + (r⁻ + η/2)² (Wu et al., arXiv 2405.00675): a negative push that ends at r⁻ = −η/2."""

    given: ClassVar[str] = "reference"
    scale: ClassVar[float] = 1.0
    eta: float = 1.0

    def __call__(self, policy_BR, given_BR) -> Pull:
        chosen_B, rejected_B = _log_ratios(policy_BR, given_BR)
        up_B, down_B = self.eta / 2 - chosen_B, rejected_B + self.eta / 2
        return _pair(up_B**2 + down_B**2, 2 * up_B, -2 * down_B)


@dataclasses.dataclass(frozen=True)
class Advantage:
    """−mean_r A_r l_r: the policy gradient with the group-relative advantages of GRPO (arXiv 2402.03300).

    The batch gives the `reward` of each of R responses that the same weights have drawn, so that GRPO's ratio is 1 and
    its clipping rests; A = (reward − mean) / (standard deviation + 1e-4) over the group, and without the quotient where
    `normalised` is false (Dr. GRPO, arXiv 2503.20783). Weights of 1/length in the batch give the mean over tokens.
    """

    given: ClassVar[str] = "reward"
    scale: ClassVar[float] = 0.0
    normalised: bool = True

    def __call__(self, policy_BR, given_BR) -> Pull:
        centred_BR = given_BR - jnp.mean(given_BR, axis=1, keepdims=True)
        if self.normalised:
            centred_BR /= jnp.std(given_BR, axis=1, ddof=1, keepdims=True) + 1e-4
        c_BR = centred_BR / policy_BR.shape[1]
        return Pull(-jnp.sum(c_BR * policy_BR, axis=1), c_BR)


@dataclasses.dataclass(frozen=True)
class Responses:
    """The mean over prompts of an objective on their responses.

    A batch has `tokens` and `segments` (X, T) int32 and `weights` (X, T) fp32, which are 1 on the tokens of a response,
    `responses` (B, R) int32, the segment of each, and the array (B, R) that the objective names. A prompt whose
    responses have no weight does not count.

    With a `gate` above 0, a response whose tokens have a lower probability, by their geometric mean, is not pushed
    down: what is rare already has little to lose and much to squeeze (after Gate-DPO, arXiv 2605.02626).
    """

    objective: Objective
    gate: float = 0.0
    only: int | None = None  # the response whose part of the gradient is taken; all of them by default
    unit: ClassVar[str] = "prompts"

    @property
    def keys(self) -> tuple[str, ...]:
        return ("tokens", "weights", "segments", "responses", *filter(None, [self.objective.given]))

    def __call__(self, model: Model, params, batch: Mapping[str, jax.Array]) -> LossSum:
        of_response = lambda x_XT: by_segment(x_XT * batch["weights"], batch["segments"], batch["responses"])
        policy_BR = -of_response(token_nll(model, params, batch["tokens"], shared(batch)))
        given_BR, length_BR = batch.get(self.objective.given), of_response(jnp.ones_like(batch["weights"]))
        there_B = jnp.any(length_BR > 0, axis=1).astype(policy_BR.dtype)
        value_B, metrics = self._signed(policy_BR, given_BR, length_BR)
        mean = lambda x_B: jnp.sum(jnp.where(there_B > 0, x_B, 0))
        return LossSum(mean(value_B), jnp.sum(there_B), {name: mean(x_B) for name, x_B in metrics.items()})

    def pull(self, policy_BR, given_BR, length_BR) -> tuple[Pull, jax.Array]:
        """The objective's pull after the gate, given lengths in tokens; and which responses it spares (B, R)."""
        loss_B, c_BR = self.objective(policy_BR, given_BR)
        if not self.gate:
            return Pull(loss_B, c_BR), jnp.zeros_like(c_BR, bool)
        rare_BR = (c_BR < 0) & (policy_BR < length_BR * math.log(self.gate))
        return Pull(loss_B, jnp.where(rare_BR, 0, c_BR)), rare_BR

    def _signed(self, policy_BR, given_BR, length_BR):
        """The objective's value (B,), whose gradient is Σ_r c_r (π − y), and metrics of each prompt."""
        held_BR = jax.lax.stop_gradient(policy_BR)
        (loss_B, c_BR), rare_BR = self.pull(held_BR, given_BR, length_BR)
        metrics = {"gated": jnp.any(rare_BR, axis=1).astype(loss_B.dtype)} if self.gate else {}
        taken_R = 1.0 if self.only is None else jax.nn.one_hot(self.only, c_BR.shape[1])
        value_B = loss_B - jnp.sum(taken_R * c_BR * (policy_BR - held_BR), axis=1)
        if policy_BR.shape[1] <= 2:  # not a group of samples
            metrics |= dict(zip(("chosen", "rejected"), held_BR.T, strict=False))
        if self.objective.scale:
            reward_BR = self.objective.scale * (held_BR if given_BR is None else held_BR - given_BR)
            margin_B = reward_BR[:, CHOSEN] - reward_BR[:, REJECTED]
            metrics |= dict(reward_chosen=reward_BR[:, CHOSEN], reward_rejected=reward_BR[:, REJECTED], margin=margin_B)
            metrics["reward_accuracy"] = (margin_B > 0).astype(margin_B.dtype)
        return value_B, metrics


def shared(batch: Mapping[str, jax.Array]) -> jax.Array | None:
    """The segments of a batch of responses if some share a row; otherwise attention does without."""
    return batch["segments"] if len(batch["tokens"]) < batch["responses"].size else None


OBJECTIVES = {"dpo": DPO, "ipo": IPO, "slic": SLiC, "sppo": SPPO, "ascent": Ascent}


def objective(name: str, settings: Mapping[str, float | bool]) -> Objective:
    """The objective of a config on pairs, with those of `settings` that it has."""
    kind = OBJECTIVES[name]
    own = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in settings.items() if key in own})
