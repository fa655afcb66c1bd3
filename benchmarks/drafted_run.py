"""CPU seconds of sampling the training examples of a finetune, plain and reference-drafted, in turns.

    python -m benchmarks.drafted_run RUN [--turns=3] [--temperatures=0.8,0.4]

Takes the last checkpoint of the finetune in the folder RUN, and its evaluator `train_accuracy`, at some temperatures:
the lower, the more responses follow their references. Both ways must find the same. Compilation is not counted.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected, Split
from premem_jax.experiments.finetune import ready, run_of, tokenized
from premem_jax.experiments.run_checkpoint import checkpoint_at
from premem_jax.running.programs import Clock

STEP = 10**6  # of the random key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--temperatures", default="0.8,0.4,0.2")
    options = parser.parse_args()
    config, clock = ConfigDict(json.loads((Path(options.folder) / "config.json").read_text())), Clock()
    made = ready(config, epath.Path(options.folder), clock, tokenized)
    run, split = run_of(config, clock, made), Split("train", made.splits["train"], made.grader)
    params = run.weights(checkpoint_at(options.folder).load(made.mesh), "decode")
    settings = config.evals.train_accuracy.to_dict()
    settings = {name: settings[name] for name in ("batch", "samples", "max_new_tokens", "first_round", "top_p")}
    for temperature in map(float, options.temperatures.split(",")):
        ways = [
            Accuracy(split, run, **settings, temperature=temperature, keep_texts=0, drafted=drafted)
            for drafted in (False, True)
        ]
        kept: list[int] = []
        ways[1]._follow = spied(ways[1]._follow, kept)
        found = [[turn(way, params) for way in ways] for _ in range(options.turns + 1)]
        plain, drafted = (statistics.median(seconds for seconds, _ in times) for times in zip(*found[1:], strict=True))
        same = all(np.array_equal(found[0][0][1][name], values) for name, values in found[0][1][1].items())
        accuracy = found[0][0][1]["correct"].sum() / found[0][0][1]["samples"].sum()
        said = f"temperature {temperature}, accuracy {accuracy:.1%}, {sum(kept) / len(found):,.0f} tokens decided"
        print(f"{said}: plain {plain:.2f}, drafted {drafted:.2f} CPU seconds, {plain / drafted:.2f}; same: {same}")


def turn(evaluator: Accuracy, params) -> tuple[float, dict]:
    """CPU seconds of an evaluation, and its columns."""
    begun = time.process_time()
    columns = Collected(len(evaluator.split.data)).all(evaluator.measure(params, STEP)).columns
    return time.process_time() - begun, columns


def spied(program, kept: list[int]):
    """The program, which also notes how many tokens it decides."""

    def call(*args):
        found = program(*args)
        kept.append(int(found[0].sum()))
        return found

    return call


if __name__ == "__main__":
    main()
