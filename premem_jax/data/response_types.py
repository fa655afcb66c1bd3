"""Types of responses to the same prompts, most of them not trained on, for probes.

Source: Ren & Sutherland (arXiv 2407.10490), section 4; these are the types that need no other model.
"""

from collections.abc import Callable, Sequence

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.errors import UserError


def chosen(examples: Sequence[Example], rng: np.random.Generator) -> list[str]:
    """y⁺, the response that is trained on."""
    return [e.target for e in examples]


def rejected(examples: Sequence[Example], rng: np.random.Generator) -> list[str]:
    """y⁻, the worse response of a pair."""
    return [e.rejected for e in examples]


def other(examples: Sequence[Example], rng: np.random.Generator) -> list[str]:
    """The chosen response to another prompt; each is used once if all differ."""
    order = rng.permutation(len(examples))
    found = [""] * len(examples)
    for place, i in enumerate(order):
        around = (examples[j].target for j in np.roll(order, -place - 1)[:-1])
        found[i] = next((text for text in around if text != examples[i].target), "")
    return found


def permuted(examples: Sequence[Example], rng: np.random.Generator) -> list[str]:
    """The words of y⁺ in random order."""
    return [_said(e.target, rng.permutation(e.target.split())) for e in examples]


def random(examples: Sequence[Example], rng: np.random.Generator) -> list[str]:
    """As many words as y⁺, drawn from the words of all chosen responses."""
    words = sorted({word for e in examples for word in e.target.split()})
    return [_said(e.target, rng.choice(words, len(e.target.split()))) for e in examples]


MADE: dict[str, Callable[[Sequence[Example], np.random.Generator], list[str]]] = {
    each.__name__: each for each in (chosen, rejected, other, permuted, random)
}


def responses(examples: Sequence[Example], kind: str, seed: int) -> list[str]:
    """A response of the type `kind` to each prompt: one of `MADE`, or a field of the data's rows.

    Raises:
      UserError: an unknown type, or an example without such a response; names the first.
    """
    found = (
        MADE[kind](examples, np.random.default_rng(seed))
        if kind in MADE
        else [e.metadata.get(kind, "") for e in examples]
    )
    missing = [e.id for e, text in zip(examples, found, strict=True) if not text.strip()]
    if len(missing) == len(examples):
        known = sorted({*MADE, *(key for e in examples for key in e.metadata)})
        raise UserError(f"no prompt has a response of type {kind!r} (there are: {', '.join(known)})")
    if missing:
        raise UserError(f"{len(missing)} prompts have no response of type {kind!r}, the first is example {missing[0]}")
    return found


def _said(like: str, words) -> str:
    return like[: len(like) - len(like.lstrip())] + " ".join(words)
