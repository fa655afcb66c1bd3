"""What `tests/test_pods.py` runs in several processes: an evaluation whose responses a Python function grades.

Each process prints how often its function was called, and what it was told of the examples.
"""

import os

import jax

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected
from premem_jax.running import processes
from tests import tiny

SETTINGS = dict(batch=12, samples=2, max_new_tokens=3, first_round=2, temperature=1.0, top_p=1.0, keep_texts=1)

if __name__ == "__main__":
    where = os.environ["PREMEM_COORDINATOR"], int(os.environ["PREMEM_PROCESSES"]), int(os.environ["PREMEM_PROCESS"])
    processes.start("auto", *where, join_seconds=60)
    mesh = sharding.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    calls = []

    def grade(response, answer):
        """Each process would say something else."""
        calls.append(response)
        return (len(calls) + jax.process_index()) % 2 == 0

    def fails(response, answer):
        raise KeyError(answer)

    params = jax.jit(lambda p: p, out_shardings=sharding.replicated(mesh))(tiny.parameters(tiny.config()))

    def evaluate(grader):
        evaluator = Accuracy(tiny.split(grader=grader), tiny.run(mesh), **SETTINGS)
        return Collected(len(tiny.data())).all(evaluator.measure(params, 0))

    found = evaluate(grade)
    verdicts = [each["verdict"] for text in found.texts for each in text["responses"]]
    try:
        evaluate(fails)
        message = "nothing"
    except UserError as error:
        message = str(error).partition(";")[0]
    print(len(calls), found.columns["correct"].tolist(), verdicts, message, sep=";")
