"""Evaluate a Hugging Face folder on the rows of a file: target likelihood, sampled responses, verdicts; no training."""

import hashlib
import json
from collections.abc import Iterable, Iterator

import numpy as np
from etils.epath import Path

from premem_jax import processes, progress, sharding, workdir
from premem_jax.atomic import write_text
from premem_jax.data import rows as files
from premem_jax.data import tasks, tokenizers
from premem_jax.data.pipeline import Tokenized, tokenize
from premem_jax.errors import UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected, Context, Part
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.experiments import checks, hugging_face
from premem_jax.goodput import Goodput
from premem_jax.lease import lease
from premem_jax.models.hf_files import Checkpoint
from premem_jax.programs import Clock

COUNTS = ("batch", "max_new_tokens", "first_round", "chunk")


def run(config, folder: Path) -> dict:
    """Runs or continues the evaluation of `config` in `folder`: `evaluation.jsonl`, and the summary that it returns.

    Rows are done in chunks, shortest first. A finished chunk is a file under `chunks/`, in a folder named after what it
    was made of, and is not done again; how rows are cut into batches does not depend on where a run was killed.

    Raises:
      UserError: anything wrong with the config, the rows, the model, the mesh or the folder, before the work starts.
    """
    clock = Clock()
    workdir.claim(folder, config.to_dict())
    with lease(folder), Goodput(folder, clock) as goodput:
        rows, chunks = measure(config, folder, clock)
        return processes.once(lambda: conclude(config, folder, goodput, rows, chunks))


def measure(config, folder: Path, clock: Clock) -> tuple[files.Rows, list[Path]]:
    """Makes the chunks that are missing; returns the rows and the files of all chunks."""
    graded = bool(config.data.task)
    check(config)
    mesh = sharding.make_mesh(config.mesh)
    if config.sampling.samples:
        mesh = sharding.decode_mesh(mesh, config.mesh.decode_tensor)
    used = ("likelihood", "sampling") if config.sampling.samples else ("likelihood",)
    checks.batches({f"{name}.batch": config[name].batch for name in used}, mesh)

    # ---- Model and rows ---------------------------------------------------------------------------------------------
    checkpoint = hugging_face.checkpoint_of(config)
    tokenizer = tokenizers.load(config.tokenizer.path or config.model.path)
    model = hugging_face.model_of(config, checkpoint, tokenizer, mesh)
    rows = files.read(config.data.path, graded=graded)
    data = tokenize(config.data.path, rows.examples, tokenizer, context=config.data.context, drop_long=False)
    buckets = tuple(config.data.buckets)
    context = Context(
        "evaluation",
        data,
        tasks.RULES[config.data.task or "gsm8k"],
        tokenizer,
        model,
        mesh,
        clock,
        config.seed,
        buckets,
    )
    likelihood, accuracy = evaluators(config, context)

    # ---- The chunks that are missing --------------------------------------------------------------------------------
    chunks = chunks_of(data, config.chunk, folder / "chunks" / fingerprint(checkpoint, rows, tokenizer))
    absent = processes.once(lambda: [str(path) for path in chunks if not path.exists()])
    missing = {path: numbers for path, numbers in chunks.items() if str(path) in absent}
    with progress.bar(len(data), "rows", "row", initial=len(data) - sum(map(len, missing.values()))) as bar:
        if missing:
            with clock("load"):
                params = checkpoint.load(mesh, config.compute_dtype)
        for path, numbers in missing.items():
            measured, sampled = Collected(len(data)), Collected(len(data))
            with clock("score"):
                measured.all(polled(likelihood.run(params, 0, numbers)))
            if accuracy is not None:
                with clock("sample"):
                    sampled.all(polled(accuracy.run(params, 0, numbers)))
            responses = {text["example"]: text["responses"] for text in sampled.texts}
            lines = [line(row, measured.columns, responses, graded) for row in numbers]
            if processes.leads():
                write_text(path, "".join(json.dumps(item) + "\n" for item in lines))
            bar.update(len(numbers))
    return rows, list(chunks)


def polled(parts: Iterable[Part]) -> Iterator[Part]:
    """`parts`, with a look after each whether the run was asked to stop; the chunk is then begun anew."""
    for part in parts:
        processes.poll()
        yield part


def check(config) -> None:
    """Raises UserError where a setting makes no sense."""
    checks.counts({"config": config, "likelihood": config.likelihood, "sampling": config.sampling}, COUNTS)
    checks.dtype("compute_dtype", config.compute_dtype)
    if config.sampling.samples < 0:
        raise UserError(f"sampling.samples={config.sampling.samples}: a number of samples is not negative")
    if not config.model.path:
        raise UserError("model.path is empty; give it the Hugging Face folder to evaluate")
    task, samples = config.data.task, config.sampling.samples
    if task and task not in tasks.RULES:
        raise UserError(f"data.task={task!r} has no grader (there are: {', '.join(tasks.RULES)})")
    if task and not samples:
        raise UserError(f"data.task={task!r} grades responses, and sampling.samples=0 asks for none; try :samples=5")


def evaluators(config, context: Context) -> tuple[Likelihood, Accuracy | None]:
    """What is measured: likelihood always; samples where any are asked, graded by the rules of the task."""
    likelihood = Likelihood(context, **config.likelihood)
    if not config.sampling.samples:
        return likelihood, None
    return likelihood, Accuracy(context, **config.sampling, keep_texts=len(context.data))


def chunks_of(data: Tokenized, size: int, folder: Path) -> dict[Path, list[int]]:
    """The row numbers of each chunk by the file for what is measured on them; rows of like length are together."""
    order = np.argsort(data.lengths, kind="stable").tolist()
    return {folder / f"{first:09d}.jsonl": order[first : first + size] for first in range(0, len(order), size)}


def fingerprint(checkpoint: Checkpoint, rows: files.Rows, tokenizer: tokenizers.Tokenizer) -> str:
    """Names what is evaluated on what, beside the config: the weights' files by size and time, not by content."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.files]
    parts = [stats, checkpoint.description, rows.checksum, hashlib.sha256(tokenizer.model).hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def line(row: int, measured: dict[str, np.ndarray], responses: dict[int, list], graded: bool) -> dict:
    """What is written of one row. A float32 is written with the digits that give it back."""
    out = {"row": row, "target_nll": finite(measured["target_nll"][row])}
    out["target_tokens"] = int(measured["target_tokens"][row])
    if responses:
        out["responses"] = responses[row] if graded else [{"text": each["text"]} for each in responses[row]]
    return out


def finite(x) -> float | None:
    """JSON has no word for the others."""
    return float(x) if np.isfinite(x) else None


def conclude(config, folder: Path, goodput: Goodput, rows: files.Rows, chunks: list[Path]) -> dict:
    """`evaluation.jsonl` in the order of the file, and `summary.json`, from the chunks alone."""
    lines = [json.loads(text) for path in chunks for text in path.read_text().splitlines()]
    lines = [{"id": rows.ids[item.pop("row")], **item} for item in sorted(lines, key=lambda item: item["row"])]
    write_text(folder / "evaluation.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in lines))
    nll, tokens = (np.array([item[key] for item in lines], np.float64) for key in ("target_nll", "target_tokens"))
    verdicts = [each["verdict"] for item in lines for each in item.get("responses", ()) if "verdict" in each]
    summary = {
        "experiment": config.experiment,
        "rows": len(lines),
        "target_nll": finite(nll.mean()),  # of rows, each counting the same
        "token_nll": finite(np.sum(nll * tokens) / np.sum(tokens)),  # of tokens
        "target_tokens": int(tokens.sum()),
        **({"accuracy": verdicts.count("correct") / len(verdicts)} if verdicts else {}),
        **({"unparsed": verdicts.count("unparsed") / len(verdicts)} if verdicts else {}),
        **goodput.summary(),
        "workdir": str(folder),
        **workdir.facts(),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    goodput.keep(finished=True)
    found = f", accuracy {summary['accuracy']:.1%}" if verdicts else ""
    progress.say(f"{len(lines)} rows, mean target NLL {nll.mean():.4f}{found}; look at {folder / 'evaluation.jsonl'}")
    return summary
