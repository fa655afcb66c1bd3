"""What `tests/test_pods.py` runs in several processes: each prints what it was told, and its places of a batch."""

import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.evaluators.unfinished import Unfinished
from premem_jax.running import processes

if __name__ == "__main__":
    processes.start(
        "auto",
        *(
            kind(os.environ[f"PREMEM_{name}"])
            for kind, name in ((str, "COORDINATOR"), (int, "PROCESSES"), (int, "PROCESS"))
        ),
        join_seconds=60,
    )
    mine = jax.process_index()

    def mistake():
        raise UserError("mend it")

    once = processes.once(lambda: [1, "two", mine])
    agreed, differed = processes.all_agree(True), processes.all_agree(mine != 1)
    try:
        processes.once(mistake)
        message = "nothing"
    except UserError as error:
        message = str(error)
    assert processes.once(lambda: [processes.once(lambda: mine), processes.all_agree(False)]) == [0, False]
    mesh = sharding.make_mesh(dict(data=1, fsdp=-1, tensor=1))
    places = sharding.places_here(mesh, 12)
    batch = sharding.put_batch(mesh, places.astype(np.float32), here=True)
    total = jax.jit(lambda x: jnp.sum(x**2), out_shardings=sharding.replicated(mesh))(batch)
    interrupted = Unfinished(Path(sys.argv[1]), 3, {"nll": 4})
    interrupted.of["nll"].done[:3] = True
    interrupted.keep(now=True)
    processes.all_agree(True)
    time.sleep(mine / 2)
    continued = Unfinished(Path(sys.argv[1]), 3, {"nll": 4})  # process 0 is there first
    continued.clear()
    print(continued.of["nll"].done.sum(), end=";")
    print(once, agreed, differed, message, " ".join(map(str, places)), float(total), sep=";")
