"""The supervisor over real processes: small Python programs that end in all the ways a run can."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import supervise

ROOT = Path(__file__).parents[2]
# Each process writes ROUND.NUMBER with its coordinator and what it was started with, then does its part.
BEGIN = """
import os, pathlib, signal, subprocess, sys, time
number = os.environ.get("PREMEM_PROCESS", "0")
here = pathlib.Path(sys.argv[1])
round = len(list(here.glob(f"*.{number}"))) + 1
(here / f"{round}.{number}").write_text(f"{os.getpid()} {os.environ.get('PREMEM_COORDINATOR')}")
def wait_for(name):
    while not (here / name).exists():
        time.sleep(0.01)
"""


def start(folder, program: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch.supervise", "--backoff=0.05", *options]
    return subprocess.Popen(
        [*command, "--", sys.executable, "-c", BEGIN + program, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, program: str, *options: str) -> tuple[int, str, str]:
    process = start(folder, program, *options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(pid: str) -> bool:
    """Whether no such process runs any more; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_all_processes_begin_again_with_a_new_coordinator_when_one_fails(tmp_path):
    program = """
print("number", number, "of", os.environ["PREMEM_PROCESSES"], flush=True)
print("complaint", file=sys.stderr, flush=True)
if round == 1:
    if number != "1":
        time.sleep(60)
    wait_for("1.0"), wait_for("1.2")
    sys.exit(7)
"""
    code, out, err = run(tmp_path, program, "--processes=3")
    assert code == 0 and err.endswith("supervise: finished: round 2 ended with 0\n")
    assert "supervise: round 1 ended with 7, failed; the next begins in 0.05 s" in err
    assert files(tmp_path) == ["1.0", "1.1", "1.2", "2.0", "2.1", "2.2"]
    coordinators = [{(tmp_path / f"{r}.{n}").read_text().split()[1] for n in range(3)} for r in (1, 2)]
    assert [len(each) for each in coordinators] == [1, 1] and coordinators[0] != coordinators[1]
    second = out.splitlines()[-3:]
    assert sorted(second) == [f"[{n}] number {n} of 3" for n in range(3)]
    assert {"[0] complaint", "[1] complaint", "[2] complaint"} <= set(err.splitlines())


def test_a_mistake_ends_it_even_where_another_process_failed_first(tmp_path):
    program = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
if number == "0":
    wait_for("ready")
    sys.exit(134)
(here / "ready").touch()
time.sleep(60)
"""
    code, _, err = run(tmp_path, program, "--processes=2")
    assert code == 2 and "gave up: round 1 ended with 2, which a restart cannot fix" in err
    assert files(tmp_path) == ["1.0", "1.1", "ready"]


@pytest.mark.parametrize(("made", "rounds"), [("str(round)", 6), ("f'{round}.tmp'", 2), ("'same'", 3)])
def test_only_rounds_without_progress_count(tmp_path, made, rounds):
    watched = tmp_path / "watched"
    program = f"(here / 'watched').mkdir(exist_ok=True); (here / 'watched' / {made}).touch(); sys.exit(round < 6)"
    code, _, err = run(tmp_path, program, "--max_failures=2", f"--watch={watched}")
    assert len(list(tmp_path.glob("*.0"))) == rounds
    assert code == (rounds < 6)
    assert ("gave up" in err and "failure number 2 in a row without progress" in err) == (rounds < 6)


def test_a_folder_that_cannot_be_read_is_no_progress_and_no_end(tmp_path):
    (tmp_path / "watched").touch()
    code, _, err = run(tmp_path, "sys.exit(1)", "--max_failures=2", f"--watch={tmp_path}/watched")
    assert code == 1 and "failure number 2 in a row without progress" in err
    assert f"supervise: --watch={tmp_path}/watched cannot be read: [Errno 20] Not a directory" in err


def test_a_preemption_is_no_failure(tmp_path):
    code, _, err = run(tmp_path, "sys.exit(75 if round < 4 else 0)", "--max_failures=1")
    assert code == 0 and err.count("ended with 75, preempted") == 3 and "finished: round 4" in err


def test_what_our_own_sigterm_does_to_the_others_is_not_taken_for_a_preemption(tmp_path):
    program = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if number == "0":
    wait_for(f"ready{round}")
    os.kill(os.getpid(), signal.SIGKILL)
(here / f"ready{round}").touch()
time.sleep(60)
"""
    code, _, err = run(tmp_path, program, "--processes=2", "--max_failures=2")
    assert code == 137 and "gave up: round 2 ended with 137" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_processes_and_no_other_round_begins(tmp_path, number):
    program = """
def save(*_):
    (here / f"saved{number}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(here / f"ready{number}").touch()
time.sleep(60)
"""
    process = start(tmp_path, program, "--processes=2")
    until(lambda: {"ready0", "ready1"} <= set(files(tmp_path)))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and f"stopped by {number.name}: round 1 ended with 75" in err
    assert files(tmp_path) == ["1.0", "1.1", "ready0", "ready1", "saved0", "saved1"]


def test_a_signal_ends_the_wait_between_rounds(tmp_path):
    process = start(tmp_path, "sys.exit(3)", "--backoff=50")
    for line in process.stderr:
        if "begins in 50 s" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3 and "stopped by SIGTERM" in err and files(tmp_path) == ["1.0"]


def test_nothing_is_left_of_processes_that_ignore_sigterm_or_hang_or_have_children(tmp_path):
    program = """
child = subprocess.Popen(["sh", "-c", "trap '' TERM; exec sleep 600"])
(here / f"child{number}").write_text(str(child.pid))
if number == "0":
    wait_for("ready1"), wait_for("stopping2"), time.sleep(0.2)
    sys.exit(1)
if number == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (here / "ready1").touch()
    while True:
        time.sleep(1)
(here / "stopping2").touch()
os.kill(os.getpid(), signal.SIGSTOP)
"""
    code, _, err = run(tmp_path, program, "--processes=3", "--max_failures=1", "--grace=0.3")
    assert code == 1 and "gave up: round 1 ended with 1" in err
    pids = [(tmp_path / f"1.{n}").read_text().split()[0] for n in range(3)]
    pids += [(tmp_path / f"child{n}").read_text() for n in range(3)]
    until(lambda: all(gone(pid) for pid in pids))


def test_one_process_keeps_the_environment_and_the_output(tmp_path):
    code, out, _ = run(tmp_path, "print(os.environ.get('PREMEM_PROCESSES'), end='')")
    assert (code, out) == (0, str(os.environ.get("PREMEM_PROCESSES")))


def test_the_wait_doubles_from_the_first_to_the_longest():
    waits = [supervise.wait_seconds(failures, 2) for failures in range(1, 12)]
    assert waits[:4] == [2, 4, 8, 16] and waits == sorted(waits)
    assert waits[-1] == supervise.wait_seconds(10**6, 2) == supervise.LONGEST_WAIT == 300
    assert supervise.wait_seconds(0, 2) == 2  # after a preemption


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command; write it behind --"),
        (["--processes=0", "--", "true"], "at least 1"),
        (["--", "no-such-program"], "cannot start no-such-program: No such file"),
    ],
)
def test_mistakes_of_the_command_line_are_one_line(arguments, message):
    command = [sys.executable, "-m", "launch.supervise", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and re.fullmatch(rf"error: .*{re.escape(message)}.*\n", done.stderr)
