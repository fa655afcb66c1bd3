"""Studies: what members are given of earlier ones, failures, launches side by side, and one conclusion.

The members grade short files, which is a run like any other and takes a second.
"""

import json
import subprocess
import sys
import textwrap

import pytest
from ml_collections import ConfigDict

from premem_jax import config as defaults
from premem_jax.errors import UserError
from premem_jax.experiments import studies
from premem_jax.running.lease import lease
from premem_jax.running.workdir import default_workdir
from premem_jax.training.phase import NonFiniteLoss
from tests.configs import tiny_sweep
from tests.processes import ENVIRONMENT, command

ROWS = [("#### 4", "4"), ("#### 5", "4"), ("#### 6", "6"), ("no answer", "1")]


def config(tmp_path, **study):
    """Two files graded, and of the first those rows that are wrong, graded again."""
    for name, rows in dict(all=ROWS, half=ROWS[:2]).items():
        lines = (json.dumps(dict(output=output, answer=answer)) + "\n" for output, answer in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    data = dict(task="gsm8k", path="", grader="")
    base = ConfigDict(dict(experiment="grade", cache="", data=data, check="", deadline=10.0))
    grade = {"experiment": "grade"}
    members = [
        ("all", grade | {"data.path": str(tmp_path / "all.jsonl")}, ()),
        ("half", grade | {"data.path": str(tmp_path / "half.jsonl")}, ()),
        ("wrong", grade, ("all",)),
    ]
    members = [(f"of-{name}", changes, tuple(f"of-{need}" for need in needs)) for name, changes, needs in members]
    c = defaults.study("graded", base, members)
    c.study.update(study)
    return c


def wrong_rows(member, earlier, files):
    """What the member is given: the rows that the earlier one found wrong."""
    [folder] = earlier.values()
    lines = (folder / "verdicts.jsonl").read_text().splitlines()
    kept = [row for row, line in zip(ROWS, lines, strict=True) if json.loads(line)["verdict"] != "correct"]
    text = "".join(json.dumps(dict(output=output, answer=answer)) + "\n" for output, answer in kept)
    (files / "rows.jsonl").write_text(text)
    return {"data.path": str(files / "rows.jsonl")}


def run(c, folder, give=wrong_rows, conclude=lambda rows, failed: {"made": list(rows)}):
    return studies.run(c, folder, columns={"accuracy": ".1%"}, conclude=conclude, give=give)


def refuse(*_):
    raise AssertionError("asked again")


def test_members_are_given_what_earlier_ones_made_and_a_finished_study_is_left_alone(tmp_path, capsys):
    c = config(tmp_path)
    summary = run(c, tmp_path / "study")
    accuracies = {name: row["accuracy"] for name, row in summary["runs"].items()}
    assert accuracies == {"of-all": 0.5, "of-half": 0.5, "of-wrong": 0.0} and summary["failed"] == {}
    assert summary["made"] == [*accuracies]
    assert json.loads((tmp_path / "study" / "runs" / "of-wrong" / "summary.json").read_text())["rows"] == 2
    overview = json.loads((tmp_path / "study" / "overview.json").read_text())["members"]
    assert [(row["name"], row["state"], row["accuracy"]) for row in overview] == [
        (name, "finished", value) for name, value in accuracies.items()
    ]
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in said if line[:1] == ["of-wrong"]] == [["of-wrong", "0.0%"]]
    assert run(c, tmp_path / "study", give=refuse, conclude=refuse) == summary
    harmed = [tmp_path / "study" / "runs" / "of-wrong" / "summary.json", tmp_path / "study" / "summary.json"]
    for path in harmed:
        path.write_text(path.read_text().replace("0.", "1."))
    made = run(c, tmp_path / "study", give=refuse)["runs"]
    assert made == summary["runs"] and all((path.parent / "unreadable" / "summary.json-0").exists() for path in harmed)
    (tmp_path / "study" / "summary.json").unlink()
    assert run(c, tmp_path / "study", give=refuse, conclude=lambda *_: {"made": 0})["made"] == 0


def test_what_was_given_is_given_again(tmp_path, monkeypatch):
    """A launch that ended between giving and making; the next one is not asked, nor does it choose anew."""
    from premem_jax.experiments import grade

    real = grade.run

    def killed(c, folder):
        if folder.name == "of-wrong":
            raise KeyboardInterrupt
        return real(c, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grade, "run", killed)
        run(config(tmp_path), tmp_path / "study")
    given = tmp_path / "study" / "members" / "of-wrong" / "given.json"
    assert json.loads(given.read_text())["needs"] == ["of-all"]
    rows = given.parent / "rows.jsonl"
    whole = rows.read_text()
    rows.write_text(whole.replace('"4"', '"5"'))  # which would be right
    with pytest.raises(AssertionError, match="asked again"):
        run(config(tmp_path), tmp_path / "study", give=refuse)
    assert (rows.parent / "unreadable" / "rows.jsonl-0").exists()
    rows.write_text(whole)
    assert run(config(tmp_path), tmp_path / "study", give=refuse)["runs"]["of-wrong"]["accuracy"] == 0.0


def test_a_member_in_other_hands_is_left_to_them_and_the_last_one_concludes(tmp_path, capsys):
    folder = tmp_path / "study"
    run(config(tmp_path, member="of-all"), folder)
    with lease(folder / "members" / "of-half"):
        assert run(config(tmp_path), folder, conclude=refuse) is None
        assert sorted(path.parent.name for path in folder.glob("runs/*/summary.json")) == ["of-all", "of-wrong"]
        assert "still to be made, here or by other launches: of-half" in capsys.readouterr().out
    assert list(run(config(tmp_path, member="of-half"), folder)["runs"]) == ["of-all", "of-half", "of-wrong"]


def test_a_launch_for_one_member_makes_what_it_needs_and_nothing_else(tmp_path):
    folder = tmp_path / "study"
    assert run(config(tmp_path, member="of-wrong"), folder, conclude=refuse) is None
    overview = json.loads((folder / "overview.json").read_text())["members"]
    assert [row["state"] for row in overview] == ["finished", "not begun", "finished"]
    assert not (folder / "runs" / "of-half").exists()
    assert run(config(tmp_path), folder)["failed"] == {}


def test_a_failure_is_named_with_those_that_need_it_and_not_tried_again(tmp_path, monkeypatch, caplog):
    from premem_jax.experiments import grade

    real = grade.run

    def not_finite(c, folder):
        if folder.name == "of-all":
            folder.mkdir(parents=True)
            raise NonFiniteLoss("the loss is nan")
        return real(c, folder)

    monkeypatch.setattr(grade, "run", not_finite)
    summary = run(config(tmp_path), tmp_path / "study")
    assert summary["failed"] == {"of-all": "the loss is nan", "of-wrong": "it needs of-all, which failed"}
    assert list(summary["runs"]) == ["of-half"] and "run of-all is left out: the loss is nan" in caplog.text
    monkeypatch.setattr(grade, "run", refuse)
    assert run(config(tmp_path), tmp_path / "study") == summary


LAUNCH = """
import sys
from pathlib import Path
from tests.experiments import test_studies as t
folder = Path(sys.argv[1])
conclude = lambda rows, failed: print("concluded", flush=True) or {}
t.run(t.config(folder), folder / "study", conclude=conclude)
"""


def test_two_launches_share_the_members(tmp_path):
    """Whichever ends first may leave; the study is concluded once, with all members, each made once."""
    arguments = [sys.executable, "-c", textwrap.dedent(LAUNCH), tmp_path]
    pipes = dict(env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen(arguments, **pipes) for _ in range(2)]
    ends = [(process.communicate(timeout=240), process.returncode) for process in both]
    assert [status for _, status in ends] == [0, 0], ends
    assert sum(out.count("concluded\n") for (out, _), _ in ends) == 1
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert {name: row["accuracy"] for name, row in summary["runs"].items()} == {
        "of-all": 0.5,
        "of-half": 0.5,
        "of-wrong": 0.0,
    }
    assert not [*tmp_path.glob("study/**/in_use*.json")]


@pytest.mark.slow
def test_two_launches_of_a_sweep(tmp_path):
    """The program itself: one launch for the last member, one for all."""
    arguments = f"--config.cache={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}"
    commands = [command([*arguments, f"--config.study.member={name}"], tiny_sweep.__file__) for name in ("fast", "all")]
    both = [subprocess.Popen(each, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) for each in commands]
    ends = [(process.communicate(timeout=600)[1], process.returncode) for process in both]
    assert [status for _, status in ends] == [0, 0], ends
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["runs"]) == ["slow", "fast"] and list(summary["failed"]) == ["wild"]
    assert sum("run wild is left out" in stderr for stderr, _ in ends) >= 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "there must be some"),
        ([("a", {}, ()), ("a", {}, ())], "'a' is no name for another member"),
        ([("../a", {}, ())], r"'\.\./a' is no name"),
        ([("all", {}, ())], "'all' is no name"),
        ([("a", {}, ("b",)), ("b", {}, ())], "a needs 'b', which is no member before it"),
    ],
)
def test_lists_that_make_no_sense(tmp_path, members, message):
    c = defaults.study("graded", ConfigDict(), members)
    with pytest.raises(UserError, match=message):
        run(c, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_an_unknown_member_is_told_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"study.member='of-al' is no member; did you mean 'of-all'\? .*of-half"):
        run(config(tmp_path, member="of-al"), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_choosing_a_member_makes_no_other_study(tmp_path):
    assert default_workdir("a.py", {"study.member": "x"}) == default_workdir("a.py", {})
    run(config(tmp_path, member="of-half"), tmp_path / "study")
    with pytest.raises(UserError, match=r"another config.*deadline"):
        other = config(tmp_path)
        other.deadline = 1.0
        run(other, tmp_path / "study")
