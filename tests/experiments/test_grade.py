"""The grading command: against solutions, published labels and the plain rules; and its messages."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import grade as config
from premem_jax.errors import UserError
from premem_jax.experiments import grade
from premem_jax.grading.reference import grade_bytes
from premem_jax.running import sealed
from tests.grading.mutations import Mutator
from tests.grading.vocabularies import jsonl, solutions
from tests.processes import attempts, finish, mistake

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
    assert summary == sealed.read_json(folder / "run" / "summary.json")
    counts = [sum(line["verdict"] == name for line in lines) for name in ("correct", "wrong", "unparsed")]
    assert [summary[name] for name in ("correct", "wrong", "unparsed")] == counts and len(lines) == len(rows)
    assert summary["accuracy"] == counts[0] / sum(counts)
    assert summary["decided_on_host"] == sum(line["decided_by"] == "host" for line in lines)
    return summary, lines


def solution_pairs(task):
    """Every training solution against itself, and against that of the next problem."""
    texts = [row[{"gsm8k": "answer", "math": "solution"}[task]] for row in jsonl(f"data/{task}/train.jsonl")]
    return [*zip(texts, texts, strict=True), *zip(texts, texts[1:] + texts[:1], strict=True)]


def odd_pairs(task):
    """Mutated texts, some of them far beyond the lengths that other tests give the kernel, and final answers."""
    texts, answers = Mutator(solutions(task)[:500], task, seed=4).pairs(2000)
    texts = [text.decode(errors="ignore") for text in texts]
    texts[:40] = [12 * i * "long words " + text for i, text in enumerate(texts[:40])]
    answers = [(answer or b"").decode(errors="ignore").replace("#", "").replace("box", "") for answer in answers]
    pairs = zip(texts, answers, strict=True)
    return [
        (text, answer) for text, answer in pairs if task == "math" or [answer.strip()] == answer.splitlines() != [""]
    ]


def labelled_pairs():
    """The balanced pairs whose verdicts by Hendrycks' rule are published, and these."""
    rows = [row for row in jsonl("data/outputs/math_pairs.jsonl") if row["pred"].count("{") == row["pred"].count("}")]
    pairs = [(rf"So $\boxed{{{row['pred']}}}$.", row["gt"]) for row in rows]
    return pairs, [row["hendrycks_is_equiv"] for row in rows]


EXAMPLES = [
    (r"\boxed{\frac12}", r"thus $\boxed{0.5}$"),
    ("none", "1"),
    (r"\boxed{\sqrt}", "é"),
]


@pytest.fixture(scope="module")
def math(tmp_path_factory):
    """The lines of one run over all of these, by kind."""
    kinds = dict(
        solutions=solution_pairs("math"), odd=odd_pairs("math"), labelled=labelled_pairs()[0], examples=EXAMPLES
    )
    _, lines = graded(tmp_path_factory.mktemp("math"), "math", [pair for pairs in kinds.values() for pair in pairs])
    rest = iter(lines)
    return {kind: [next(rest) for _ in pairs] for kind, pairs in kinds.items()}


def check_solutions(task, lines):
    """A solution is its own answer, which is that of the data; few have the answer of the next one."""
    rows = jsonl(f"data/{task}/train.jsonl")
    finals = [r["answer"] if task == "math" else r["answer"].rpartition("#### ")[2].replace(",", "") for r in rows]
    odd = [i for i, final in enumerate(finals) if lines[i]["extracted"] != final]
    assert len(odd) == {"gsm8k": 0, "math": 2}[task]  # boxes without braces
    assert [i for i in range(len(rows)) if lines[i]["verdict"] != "correct"] == odd
    assert sum(line["verdict"] == "correct" for line in lines) < 1.05 * len(rows)
    assert sum(line["decided_by"] == "host" for line in lines) == {"gsm8k": 0, "math": 6}[task]


def check_odd(task, lines):
    pairs = odd_pairs(task)
    for line, (text, answer) in zip(lines, pairs, strict=True):
        assert line["verdict"] == grade_bytes(text.encode(), answer.encode(), task).name.lower(), (text, answer)
    assert {line["verdict"] for line in lines} == {"correct", "wrong", "unparsed"}
    assert 0 < sum(line["decided_by"] == "host" for line in lines) < 0.1 * len(lines)


def test_every_solution_of_math(math):
    check_solutions("math", math["solutions"])


def test_odd_texts_get_the_verdict_of_the_plain_rules(math):
    check_odd("math", math["odd"])


def test_published_labels_of_hendrycks_rule(math):
    labels = labelled_pairs()[1]
    assert len(labels) > 430 and [line["verdict"] == "correct" for line in math["labelled"]] == labels


def test_a_line_says_what_was_compared(math):
    names = ("verdict", "extracted", "normalised", "reference", "reference_normalised", "decided_by")
    assert [tuple(line[name] for name in names) for line in math["examples"]] == [
        ("correct", r"\frac12", r"\frac{1}{2}", "0.5", r"\frac{1}{2}", "device"),
        ("unparsed", None, None, "1", "1", "device"),
        ("wrong", r"\sqrt", None, "é", "é", "device"),
    ]


def test_every_solution_of_gsm8k(tmp_path):
    check_solutions("gsm8k", graded(tmp_path, "gsm8k", solution_pairs("gsm8k"))[1])


@pytest.mark.slow
def test_odd_texts_by_the_rules_of_gsm8k(tmp_path):
    check_odd("gsm8k", graded(tmp_path, "gsm8k", odd_pairs("gsm8k"))[1])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from([0, 1, 511, 512, 513, 2048, 2049, 9000]), min_size=1, max_size=40))
def test_batches_hold_each_row_once(sizes):
    rows = [grade.Row(bytes([i]) * size, b"") for i, size in enumerate(sizes, start=1)]
    seen = {}
    for index, tokens_BT, length_B in grade.batches(rows):
        assert len(index) <= len(tokens_BT) == len(length_B) and not length_B[len(index) :].any()
        for i, row, length in zip(index, tokens_BT, length_B, strict=False):
            assert i not in seen and not row[length:].any()
            seen[i] = bytes(row[:length].astype("uint8"))
    assert seen == {i: row.output for i, row in enumerate(rows)}


GOOD = '{"output": "#### 1", "answer": "1"}'


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["rows.jsonl", "empty"]),
        (f"{GOOD}\n{{", ["rows.jsonl:2", "JSON"]),
        (f'{GOOD}\n{GOOD}\n{{"output": "1"}}', ["rows.jsonl:3", "not a row {answer} as the others", "it has output"]),
        ('{"output": 1, "answer": 1}', ["rows.jsonl:1", "output must be a text"]),
        ('{"output": "\\ud800", "answer": "1"}', ["rows.jsonl:1", "surrogate"]),
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


def test_own_rows_are_graded_by_name_as_in_a_finetune(tmp_path):
    """Whatever their form, the answers are those that `data.task=jsonl` finds."""
    said = ["so 1,234", "about 7", "no idea"]
    target = "the sum is 1234"
    for row in ({"question": "a", "answer": target}, {"prompt": "a", "target": f" {target}"}, {"answer": 1234}):
        c = config.get_config()
        c.data.update(grader="number", path=str(write(tmp_path / "rows.jsonl", [row | {"output": o} for o in said])))
        folder = tmp_path / str(len(row)) / next(iter(row))
        summary = grade.run(c.lock(), folder)
        lines = [json.loads(line) for line in (folder / "verdicts.jsonl").open(encoding="utf-8")]
        assert [(line["verdict"], line["extracted"], line["reference"]) for line in lines] == [
            ("correct", "1234", "1234"),
            ("wrong", "7", "1234"),
            ("unparsed", None, "1234"),
        ]
        assert summary["grader"] == "number" and summary["decided_on_host"] == 3


def test_a_function_that_fails_is_named_with_its_row(tmp_path):
    (tmp_path / "mine.py").write_text("def same(response, answer):\n    return int(response) == int(answer)\n")
    c = config.get_config()
    rows = [dict(output=output, answer="4") for output in ("4", "four")]
    c.data.update(grader=f"python:{tmp_path / 'mine.py'}:same", path=str(write(tmp_path / "rows.jsonl", rows)))
    with pytest.raises(UserError, match=r"same: ValueError: .*; row 2, response 'four'"):
        grade.run(c, tmp_path / "run")
    c.data.grader = "none"
    with pytest.raises(UserError, match=r"data.grader='none' grades nothing"):
        grade.run(c, tmp_path / "run")


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
    mistakes = {
        "another config": [f"--config={CONFIG}:task=math", f"--config.data.path={path}"],
        "data.path is empty": [f"--config={CONFIG}"],
        "data.task='gsm'": [f"--config={CONFIG}:task=gsm"],
    }
    for words, done in zip(mistakes, attempts([*arguments, *folders] for arguments in mistakes.values()), strict=True):
        assert words in mistake(done)
