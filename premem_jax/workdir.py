"""The folder of a run: whose it is, whether it has room, and what is written at the end."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
from importlib import metadata

from etils.epath import Path

import premem_jax
from premem_jax import storage
from premem_jax.atomic import write_text
from premem_jax.errors import UserError

# A run may continue on another mesh or with another cache, or be exported when it is over; everything else makes it
# another run.
FREE_KEYS = ("cache", "mesh", "profile", "checkpoint.export", "checkpoint.export_dtype")


def default_workdir(config_flag: str, overrides: dict) -> Path:
    """`runs/NAME[-ARG][-HASH]`: the same command finds its run again, other options make another run.

    Args:
      config_flag: value of `--config`, `configs/NAME.py[:arg]`.
      overrides: value of each `--config.key` given.
    """
    path, _, arg = config_flag.partition(":")
    parts = [Path(path).stem] + ([re.sub(r"[^\w.=-]+", "_", arg)] if arg else [])
    if overrides:
        parts.append(hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:8])
    return Path("runs") / "-".join(parts)


def claim(workdir: Path, config: dict) -> None:
    """Makes the folder and writes `config.json`, or checks that the folder belongs to this config.

    A folder whose run ended before its first update, over a mistake in the config, belongs to nobody.

    Raises:
      UserError: the folder holds the run of another config (the keys that differ are named), or not all processes see
        it.
    """
    from premem_jax import processes  # not at the top: it imports JAX

    processes.once(lambda: _claim(workdir, config))
    if not processes.all_agree((workdir / "config.json").exists()):
        raise UserError(f"{workdir} is not the same folder for all processes; give a --workdir that they share")


def _claim(workdir: Path, config: dict) -> None:
    path = workdir / "config.json"
    config = json.loads(json.dumps(config))
    if path.exists():
        try:
            theirs = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); use another --workdir") from error
        mine_flat, theirs_flat = _flat(config), _flat(theirs)
        differ = [k for k in sorted(mine_flat | theirs_flat) if mine_flat.get(k) != theirs_flat.get(k)]
        differ = [k for k in differ if not any(f"{k}.".startswith(f"{free}.") for free in FREE_KEYS)]
        if differ and not _begun(workdir):
            (workdir / "tokenizer.model").unlink(missing_ok=True)
        elif differ:
            shown = "; ".join(f"{k}: {theirs_flat.get(k)!r} there, {mine_flat.get(k)!r} here" for k in differ[:5])
            raise UserError(f"{workdir} holds the run of another config ({shown}); use another --workdir")
    elif workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(
            f"{workdir} is not empty and holds no config.json: it is no run's folder; use another --workdir"
        )
    try:
        write_text(path, json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror or error}") from error


def check_room(workdir: Path, need: int) -> None:
    """Raises UserError where the disk of `workdir` has no room for `need` bytes of checkpoints, old ones included."""
    if storage.in_bucket(workdir):
        return
    need -= sum(os.stat(file).st_size for file in storage.files(workdir / "checkpoints"))
    free = shutil.disk_usage(workdir).free
    if free < need:
        raise UserError(
            f"{workdir}: {free / 1e9:.2f} GB free, but the checkpoints of this run take {need / 1e9:.2f} GB; "
            "free some, lower checkpoint.keep, or choose another --workdir"
        )


def disk_is_full(error: BaseException | None) -> bool:
    """Whether ENOSPC is behind `error`."""
    return _is_behind(errno.ENOSPC, error)


def disk_is_read_only(error: BaseException | None) -> bool:
    """Whether EROFS is behind `error`, as of a disk that the system no longer trusts."""
    return _is_behind(errno.EROFS, error)


def _is_behind(number: int, error: BaseException | None) -> bool:
    """Orbax and TensorStore wrap errors of the system in errors of their own."""
    while error is not None:
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def facts() -> dict:
    """Versions, commit and device of this run, flat."""
    import jax  # not at the top: the folder's name is needed before anything heavy

    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    device = jax.local_devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")  # a CPU does not say
    return {
        "version": premem_jax.__version__,
        "git_commit": _git_commit(),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": jax.process_count(),
        "host_memory_peak_gb": round(host_memory_peak() / 1e9, 3),
        **({"device_memory_peak_gb": round(peak / 1e9, 3)} if peak else {}),
    } | {f"version_{name.replace('-', '_')}": metadata.version(name) for name in packages}


def host_memory_peak() -> int:
    """Most bytes of memory that this process had at a time.

    Linux counts in `ru_maxrss` what the parent had when it started this program.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git_commit() -> str:
    if stated := os.environ.get("PREMEM_COMMIT"):  # in an image, which has no repository
        return stated
    folder = Path(premem_jax.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _begun(workdir: Path) -> bool:
    kinds = ("checkpoints", "trace", "chunks", "metrics.jsonl", "summary.json")
    return any(file.relative_to(workdir).parts[0] in kinds for file in storage.files(workdir))


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
