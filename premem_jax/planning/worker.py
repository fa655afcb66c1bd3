"""Compiles one program of a config for a topology in a separate process.

python -m premem_jax.planning.worker REQUEST.json RESULT.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from premem_jax.errors import UserError
from premem_jax.running.topology import ENVIRONMENT, devices, topology


def compile_apart(config, name: str) -> dict:
    """Runs `answer` for the program `name` of `config` in a separate process.

    Raises:
      UserError: a mistake in the topology or the config.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, result, log = (Path(folder) / file for file in ("request.json", "result.json", "log"))
        request.write_text(json.dumps({"config": config.to_dict(), "name": name}))
        command = [sys.executable, "-m", "premem_jax.planning.worker", str(request), str(result)]
        with log.open("w") as stream:
            code = subprocess.run(
                command, env=os.environ | ENVIRONMENT | {"XLA_FLAGS": ""}, stdout=stream, stderr=stream
            ).returncode
        if not result.exists():
            raise RuntimeError(f"the compiler's process ended with {code}:\n{log.read_text()[-2000:]}")
        answer = json.loads(result.read_text())
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    return answer


def answer(config, name: str) -> dict:
    """Bytes per chip of the program's arguments, its peak and the arrays beside it, and seconds to compile.

    `compiles` is false if the compiler runs out of memory; `message` is then its first line, and the bytes are None.
    `parts` is the number of batch shards.
    """
    from premem_jax import sharding, together
    from premem_jax.planning import lowered

    place = topology(config.plan.topology, config.plan.slices)
    mesh = sharding.make_mesh(config.mesh, devices(place))
    decode_mesh = sharding.decode_mesh(mesh, config.mesh.decode_tensor)
    together.on_mesh(config, sharding.parts(mesh), sharding.parts(decode_mesh))
    found = {"cost": lowered.cost(config, place, mesh, name)._asdict(), "parts": lowered.parts(config, mesh, name)}
    found["batch_costs"] = {key: cost._asdict() for key, cost in lowered.batch_costs(config, mesh, name).items()}
    found |= dict.fromkeys(("argument_bytes_per_chip", "peak_hbm_bytes_per_chip", "resident_bytes_per_chip"))
    if name == "train":
        found["rows"] = lowered.rows(config, mesh)
    lowered, beside = lowered.lower(config, mesh, name)
    begun = time.perf_counter()
    try:
        memory = lowered.compile().memory_analysis()
    except Exception as error:  # JaxRuntimeError; other kinds of exhaustion (of on-chip memory) are no verdict
        message = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in message or "vmem" in str(error).lower().split("hbm")[0]:
            raise
        return found | {"compiles": False, "message": message[:300], "compile_seconds": time.perf_counter() - begun}
    return found | {
        "compiles": True,
        "compile_seconds": time.perf_counter() - begun,
        "argument_bytes_per_chip": memory.argument_size_in_bytes,
        "peak_hbm_bytes_per_chip": memory.peak_memory_in_bytes,
        "resident_bytes_per_chip": beside,
    }


def main() -> None:
    from ml_collections import ConfigDict

    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        result = answer(ConfigDict(request["config"]), request["name"])
    except UserError as error:
        result = {"mistake": str(error)}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
