"""The folder of a run: its default name, its owner's config, free space, and facts for the summary."""

import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
from importlib import metadata

from etils.epath import Path

import premem_jax
from premem_jax.errors import UserError
from premem_jax.running import storage
from premem_jax.running.atomic import write_text

# A run may continue with another mesh or cache, or be exported afterwards; any other change makes it another run.
FREE_KEYS = ("cache", "mesh", "profile", "trackers", "extend", "study.member")
FREE_KEYS += ("checkpoint.export", "checkpoint.export_dtype")
# What `extend` may change in a finetune that has begun; epochs only upwards.
EXTENDED = ("train.epochs", "evals", "checkpoint.every", "checkpoint.keep", "log_every")

START = (
    "config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "materials.json",
    "examples.jsonl",
    "seconds.json",
    "weights.json",
)  # before a run makes anything
LONGEST = 150  # characters of options in the name of a folder
HOLDING = ("in_use", ".in_use")  # files of the lease, see `lease.py`


def default_workdir(config_flag: str, overrides: dict) -> Path:
    """`runs/NAME[-ARG][-HASH]`: the same command finds its run again, other options name another one.

    Of an argument that is too long for a name, the checksum takes its place.

    Args:
      config_flag: value of `--config`, `configs/NAME.py[:arg]`.
      overrides: values of the `--config.key` flags given.
    """
    path, _, arg = config_flag.partition(":")
    # All members share a folder.
    overrides = {key: value for key, value in overrides.items() if key not in ("study.member", "extend")}
    options = re.sub(r"[^\w.=-]+", "_", arg)
    if len(options) > LONGEST:
        options = hashlib.sha256(arg.encode()).hexdigest()[:8]
    parts = [part for part in (Path(path).stem, options) if part]
    if overrides:
        parts.append(hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:8])
    return Path("runs") / "-".join(parts)


def check(workdir: Path, config: dict) -> None:
    """Raises UserError if the folder is not a run's or holds a run of another config. Changes nothing."""
    try:
        _differences(workdir, config)
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {error.strerror or error}") from error


def claim(workdir: Path, config: dict) -> None:
    """Writes `config.json` into a folder whose lease the caller holds, or checks that the folder has this config.

    A folder is free again if a mistake in the config ended its run before the first update. Of a run that is extended,
    the earlier config stays as `config.N.json`.

    Raises:
      UserError: the folder has another config (the message names the keys that differ), or not all processes see the
        folder.
    """
    from premem_jax.running import processes  # not at the top: it imports JAX

    processes.once(lambda: _claim(workdir, config))
    if not processes.all_agree((workdir / "config.json").exists()):
        raise UserError(f"{workdir} is not the same folder for all processes; give a --workdir that they share")


def _claim(workdir: Path, config: dict) -> None:
    differ = _differences(workdir, config)
    if differ and begun(workdir):
        theirs = (workdir / "config.json").read_text()
        write_text(workdir / f"config.{len(earlier(workdir))}.json", theirs)
    elif differ:
        for file in _made(workdir):  # of another config, and all of it from the start of its run
            file.unlink()
    try:
        write_text(workdir / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror or error}") from error


def _differences(workdir: Path, config: dict) -> list[str]:
    """Keys in which the config in `workdir` differs, if its run has not begun or is extended; none if there is no run.

    Raises:
      UserError: the folder is not a run's, or its run has begun with another config, which `extend` does not allow.
    """
    path = workdir / "config.json"
    if not path.exists():
        if workdir.exists() and not workdir.is_dir():
            raise UserError(f"{workdir} is a file; use another --workdir")
        if workdir.is_dir() and any(not file.name.startswith(HOLDING) for file in workdir.iterdir()):
            raise UserError(
                f"{workdir} is not empty and holds no config.json: it is no run's folder; use another --workdir"
            )
        return []
    try:
        theirs = json.loads(path.read_text())
        theirs_flat = _flat(theirs)
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); use another --workdir") from error
    mine_flat = _flat(json.loads(json.dumps(config)))
    differ = [k for k in sorted(mine_flat | theirs_flat) if mine_flat.get(k) != theirs_flat.get(k)]
    differ = [k for k in differ if not _in(FREE_KEYS, k)]
    if differ and begun(workdir):
        _check_extension(workdir, differ, theirs_flat, mine_flat)
    return differ


def _check_extension(workdir: Path, differ: list[str], theirs: dict, mine: dict) -> None:
    """Raises UserError, with each key and both values, if a run that has begun cannot go on with other settings."""
    said = lambda keys: "; ".join(f"{k}: {theirs.get(k)!r} there, {mine.get(k)!r} here" for k in keys[:5])
    fixed = [k for k in differ if not _in(EXTENDED, k) or mine.get("experiment") != "finetune"]
    fixed += [k for k in differ if k == "train.epochs" and mine[k] < theirs[k]]
    if fixed and mine.get("extend"):
        ways = f"more train.epochs, {', '.join(EXTENDED[1:])}"
        raise UserError(
            f"{workdir}: a run that has begun keeps these settings ({said(fixed)}); it can be extended by {ways}"
        )
    if not mine.get("extend"):
        or_else = "" if fixed else "; or let that run go on with these settings: --config.extend=true"
        raise UserError(f"{workdir} holds the run of another config ({said(differ)}); use another --workdir{or_else}")


def earlier(workdir: Path) -> list[dict]:
    """The configs that a run had before it was extended, first to last."""
    found = [file for file in workdir.iterdir() if re.fullmatch(r"config\.\d+\.json", file.name)]
    return [json.loads(file.read_text()) for file in sorted(found, key=lambda file: int(file.name.split(".")[1]))]


def _in(groups: tuple[str, ...], key: str) -> bool:
    """Whether a key is one of `groups`, or of a group there."""
    return any(f"{key}.".startswith(f"{group}.") for group in groups)


def settings(config: dict) -> dict[str, str]:
    """The settings that identify a run, flat, for comparison."""
    return {
        key: json.dumps(value)
        for key, value in _flat(json.loads(json.dumps(config))).items()
        if not _in(FREE_KEYS, key)
    }


@functools.cache
def code() -> str:
    """SHA-256 over the package's own source files and the version of JAX."""
    digest, folder = hashlib.sha256(metadata.version("jax").encode()), pathlib.Path(premem_jax.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def check_room(workdir: Path, need: int) -> None:
    """Raises UserError if the disk of `workdir` cannot hold `need` bytes of checkpoints, old ones included."""
    if storage.in_bucket(workdir):
        return
    need -= sum(os.stat(file).st_size for file in storage.files(workdir / "checkpoints"))
    free = shutil.disk_usage(workdir).free
    if free < need:
        raise UserError(
            f"{workdir}: {free / 1e9:.2f} GB free, but the checkpoints of this run take {need / 1e9:.2f} GB; "
            "free some, lower checkpoint.keep, or choose another --workdir"
        )


# Errors of the system that no restart fixes: what is wrong, and what people can do. Libraries wrap those of disks.
DISK = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or ask for more"),
    errno.EROFS: ("the disk is read-only", "repair it"),
    errno.EFBIG: ("a file may not become that large", "raise the limit (ulimit -f)"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}
PLACE = ("a path cannot be used", "correct it, or give another")
PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM)


def fault_of_a_place(error: BaseException | None) -> tuple[str, str] | None:
    """What is wrong with a disk or a path, and the fix, if that is the cause of `error`."""
    while error is not None:
        for number, said in DISK.items():
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return said
        if isinstance(error, OSError) and error.errno in PATH and error.filename:
            return PLACE
        error = error.__cause__ or error.__context__
    return None


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
    """Peak memory of this process in bytes.

    Not from `ru_maxrss`, which on Linux includes the parent's memory at the start of this program.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _git_commit() -> str:
    if stated := os.environ.get("PREMEM_COMMIT"):  # in an image, which has no repository
        return stated
    folder = Path(premem_jax.__file__).parent.parent
    git = ["git", "-C", str(folder)]
    ask = lambda *arguments: subprocess.run(
        [*git, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return "unknown"  # site-packages lies in somebody else's repository
        ask("ls-files", "--error-unmatch", "premem_jax/__init__.py")
        return ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def begun(workdir: Path) -> bool:
    """Whether a folder, or one below it as in a study, has more than the files that a run writes at its start."""
    return any(file.name not in START and not file.name.startswith(".") for file in _made(workdir))


def _made(workdir: Path) -> list[Path]:
    return [file for file in storage.files(workdir) if not file.name.startswith(HOLDING)]


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
