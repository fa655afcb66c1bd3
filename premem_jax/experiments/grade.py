"""Grade responses of any model: a verdict for each, and the accuracy."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from etils.epath import Path

from premem_jax import keys
from premem_jax.data import rows as files
from premem_jax.errors import UserError
from premem_jax.grading import named, second_opinion
from premem_jax.grading.answers import answer_bytes, grade, vocabulary
from premem_jax.grading.grader import Grader, by_rules
from premem_jax.grading.normal_form import normal_form
from premem_jax.grading.reference import clean, find_answer
from premem_jax.grading.rules import Rules
from premem_jax.grading.verdict import Verdict
from premem_jax.running import processes, progress, sealed, workdir
from premem_jax.running.atomic import write_text
from premem_jax.running.lease import opened
from premem_jax.running.programs import Clock, Program
from premem_jax.tasks import jsonl
from premem_jax.tasks import task as tasks

BYTES = tuple(bytes([byte]) for byte in range(256))  # the vocabulary: each byte of a text is a token
SHORTEST, GROWTH = 512, 4  # bytes to which texts are padded: few lengths, so few compilations
TOKENS = 2**20  # of a batch
ALONE = files.Form("", "{answer}")  # of a row: only the answer is needed
FEW = 500  # rows that the host grades by itself: compiling the kernel would take longer


class Row(NamedTuple):
    """A response, and the reference answer."""

    output: bytes
    answer: bytes


def run(config, folder: Path) -> dict:
    """Grades the file `config.data.path` into `folder`, and returns the summary that it writes there.

    Raises:
      UserError: a wrong setting, or a file that is unreadable or has no rows `{output, answer}`.
    """
    keys.check(config)
    if config.data.grader == "none":
        raise UserError("data.grader='none' grades nothing; name another one")
    clock = Clock()
    if config.check:
        second_opinion.require()
    rows = read_rows(config.data.path, config.data.task, config.data.grader)
    with opened(folder, config.to_dict()):
        return graded(config, folder, rows, clock)


def graded(config, folder: Path, rows: Sequence[Row], clock: Clock) -> dict:
    """Verdicts and summary of the rows."""
    grader = named.find(config.data.grader).grader if config.data.grader else by_rules(config.data.task)

    def told(count: int) -> None:
        bar.update(count)
        processes.poll()

    with progress.bar(len(rows), "grade", "row") as bar:
        verdicts, on_host = grade_rows(rows, grader, clock, told)
    lines = [describe(*each, grader) for each in zip(rows, verdicts, on_host, strict=True)]
    write_lines(folder / "verdicts.jsonl", lines)
    checked = check(folder, rows, lines, config.deadline, clock) if config.check else {}
    seconds = {f"seconds_{phase}": round(value, 3) for phase, value in clock.read().items()}
    summary = {
        "experiment": config.experiment,
        "grader": config.data.grader or config.data.task,
        "rows": len(rows),
        "accuracy": float(np.mean(verdicts == Verdict.CORRECT)),
        **{verdict.name.lower(): int(np.sum(verdicts == verdict)) for verdict in list(Verdict)[:3]},
        "decided_on_host": int(on_host.sum()),
        **checked,
        **seconds,
        "seconds_total": round(sum(seconds.values()), 3),
        "workdir": str(folder),
        **workdir.facts(),
    }
    sealed.write_json(folder / "summary.json", summary)
    progress.say(f"{summary['accuracy']:.1%} of {len(rows)} correct, {summary['unparsed']} without an answer")
    progress.say(f"Look at {folder / 'verdicts.jsonl'}")
    return summary


def read_rows(path: str, task: str, grader: str = "") -> list[Row]:
    """The rows of a file, with answers by a grader's name, or by a task's rules.

    Raises:
      UserError: the first row without `output` or without an answer; names file and line.
    """
    items, _ = files.items_of(path)
    for where, item in items:
        if not isinstance(item, dict) or not isinstance(item.get("output"), str):
            raise UserError(f"{where}: not a row {{output, answer}}: output must be a text")
    answer = partial(jsonl.answer_of, named.find(grader)) if grader else partial(tasks.answer_in_row, task)
    examples = files.parse(items, answer, others=(ALONE,)).examples
    return [Row(item["output"].encode(), e.answer.encode()) for (_, item), e in zip(items, examples, strict=True)]


def grade_rows(
    rows: Sequence[Row], grader: Grader, clock: Clock, told: Callable[[int], object]
) -> tuple[np.ndarray, np.ndarray]:
    """The verdict of each row, and whether the host decided it; `told` is called as rows are done."""
    verdicts = np.full(len(rows), Verdict.UNDECIDED, np.int8)
    if on_device := len(rows) > FEW and grader.rules is not None:
        _grade_on_device(rows, grader.rules, clock, told, verdicts)
    on_host = verdicts == Verdict.UNDECIDED
    with clock("grade"):
        for i in np.flatnonzero(on_host):
            try:
                verdicts[i] = grader.host(rows[i].output, rows[i].answer.decode())
            except Exception as error:
                if grader.rules is not None:
                    raise  # our own rules know an answer to everything
                raise UserError(grader.failed(error, rows[i].output, f"row {i + 1}")) from error
            told(not on_device)
    return verdicts, on_host


def _grade_on_device(
    rows: Sequence[Row], rules: str | Rules, clock: Clock, told: Callable, verdicts: np.ndarray
) -> None:
    """Fills in the verdicts of the kernel."""
    program = Program(lambda *arrays: grade(*arrays, rules), clock)
    tables = jax.device_put(vocabulary(BYTES, rules))
    for index, tokens_BT, length_B in batches(rows):
        answers = [rows[i].answer for i in index] + [None] * (len(length_B) - len(index))
        with clock("grade"):
            verdict_B = program(tokens_BT, length_B, tables, answer_bytes(answers, rules))
            verdicts[index] = np.asarray(verdict_B)[: len(index)]
        told(len(index))


def batches(rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row numbers, bytes (B, T) and lengths (B,) of batches in few shapes; texts of similar length share a batch."""
    sizes = np.array([len(row.output) for row in rows])
    shorter, T = -1, SHORTEST
    while shorter < sizes.max():
        chosen, B = np.flatnonzero((sizes > shorter) & (sizes <= T)), max(1, TOKENS // T)
        for index in np.split(chosen, range(B, len(chosen), B)) if len(chosen) else ():
            padded = b"".join(rows[i].output.ljust(T, b"\0") for i in index).ljust(B * T, b"\0")
            length_B = np.pad(sizes[index], (0, B - len(index))).astype(np.int32)
            yield index, np.frombuffer(padded, np.uint8).reshape(B, T).astype(np.int32), length_B
        shorter, T = T, GROWTH * T


def check(folder: Path, rows: Sequence[Row], lines: Sequence[dict], deadline: float, clock: Clock) -> dict:
    """Writes the rows on which math-verify disagrees to `disagreements.jsonl`, and counts them."""
    outputs, answers = ([text.decode() for text in column] for column in zip(*rows, strict=True))
    with clock("check"), progress.bar(len(rows), "math_verify", "row") as bar:
        said = second_opinion.math_verify(outputs, answers, deadline=deadline, told=bar.update)
    ours = [line["verdict"] == "correct" for line in lines]
    differ = [i for i, other in enumerate(said) if other not in (None, ours[i])]
    write_lines(
        folder / "disagreements.jsonl",
        [{"row": i + 1, "math_verify_correct": said[i], **lines[i], "output": outputs[i]} for i in differ],
    )
    return {
        "math_verify_correct": said.count(True),
        "math_verify_undecided": said.count(None),
        "correct_by_math_verify_alone": sum(bool(said[i]) for i in differ),
        "correct_by_the_rules_alone": sum(not said[i] for i in differ),
    }


def write_lines(path: Path, lines: Sequence[dict]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def describe(row: Row, verdict: int, on_host: bool, grader: Grader) -> dict:
    """A line of `verdicts.jsonl`; answers are null if missing or without a normal form, or where a function judges."""
    if grader.rules is None:
        found = grader.answer(row.output) if grader.answer else None
        forms = found, found, row.answer
    else:
        found = find_answer(row.output, grader.rules)
        forms = found, None if found is None else normal_form(found), normal_form(clean(row.answer, grader.rules))
    extracted, normalised, reference = (None if form is None else form.decode(errors="replace") for form in forms)
    return {
        "verdict": Verdict(verdict).name.lower(),
        "extracted": extracted,
        "normalised": normalised,
        "reference": row.answer.decode(),
        "reference_normalised": reference,
        "decided_by": "host" if on_host else "device",
    }
