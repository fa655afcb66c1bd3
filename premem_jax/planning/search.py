"""Search for the nearest configuration that fits, along a path of ever smaller ones."""

from collections.abc import Callable

from premem_jax.evaluators import find
from premem_jax.models.decoder import REMAT
from premem_jax.planning.lowered import OWN, evaluators_of

REMATS = tuple(REMAT)


def smaller(config, name: str, parts: int) -> list[dict]:
    """Changes of settings for the program `name`, cheapest first; each entry includes the previous ones.

    First more rematerialization, then smaller chunks of the vocabulary, then smaller batches as long as they divide
    over the `parts` of the mesh.
    """
    path, changed = [], {}

    def step(**change):
        changed.update(change)
        path.append(dict(changed))

    evaluator = evaluators_of(config).get(name)
    if evaluator is None or evaluator.layout == "train":
        for remat in REMATS[REMATS.index(config.model.remat) + 1 :] if name == "train" else ():
            step(**{"model.remat": remat})
        if config.model.vocab_chunks < 8:
            step(**{"model.vocab_chunks": 8})
    if name in OWN:
        return path
    if name == "train":
        micro_batches = config.train.micro_batches
        while config.train.batch % (2 * micro_batches * parts) == 0:
            micro_batches *= 2
            step(**{"train.micro_batches": micro_batches})
        return path
    batches = {f"evals.{key}.batch": e.batch for key, e in config.evals.items() if find(e.type) is evaluator}
    while all(batch % (2 * parts) == 0 for batch in batches.values()):
        batches = {key: batch // 2 for key, batch in batches.items()}
        step(**batches)
    return path


def first_that_fits(path: list[dict], try_out: Callable[[dict], dict]) -> tuple[dict, dict] | None:
    """The first entry whose result `fits`, and that result; None if not even the last does.

    Bisection, since later entries need less memory: about log2 of the path's length calls of `try_out`.
    """
    if not path or not (best := try_out(path[-1]))["fits"]:
        return None
    low, high = 0, len(path) - 1
    while low < high:
        middle = (low + high) // 2
        result = try_out(path[middle])
        if result["fits"]:
            high, best = middle, result
        else:
            low = middle + 1
    return path[high], best
