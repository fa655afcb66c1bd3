"""Where scalars go for people: TensorBoard always; Weights & Biases, MLflow and trackio if a config names them.

A tracker has `write(step, values)`, `flush()` and `close()`, and is made with the run's folder and the step that it
continues from. A continued run goes on in the same record of a tracker, found by the folder. Each is set up by its own
environment variables; without a server it writes to a disk (`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI=file:DIR`,
`TRACKIO_DIR`).
"""

import hashlib
import importlib.util
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from etils.epath import Path

from premem_jax.errors import UserError
from premem_jax.running import storage
from premem_jax.running.atomic import write_bytes

PROJECT = "premem_jax"
NAMES = ("wandb", "mlflow", "trackio")

log = logging.getLogger(__name__)


def check(names: Sequence[str]) -> None:
    """Raises UserError if the library of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers={name!r}: it is not installed; pip install 'premem_jax[{name}]'")


class Trackers:
    """TensorBoard and the trackers of these names. One that fails is left out from then on, with a warning."""

    def __init__(self, names: Sequence[str], workdir: Path, resume_step: int):
        kinds = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}
        self._all = [TensorBoard(workdir, resume_step)]
        for name in names:
            self._try(name, lambda name=name: self._all.append(kinds[name](workdir)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars of a step, by their names."""
        self._each(lambda tracker: tracker.write(step, values))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, do) -> None:
        first, *others = self._all
        do(first)  # on our own disk, where a failure is one of the run
        self._all = [first, *(each for each in others if self._try(type(each).__name__, lambda each=each: do(each)))]

    def _try(self, name: str, do) -> bool:
        try:
            do()
            return True
        except Exception as error:  # of a foreign library or its server, which must not end a run
            log.warning("%s gets no more metrics (%s: %s); metrics.jsonl has all", name, type(error).__name__, error)
            return False


class TensorBoard:
    """Event files in the folder `tensorboard`; in a bucket, where nothing is appended to, copies of them."""

    def __init__(self, workdir: Path, resume_step: int):
        self._folder = workdir / "tensorboard"
        self._disk = tempfile.TemporaryDirectory() if storage.in_bucket(workdir) else None
        folder = self._disk.name if self._disk else str(self._folder)
        # Without the suffix, two launches within a second would write one file.
        suffix = f".{resume_step}"
        self._writer = _tensorboard().SummaryWriter(folder, purge_step=resume_step + 1, filename_suffix=suffix)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()
        if self._disk:
            for file in storage.files(Path(self._disk.name)):
                write_bytes(self._folder / file.name, file.read_bytes())

    def close(self) -> None:
        self.flush()
        self._writer.close()
        if self._disk:
            self._disk.cleanup()


class Wandb:
    """A run of Weights & Biases. It drops steps before the last one, so a continued run repeats none."""

    def __init__(self, workdir: Path):
        import wandb

        where = None if storage.in_bucket(workdir) else str(workdir)
        self._run = wandb.init(project=PROJECT, name=workdir.name, id=_id(workdir), resume="allow", dir=where)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # it sends in the background

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow; scalars are sent at each flush."""

    def __init__(self, workdir: Path):
        from mlflow import MlflowClient

        self._client, self._waiting = MlflowClient(), []
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        tags = {"premem.run": _id(workdir)}
        runs = self._client.search_runs([experiment], f"tags.`premem.run` = '{tags['premem.run']}'")
        run = runs[0] if runs else self._client.create_run(experiment, run_name=workdir.name, tags=tags)
        self._id = run.info.run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]

    def flush(self) -> None:
        for at in range(0, len(self._waiting), 1000):  # as many as a server takes at once
            self._client.log_batch(self._id, metrics=self._waiting[at : at + 1000])
        self._waiting = []

    def close(self) -> None:
        self.flush()
        self._client.set_terminated(self._id)


class Trackio:
    """A run of trackio."""

    def __init__(self, workdir: Path):
        import trackio

        name = f"{workdir.name}-{_id(workdir)[:6]}"  # which is its identity there
        self._run = trackio.init(
            PROJECT, name=name, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # it writes in the background

    def close(self) -> None:
        self._run.finish()


def _id(workdir: Path) -> str:
    """A name of a run's folder that a tracker takes."""
    return hashlib.sha256(str(workdir).encode()).hexdigest()[:16]


def _tensorboard():
    """tensorboardX, without torch: it imports that where it is installed, to convert tensors, which takes seconds."""
    if "tensorboardX" in sys.modules or "torch" in sys.modules:
        import tensorboardX

        return tensorboardX
    sys.modules["torch"] = None  # which Python takes for a module that is not there
    try:
        import tensorboardX
    finally:
        del sys.modules["torch"]
    return tensorboardX
