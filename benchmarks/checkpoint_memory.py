"""Host memory of reading and writing a checkpoint of more than 2 GB.

  python -m benchmarks.checkpoint_memory [--folder=DIR] [--layers=16]

Needs 10 GB of disk and of host memory for the default of 16 layers. Each line is one new process with one CPU device,
so the model is in host memory too. `beyond` is the peak resident memory (VmHWM, which counts mapped pages of files)
minus the memory before and minus the model. The bound is the largest tensor, in the dtype it is read to, plus 128 MB
for pieces of the file, compiled programs and, mostly, allocator overhead.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = dict(V=32_000, D=2048, N=16, K=8, H=128, F=8192)
CONSTANT = 128 * 2**20


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(work) -> tuple[dict, object]:
    """Runs `work`, which returns arrays; memory beyond them, and seconds."""
    import jax

    jax.jit(lambda: 0)()  # the compiler comes into memory with its first use
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, start = status("VmRSS"), time.perf_counter()
    arrays = jax.block_until_ready(work())
    resident = sum(x.nbytes for x in jax.tree.leaves(arrays))
    peak = status("VmHWM") - before - resident
    return dict(model=resident, beyond=peak, seconds=round(time.perf_counter() - start, 1)), arrays


def child(folder: Path, task: str, stored: str, target: str, layers: int) -> dict:
    """One task in this process: `make` a checkpoint, `read` it, or read it and `write` it again."""
    import jax
    import jax.numpy as jnp

    from premem_jax import sharding
    from premem_jax.models.architecture import ModelConfig
    from premem_jax.models.decoder import init
    from premem_jax.models.hf_config import to_hf_config
    from premem_jax.models.hf_files import Checkpoint, save

    mesh = sharding.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    config = ModelConfig(L=layers, **SHAPE)
    if task == "make":
        params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
        save(folder / stored, params, config, mesh, description=to_hf_config(config), files={}, dtype=stored)
        return {}
    checkpoint = Checkpoint(folder / stored)
    numbers, params = measure(lambda: checkpoint.load(mesh, target))
    if task == "write":

        def write():
            options = dict(description=checkpoint.description, files={}, dtype=stored)
            save(folder / "again", params, config, mesh, **options)
            return ()

        numbers = numbers | measure(write)[0] | dict(model=numbers["model"])
    largest = max(x.size // (config.L if name[0] == "layers" else 1) for name, x in _named(params))
    return numbers | dict(largest=largest * jnp.dtype(target).itemsize)


def _named(params) -> list:
    from flax.traverse_util import flatten_dict

    return list(flatten_dict(params).items())


def run(folder: Path, task: str, stored: str, target: str, layers: int) -> dict:
    """One task in a new process."""
    command = [sys.executable, "-m", "benchmarks.checkpoint_memory", f"--folder={folder}", f"--layers={layers}"]
    done = subprocess.run([*command, "--child", task, stored, target], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.folder, *options.child, options.layers)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for stored in ("bfloat16", "float32"):
            run(Path(name), "make", stored, stored, options.layers)
        print(f"{'':>26} {'model':>9} {'largest':>9} {'beyond':>9} {'seconds':>8}   MB")
        for case in (
            ("read", "bfloat16", "bfloat16"),
            ("read", "bfloat16", "float32"),
            ("read", "float32", "float32"),
            ("read", "float32", "bfloat16"),
            ("write", "bfloat16", "bfloat16"),
        ):
            got = run(Path(name), *case, options.layers)
            sizes = "".join(f"{got[key] / 2**20:10.0f}" for key in ("model", "largest", "beyond"))
            held = "" if got["beyond"] <= got["largest"] + CONSTANT else "   above the bound"
            print(f"{case[0]:>6} {case[1]:>9} {case[2]:>9}{sizes} {got['seconds']:>8}{held}", flush=True)


if __name__ == "__main__":
    main()
