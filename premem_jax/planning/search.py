"""Where a program does not fit: the nearest configuration that does, on a path of ever smaller ones."""

from collections.abc import Callable

from premem_jax.models.decoder import REMAT

REMATS = tuple(REMAT)


def smaller(config, name: str, rows: int) -> list[dict]:
    """Settings to change for the program `name`, from the cheapest change on; each entry includes those before it.

    Less is kept for the backward pass, then less of the vocabulary is looked at at a time, then batches shrink while
    they divide over the `rows` parts of the mesh.
    """
    path, changed = [], {}

    def step(**change):
        changed.update(change)
        path.append(dict(changed))

    if name != "sample":
        for remat in REMATS[REMATS.index(config.model.remat) + 1 :] if name == "train" else ():
            step(**{"model.remat": remat})
        if config.model.vocab_chunks < 8:
            step(**{"model.vocab_chunks": 8})
    if name == "train":
        parts = config.train.micro_batches
        while config.train.batch % (2 * parts * rows) == 0:
            parts *= 2
            step(**{"train.micro_batches": parts})
        return path
    kind = {"score": "likelihood", "sample": "accuracy"}[name]
    batches = {f"evals.{key}.batch": e.batch for key, e in config.evals.items() if e.type == kind}
    while all(batch % (2 * rows) == 0 for batch in batches.values()):
        batches = {key: batch // 2 for key, batch in batches.items()}
        step(**batches)
    return path


def first_that_fits(path: list[dict], try_out: Callable[[dict], dict]) -> tuple[dict, dict] | None:
    """The earliest entry whose result `fits`, and that result; None where not even the last does.

    `try_out` is called about log2 of the path's length times, on the ground that later entries need less memory.
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
