"""Probe: how likely is a response of some type to each prompt, whether it is trained on or not?"""

import dataclasses
from typing import ClassVar

from premem_jax.data import response_types
from premem_jax.evaluators.base import Split
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.limits import NATURAL, ROWS, text


class Probe(Likelihood):
    """Mean NLL and token count of a response of the given type: log π(y|x) is minus their product.

    The responses are a split of their own in the trace, such as `train rejected`. Response types of Ren & Sutherland
    (arXiv 2407.10490, section 4): chosen, rejected, other, permuted, random, or a field of the data's rows.
    """

    planned = ""
    OPTIONS: ClassVar = {
        "batch": (ROWS, "responses that are scored at a time, over all devices"),
        "response": (text(100), "type of response: chosen, rejected, other, permuted, random, or a field of rows"),
        "prompts": (NATURAL, "examples that are looked at, the first of the split; 0: all"),
    }

    def __init__(self, split, run, *, batch: int = 64, response: str = "chosen", prompts: int = 0):
        """Raises UserError where prompts have no such response."""
        super().__init__(answered(split, run, response, prompts), run, batch=batch)


def answered(split: Split, run, response: str, prompts: int) -> Split:
    """The split of the first `prompts` examples, each with a response of a type as its target."""
    examples = split.data.examples[: prompts or None]
    texts = response_types.responses(examples, response, run.seed)
    examples = [dataclasses.replace(e, target=said) for e, said in zip(examples, texts, strict=True)]
    encoded = run.tokenizer.encode_pairs([(e.prompt, e.target) for e in examples])
    asked, targets = zip(*encoded, strict=True)
    data = dataclasses.replace(split.data, examples=examples, prompts=asked, targets=targets, rejected=())
    return dataclasses.replace(split, name=f"{split.name} {response}", data=data)
