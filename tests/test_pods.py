"""Runs of several real processes: they do what one does, stop together, and continue with fewer."""

import signal
import sys

import numpy as np
import pytest

from tests.pod import assert_close, pod, run_pod, texts
from tests.processes import LAST, Run

# Many small batches, so that there is time to stop between them; the files do not depend on it.
SMALL = "--config.evals.train_accuracy.batch=8"


def test_processes_agree_and_hold_their_own_rows(tmp_path):
    """`tests/talk.py` in three processes."""
    command = [sys.executable, "-m", "tests.talk", str(tmp_path / "unfinished.npz")]
    with pod(3, command, tmp_path) as processes:
        assert [process.wait(timeout=120) for process in processes] == [0, 0, 0], texts(tmp_path)
    said = [text.splitlines()[-1].split(";") for text in texts(tmp_path)]
    continued, once, agreed, differed, mistakes, rows, sums = zip(*said, strict=True)
    assert set(continued) == {"3"}  # rows of an evaluation that process 0 finds finished, and clears at once
    assert set(once) == {"[1, 'two', 0]"}  # process 0's
    assert set(agreed) == {"True"} and set(differed) == {"False"} and set(mistakes) == {"mend it"}
    assert [list(map(int, part.split())) for part in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert set(sums) == {str(float(np.sum(np.arange(12.0) ** 2)))}  # of a batch of which each process made its rows


@pytest.mark.slow
def test_one_process_runs_a_python_grader_and_tells_the_others(tmp_path):
    """`tests/grade_apart.py` in two processes, whose functions would not agree; both end when it fails."""
    with pod(2, [sys.executable, "-m", "tests.grade_apart"], tmp_path) as processes:
        assert [process.wait(timeout=240) for process in processes] == [0, 0], texts(tmp_path)
    said = [text.splitlines()[-1].split(";") for text in texts(tmp_path)]
    (first, second), *told = zip(*said, strict=True)
    assert (first, second) == ("26", "0")  # two responses to each of 13 examples
    assert all(one == other for one, other in told), said
    correct, verdicts, message = (one for one, _ in told)
    assert correct == str([1] * 13) and "'correct'" in verdicts and "'wrong'" in verdicts
    assert message.startswith("grader __main__.fails: KeyError: ")


@pytest.mark.slow
def test_two_processes_stop_in_an_evaluation_and_one_continues(straight, tmp_path):
    """SIGTERM to one stops both with everything saved; rows that were sampled are not sampled again."""
    run = Run(tmp_path / "run", straight.cache)
    steps, status = run.workdir / "trace", []

    def stop(processes):
        processes[1].send_signal(signal.SIGTERM)

    ended, said = run_pod(
        2, run, SMALL, logs=tmp_path / "logs", when=lambda: run.has("trace/step-00000004.parquet"), then=stop
    )
    assert ended == [75, 75], said
    assert "run the same command again" in said[0] and "Traceback" not in "".join(said)
    assert len(run.saved) >= 1 and not run.has("summary.json"), status
    stood = run.saved[-1]
    if run.has("unfinished.npz"):
        with np.load(run.workdir / "unfinished.npz") as file:
            assert int(file["step"]) == stood
    before = {path.name: path.stat().st_mtime_ns for path in steps.iterdir()}
    run.finish(SMALL)
    assert {name: (steps / name).stat().st_mtime_ns for name in before} == before  # made once
    assert_close(run, straight)


def test_a_mistake_ends_all_processes_with_one_message_each(straight, tmp_path):
    run = Run(tmp_path / "run", straight.cache)
    ended, said = run_pod(2, run, "--config.train.batch=7", logs=tmp_path / "logs")
    assert ended == [2, 2], said
    assert all(text.count("error: ") == 1 and "train.batch" in text and "Traceback" not in text for text in said), said


@pytest.mark.slow
def test_four_then_two_then_one(straight, tmp_path):
    """All of four are killed after a checkpoint, one of two after the next evaluation; nothing is lost or doubled."""
    run = Run(tmp_path / "run", straight.cache)

    def kill(*which):
        return lambda processes: [processes[i].kill() for i in which]

    ended, said = run_pod(4, run, logs=tmp_path / "4", when=lambda: 4 in run.saved, then=kill(0, 1, 2, 3))
    assert ended == [-9] * 4, said
    ended, said = run_pod(
        2, run, logs=tmp_path / "2", when=lambda: run.has("trace/step-00000005.parquet"), then=kill(1)
    )
    assert ended[1] == -9 and ended[0] not in (0, 2, 75), said  # process 0 notices and ends
    assert "Traceback" not in said[0] and (ended[0] != 1 or said[0].count("error: another process is gone") == 1), said
    run.finish()
    assert_close(run, straight)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(straight, tmp_path):
    """From the beginning to the end, the base model included."""
    run = Run(tmp_path / "run", tmp_path / "cache")
    ended, said = run_pod(2, run, logs=tmp_path / "logs")
    assert ended == [0, 0], said
    assert_close(run, straight)
    assert run.saved == straight.saved == [8, LAST]
