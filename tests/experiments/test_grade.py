"""The grading command: against solutions, published labels and the plain rules; and its messages."""

import json

import pytest

from configs import grade as config
from premem_jax.errors import UserError
from premem_jax.experiments import grade
from premem_jax.scoring.reference import grade_bytes
from tests.processes import finish, mistake
from tests.scoring.mutations import Mutator
from tests.scoring.vocabularies import jsonl, solutions

CONFIG = config.__file__


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def graded(folder, task, rows):
    """The summary and the lines of `verdicts.jsonl` for rows of (output, answer)."""
    c = config.get_config(f"task={task}")
    c.data.path = str(write(folder / "rows.jsonl", [dict(output=output, answer=answer) for output, answer in rows]))
    summary = grade.run(c.lock(), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "verdicts.jsonl").open(encoding="utf-8")]
    assert summary == json.loads((folder / "run" / "summary.json").read_text())
    counts = [sum(line["verdict"] == name for line in lines) for name in ("correct", "wrong", "unparsed")]
    assert [summary[name] for name in ("correct", "wrong", "unparsed")] == counts and len(lines) == len(rows)
    assert summary["accuracy"] == counts[0] / sum(counts)
    assert summary["decided_on_host"] == sum(line["decided_by"] == "host" for line in lines)
    return summary, lines


@pytest.mark.parametrize("task, row", [("gsm8k", "answer"), ("math", "solution")])
def test_every_solution_answers_itself_and_not_the_next(task, row, tmp_path):
    """Whole solutions as answers; the answers that are extracted are those of the data."""
    rows = jsonl(f"data/{task}/train.jsonl")
    texts = [row_[row] for row_ in rows]
    finals = [r["answer"] if task == "math" else r["answer"].rpartition("#### ")[2].replace(",", "") for r in rows]
    pairs = [*zip(texts, texts, strict=True), *zip(texts, texts[1:] + texts[:1], strict=True)]
    summary, lines = graded(tmp_path, task, pairs)
    odd = [i for i, line in enumerate(lines[: len(texts)]) if line["extracted"] != finals[i]]
    assert len(odd) == {"gsm8k": 0, "math": 2}[task]  # boxes without braces
    assert [i for i, line in enumerate(lines[: len(texts)]) if line["verdict"] != "correct"] == odd
    assert summary["correct"] < 1.05 * len(texts) and summary["decided_on_host"] == {"gsm8k": 0, "math": 6}[task]
    assert len(rows) * 2 / summary["seconds_grade"] > 20_000 / 60


def test_published_labels_of_hendrycks_rule(tmp_path):
    rows = [row for row in jsonl("data/outputs/math_pairs.jsonl") if row["pred"].count("{") == row["pred"].count("}")]
    _, lines = graded(tmp_path, "math", [(rf"So $\boxed{{{row['pred']}}}$.", row["gt"]) for row in rows])
    assert len(rows) > 430
    assert [line["verdict"] == "correct" for line in lines] == [row["hendrycks_is_equiv"] for row in rows]


@pytest.mark.parametrize("task", [pytest.param("gsm8k", marks=pytest.mark.slow), "math"])
def test_odd_texts_get_the_verdict_of_the_plain_rules(task, tmp_path):
    """Mutated texts of any length, also far beyond what other tests give the kernel, against final answers."""
    texts, answers = Mutator(solutions(task)[:500], task, seed=4).pairs(2000)
    texts = [text.decode(errors="ignore") for text in texts]
    texts[:40] = [12 * i * "long words " + text for i, text in enumerate(texts[:40])]
    answers = [(answer or b"").decode(errors="ignore").replace("#", "").replace("box", "") for answer in answers]
    summary, lines = graded(tmp_path, task, list(zip(texts, answers, strict=True)))
    for line, text, answer in zip(lines, texts, answers, strict=True):
        expected = grade_bytes(text.encode(), answer.encode(), task)
        assert line["verdict"] == expected.name.lower(), (text, answer)
    assert 0 < summary["decided_on_host"] < 0.1 * len(texts) and summary["unparsed"] and summary["correct"] > 300


def test_a_line_says_what_was_compared(tmp_path):
    rows = [(r"\boxed{\frac12}", r"thus $\boxed{0.5}$"), ("none", "1"), (r"\boxed{\sqrt}", "é")]
    _, lines = graded(tmp_path, "math", rows)
    names = ("verdict", "extracted", "normalised", "reference", "reference_normalised", "decided_by")
    assert [tuple(line[name] for name in names) for line in lines] == [
        ("correct", r"\frac12", r"\frac{1}{2}", "0.5", r"\frac{1}{2}", "device"),
        ("unparsed", None, None, "1", "1", "device"),
        ("wrong", r"\sqrt", None, "é", "é", "device"),
    ]


GOOD = '{"output": "#### 1", "answer": "1"}'


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["rows.jsonl", "empty", "{output, answer}"]),
        (f"{GOOD}\n{{", ["rows.jsonl:2", "JSON"]),
        (f"{GOOD}\n\n{GOOD}\n", ["rows.jsonl:2"]),
        (f'{GOOD}\n{GOOD}\n{{"output": "1"}}', ["rows.jsonl:3", "'answer'"]),
        ('{"output": "1", "answer": 1}', ["rows.jsonl:1", "strings"]),
        ('{"output": "\\ud800", "answer": "1"}', ["rows.jsonl:1", "Unicode"]),
        ('{"output": "1", "answer": "no number ####"}', ["rows.jsonl:1", "#### N"]),
        ("[]", ["rows.jsonl:1", "{output, answer}"]),
        (None, ["rows.jsonl", "No such file"]),
    ],
)
def test_wrong_files_are_named_with_file_and_line(text, words, tmp_path):
    c = config.get_config()
    c.data.path = str(tmp_path / "rows.jsonl")
    if text is not None:
        (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        grade.run(c, tmp_path / "run")
    assert [word for word in words if word not in str(error.value)] == [], error.value
    assert not (tmp_path / "run").exists()


def test_an_unclosed_box_is_no_answer_to_grade_by(tmp_path):
    c = config.get_config("task=math")
    c.data.path = str(write(tmp_path / "rows.jsonl", [dict(output="1", answer=r"so \boxed{1")]))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the last box is never closed"):
        grade.run(c, tmp_path / "run")


def test_the_command_and_its_mistakes(tmp_path):
    path = write(tmp_path / "rows.jsonl", [dict(output="#### 1,000", answer="1000"), dict(output="2", answer="3")])
    folders = f"--workdir={tmp_path / 'run'}", f"--config.cache={tmp_path / 'cache'}"
    done = finish(f"--config.data.path={path}", *folders, config=f"{CONFIG}:task=gsm8k")
    assert done.returncode == 0, done.stderr
    assert "50.0% of 2 correct, 1 without an answer" in done.stdout
    assert "another config" in mistake(finish(f"--config.data.path={path}", *folders, config=f"{CONFIG}:task=math"))
    assert "data.path is empty" in mistake(finish(*folders, config=CONFIG))
    assert "data.task='gsm'" in mistake(finish(*folders, config=f"{CONFIG}:task=gsm"))
