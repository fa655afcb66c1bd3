"""Evaluate a Hugging Face folder or a run's checkpoint on the rows of a file: target NLL, samples, verdicts."""

import json
import math
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from etils.epath import Path

from premem_jax import keys, sharding, together
from premem_jax.data import chat, tokenizer_files
from premem_jax.data import rows as files
from premem_jax.data.pipeline import Tokenized, tokenize
from premem_jax.errors import UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected, Part, Split, checked
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.evaluators.run import Run
from premem_jax.experiments import hugging_face, materials
from premem_jax.experiments.finetune import saw
from premem_jax.experiments.run_checkpoint import RunCheckpoint, checkpoint_at
from premem_jax.grading import named
from premem_jax.models.hf_files import Checkpoint
from premem_jax.running import processes, progress, sealed, workdir
from premem_jax.running.atomic import write_text
from premem_jax.running.goodput import Goodput
from premem_jax.running.lease import opened
from premem_jax.running.programs import Clock
from premem_jax.tasks import jsonl
from premem_jax.tasks import task as tasks


def run(config, folder: Path) -> dict:
    """Runs or continues the evaluation of `config` in `folder`: writes `evaluation.jsonl`, returns the summary.

    Rows are evaluated in chunks, shortest first. A finished chunk is a file under `chunks/`, in a folder named by a
    digest of its inputs, and is not repeated. Batches do not depend on where a run was killed.

    Raises:
      UserError: a mistake in config, rows, model, mesh or folder, before the evaluation starts.
    """
    keys.check(config)
    clock = Clock()
    with opened(folder, config.to_dict()), Goodput(folder, clock) as goodput:
        rows, chunks = measure(config, folder, clock)
        return processes.once(lambda: conclude(config, folder, goodput, rows, chunks))


def measure(config, folder: Path, clock: Clock) -> tuple[files.Rows, list[Path]]:
    """Makes the chunks that are missing; returns the rows and the files of all chunks."""
    graded = bool(config.data.task or config.data.grader)
    mesh = sharding.make_mesh(config.mesh)
    if config.sampling.samples:
        mesh = sharding.decode_mesh(mesh, config.mesh.decode_tensor)
    used = ("likelihood", "sampling") if config.sampling.samples else ("likelihood",)
    together.batches({f"{name}.batch": config[name].batch for name in used}, sharding.parts(mesh))

    # ---- Model and rows ---------------------------------------------------------------------------------------------
    checkpoint = checkpoint_at(config.model.path)
    tokenizer = tokenizer_files.load(hugging_face.tokenizer_of(config, checkpoint))
    model = hugging_face.model_of(config, checkpoint, tokenizer, mesh)
    templates = dict(prompt=config.data.prompt, target=config.data.target)
    rows = files.read(config.data.path, answers(config.data.task, config.data.grader), **templates)
    template = chat.template_of(config.data.template, tokenizer)
    examples = chat.applied(template, tokenizer, {"rows": rows.examples})["rows"]
    data = tokenize(config.data.path, examples, tokenizer, context=config.data.context, drop_long=False)
    saw(data, tokenizer, template)
    own = named.find(config.data.grader).grader if config.data.grader else None
    split = Split("evaluation", data, own or tasks.find(config.data.task or "gsm8k").GRADER)
    likelihood, accuracy = evaluators(config, split, Run(tokenizer, model, mesh, clock, config.seed))

    # ---- The chunks that are missing --------------------------------------------------------------------------------
    params, values = weights(config, checkpoint, mesh, folder, clock)
    made_of = [checkpoint.headers(), checkpoint.description, checkpoint.eos_ids, values]
    parts = [made_of, rows.checksum, template and template.source, materials.of_tokenizer(tokenizer)]
    parts.append(materials.of_grader(config.data.grader))
    processes.agree({"rows, model, tokenizer and grader": materials.digest(parts)})
    chunks = chunks_of(data, config.chunk, folder / "chunks" / materials.digest(parts)[:12])
    absent = processes.once(lambda: [str(path) for path in chunks if not there(path, folder)])
    missing = {path: numbers for path, numbers in chunks.items() if str(path) in absent}
    with progress.bar(len(data), "rows", "row", initial=len(data) - sum(map(len, missing.values()))) as bar:
        if missing and params is None:
            params, _ = weights(config, checkpoint, mesh, folder, clock, known=False)
        for path, numbers in missing.items():
            measured, sampled = Collected(len(data)), Collected(len(data))
            with clock("score"):
                measured.all(polled(checked("likelihood", split, likelihood.measure(params, 0, numbers))))
            if accuracy is not None:
                with clock("sample"):
                    sampled.all(polled(accuracy.measure(params, 0, numbers)))
            responses = {text["example"]: text["responses"] for text in sampled.texts}
            lines = [line(row, measured.columns, responses, graded) for row in numbers]
            if processes.leads():
                sealed.write(path, "".join(json.dumps(item) + "\n" for item in lines).encode())
            bar.update(len(numbers))
    return rows, list(chunks)


def answers(task: str, grader: str) -> files.Answer | None:
    """How the final answer of a row is read: by a grader, by the rules of a task, or not at all."""
    if grader:
        return partial(jsonl.answer_of, named.find(grader))
    return partial(tasks.answer_in_row, task) if task else None


def there(path: Path, folder: Path) -> bool:
    """Whether a chunk exists and is intact; a damaged one is set aside."""
    return sealed.unless_damaged(sealed.read, path, folder, "its rows are done again") is not None


def polled(parts: Iterable[Part]) -> Iterator[Part]:
    """Yields `parts` and polls for a stop after each; an interrupted chunk is repeated."""
    for part in parts:
        processes.poll()
        yield part


def evaluators(config, split: Split, run: Run) -> tuple[Likelihood, Accuracy | None]:
    """The evaluators: likelihood, and samples if any are asked for, graded by the rules of the task."""
    lengths, given = split.data.lengths, tuple(config.data.buckets)
    likelihood = Likelihood(split, run._replace(buckets=given or few_lengths(lengths.max())), **config.likelihood)
    if not config.sampling.samples:
        return likelihood, None
    longest = max(map(len, split.data.prompts)) + config.sampling.max_new_tokens
    run = run._replace(buckets=given or few_lengths(longest))
    return likelihood, Accuracy(split, run, **config.sampling, keep_texts=len(split.data))


def few_lengths(longest: int) -> tuple[int, ...]:
    """The lengths, multiples of 32, that sequences are padded to: up to 1.4 times theirs, from a quarter on."""
    return tuple(sorted({32 * math.ceil(longest / 2 ** (i / 2) / 32) for i in range(5)}))


def chunks_of(data: Tokenized, size: int, folder: Path) -> dict[Path, list[int]]:
    """Row numbers of each chunk, by its file; rows of similar length share a chunk."""
    order = np.argsort(data.lengths, kind="stable").tolist()
    return {folder / f"{first:09d}.jsonl": order[first : first + size] for first in range(0, len(order), size)}


def weights(
    config, checkpoint: Checkpoint | RunCheckpoint, mesh, folder: Path, clock: Clock, known: bool = True
) -> tuple:
    """The weights and a digest of their values; None and the digest if files of this size and time were read before.

    `known=False` always reads them.
    """
    path = folder / "weights.json"
    stats = materials.digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in checkpoint.files])

    def remembered() -> str | None:
        found = sealed.unless_damaged(sealed.read_json, path, folder, "the weights are read again")
        return found["values"] if found and found["stats"] == stats else None

    values = processes.once(remembered)
    if values and known:
        return None, values
    with clock("load"):
        params = hugging_face.load(checkpoint, mesh, config.compute_dtype)
        found = materials.digest(materials.of_arrays(params))
    if values and found != values:
        raise UserError(f"{checkpoint.folder}: weights have changed while they were evaluated; run the command again")
    processes.once(lambda: sealed.write_json(path, {"stats": stats, "values": found}))
    return params, found


def line(row: int, measured: dict[str, np.ndarray], responses: dict[int, list], graded: bool) -> dict:
    """The output line of one row; float32 values have enough digits to be read back exactly."""
    out = {"row": row, "target_nll": float(measured["target_nll"][row])}
    out["target_tokens"] = int(measured["target_tokens"][row])
    if responses:
        out["responses"] = responses[row] if graded else [{"text": each["text"]} for each in responses[row]]
    return out


def conclude(config, folder: Path, goodput: Goodput, rows: files.Rows, chunks: list[Path]) -> dict:
    """Writes `evaluation.jsonl` in file order, and `summary.json`, from the chunks alone."""
    lines = [json.loads(text) for path in chunks for text in sealed.read(path).splitlines()]
    lines = [{"id": rows.names[item.pop("row")], **item} for item in sorted(lines, key=lambda item: item["row"])]
    write_text(folder / "evaluation.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in lines))
    nll, tokens = (np.array([item[key] for item in lines], np.float64) for key in ("target_nll", "target_tokens"))
    verdicts = [each["verdict"] for item in lines for each in item.get("responses", ()) if "verdict" in each]
    summary = {
        "experiment": config.experiment,
        "rows": len(lines),
        "target_nll": float(nll.mean()),  # of rows, each counting the same
        "token_nll": float(np.sum(nll * tokens) / np.sum(tokens)),  # of tokens
        "target_tokens": int(tokens.sum()),
        **({"accuracy": verdicts.count("correct") / len(verdicts)} if verdicts else {}),
        **({"unparsed": verdicts.count("unparsed") / len(verdicts)} if verdicts else {}),
        **goodput.summary(),
        "workdir": str(folder),
        **workdir.facts(),
    }
    sealed.write_json(folder / "summary.json", summary)
    goodput.keep(finished=True)
    found = f", accuracy {summary['accuracy']:.1%}" if verdicts else ""
    progress.say(f"{len(lines)} rows, mean target NLL {nll.mean():.4f}{found}; look at {folder / 'evaluation.jsonl'}")
    return summary
