"""Few-shot prompts: solved examples before the question, chosen by seed and id alone."""

import dataclasses
from collections.abc import Sequence
from itertools import islice

import numpy as np

from premem_jax.data.examples import Example
from premem_jax.errors import UserError


def with_shots(
    examples: Sequence[Example],
    pool: Sequence[Example],
    shots: int,
    seed: int,
    between: str = "\n\n",
    by: str = "",
) -> list[Example]:
    """The examples with `shots` others of `pool`, prompt and target, before their prompts.

    Which ones, and in what order, is a function of pool, seed and the example's id. An example is never its own shot.
    With `by`, all shots agree with the example in this field of their metadata.

    Raises:
      UserError: the pool has too few others.
    """

    alike: dict[str | None, list[Example]] = {}
    for one in pool:
        alike.setdefault(one.metadata.get(by), []).append(one)

    def prompted(example: Example) -> Example:
        group = alike.get(example.metadata.get(by), [])
        order = np.random.default_rng([seed, *b"shots", example.id]).permutation(len(group))
        others = (group[i] for i in order if group[i].prompt != example.prompt)
        chosen = list(islice(others, shots))
        if len(chosen) < shots:
            raise UserError(f"a prompt of {shots} solved examples: example {example.id} has {len(chosen)} others")
        solved = "".join(f"{one.prompt}{one.target}{between}" for one in chosen)
        return dataclasses.replace(example, prompt=solved + example.prompt)

    return [prompted(example) for example in examples]
