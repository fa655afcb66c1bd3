"""The sampled texts of an evaluation: `samples/step-STEP.jsonl` of a run's folder.

A row is {step, split, example, responses: [{text, verdict}]}, in a stack with `member`. The trace file of the step has
the checksum of the file.
"""

import json
from collections.abc import Iterable, Mapping

from etils.epath import Path

from premem_jax.analysis.trace import Trace
from premem_jax.running import sealed
from premem_jax.running.atomic import write_bytes


def texts_path(workdir: Path, step: int) -> Path:
    """The file of the texts sampled at `step`, JSON Lines."""
    return workdir / "samples" / f"step-{step:08d}.jsonl"


def body_of(rows: Iterable[Mapping]) -> bytes:
    """The contents of such a file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_texts(workdir: Path, step: int, body: bytes) -> str:
    """Writes the texts sampled at `step`, whole or not at all; returns the SHA-256 of the file."""
    write_bytes(texts_path(workdir, step), body)
    return sealed.digest(body)


def sampled_texts(workdir: Path, step: int, digest: str) -> list[dict] | None:
    """The rows of that file; None if it is missing or has another SHA-256, in which case it is set aside."""

    def read(path: Path) -> list[dict]:
        body = path.read_bytes()
        if sealed.digest(body) != digest:
            raise sealed.Damaged(f"{path} is damaged: its checksum is another")
        return [json.loads(line) for line in body.splitlines()]

    then = "its texts are made again where the weights are there"
    return sealed.unless_damaged(read, texts_path(workdir, step), workdir, then)


def texts_of_run(workdir: Path, trace: Trace) -> list[dict]:
    """The sampled texts of all evaluations of a trace that are there and intact."""
    return [row for step, digest in trace.texts.items() for row in sampled_texts(workdir, step, digest) or ()]
