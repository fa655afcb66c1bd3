"""A training phase: its loop with updates that only count, and whole phases that follow one another."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from premem_jax.data.reader import train_batches
from premem_jax.errors import Stopped
from premem_jax.running.programs import Clock, Profile
from premem_jax.training.losses import NextToken
from premem_jax.training.metrics import Metrics
from premem_jax.training.phase import Loop, NonFiniteLoss, Phase
from premem_jax.training.step import weights
from tests import tiny


class Recorder:
    """A trainer, checkpoints and evaluators that only count; remembers the order of events."""

    def __init__(self, bad_step=None):
        self.events, self.bad_step, self.updates = [], bad_step, None
        self.loss, self.mesh, self.clock = NextToken(), tiny.one_device(), Clock()

    def program(self, state, arrays, rate):
        self.updates = step = (state["step"] if self.updates is None else self.updates) + 1
        assert set(arrays) == {"tokens", "weights"} and arrays["tokens"][0, 0] == step
        good = state["good"] and step != self.bad_step
        self.events.append(("update", step, float(rate)))
        values = {"loss": 1 / step if step != self.bad_step else np.nan, "grad_norm": 2.0, "tokens": 3.0}
        return state | {"params": step, "step": step if good else state["step"], "good": good}, values

    def save(self, step, state):
        self.events.append(("save", step, state["step"]))

    def evaluate(self, step, trained):
        self.events.append(("evaluate", step, trained[""]()))
        return {"accuracy": step / 10} if step == 3 else None


def run(recorder, folder, start=0, steps=7, batches_to=7, **options):
    def batches(start, stop):
        for t in range(start, batches_to):
            arrays = {"tokens": np.full((2, 3), t + 1), "weights": np.ones((2, 3)), "of no use": np.zeros(2)}
            yield np.array([10 * t, -1]), arrays

    settings = dict(save_every=3, keep=1, log_every=2, evaluation_steps=(0, 3, 5), evaluate=recorder.evaluate)
    rate = lambda step: 100.0 + step
    metrics = Metrics(folder, start)
    phase = Phase("test", folder, recorder, steps, batches, rate, **settings | options)
    Loop(phase, recorder, metrics).run({"params": start, "step": start, "good": True})
    metrics.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_order_of_updates_checkpoints_and_evaluations(tmp_path):
    """Step t is trained at the rate of t - 1 updates; a checkpoint comes before the evaluation of its step."""
    recorder = Recorder()
    rows = run(recorder, tmp_path)
    updates = [event[1:] for event in recorder.events if event[0] == "update"]
    assert updates == [(step, 99.0 + step) for step in range(1, 8)]
    others = [event for event in recorder.events if event[0] != "update"]
    assert others == [
        ("evaluate", 0, 0),
        *[("save", 3, 3), ("evaluate", 3, 3)],
        ("evaluate", 5, 5),
        *[("save", 6, 6), ("save", 7, 7)],
    ]
    assert recorder.events.index(("save", 3, 3)) < recorder.events.index(("update", 4, 103.0))
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 7]
    assert rows.pop(1) == {"step": 3, "accuracy": 0.3}
    for row in rows:
        t, same = row["step"], {"grad_norm": 2.0, "tokens": 3.0}
        assert row == {"step": t, "loss": 1 / t, "learning_rate": 99.0 + t} | same


def test_begins_at_the_step_of_the_state(tmp_path):
    recorder = Recorder()
    rows = run(recorder, tmp_path, start=5)
    assert recorder.events[0] == ("evaluate", 5, 5)
    assert [event[1] for event in recorder.events if event[0] == "update"] == [6, 7]
    assert [row["step"] for row in rows] == [6, 7]


@pytest.mark.parametrize("bad", [4, 6, 7])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, bad):
    """The error names the step and its examples, not padding; the last good state is evaluated, no bad one saved."""
    recorder = Recorder(bad_step=bad)
    with pytest.raises(NonFiniteLoss, match=f"step {bad}: loss nan.* examples {10 * (bad - 1)}\\. ") as error:
        run(recorder, tmp_path)
    assert "-1" not in str(error.value)
    assert recorder.events[-1][:2] == ("evaluate", bad - 1)
    assert all(saved <= bad - 1 for kind, saved, _ in recorder.events if kind == "save")
    assert max(step for kind, step, _ in recorder.events if kind == "update") <= bad + 1


@pytest.mark.parametrize("made", [6, 8])
def test_batches_end_with_the_run(tmp_path, made):
    with pytest.raises(ValueError, match="zip"):
        run(Recorder(), tmp_path, batches_to=made)


def test_metrics_leave_out_what_is_not_a_number(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.write(1, {"loss": 0.5, "accuracy": float("nan")}, steps_per_second=9.0)
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_the_profiler_sees_the_updates_of_its_window(tmp_path):
    class Seen(Profile):
        def before(self, step):
            super().before(step)
            seen.append((step, self._running))

    seen = []
    run(Recorder(), tmp_path / "run", profile=Seen(tmp_path / "profile", start=2, steps=3))
    assert [step for step, running in seen if running] == [3, 4, 5]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def phase(folder, steps, **options):
    """A real phase of the tiny model, which is asked to stop before update `stop_at`."""
    stop_at = options.pop("stop_at", None)

    def batches(start, stop):
        for t, batch in enumerate(make(start, stop)):
            if start + t == stop_at:
                raise Stopped
            yield batch

    make = partial(train_batches, tiny.data(), batch=tiny.BATCH, seed=0, buckets=(tiny.CONTEXT,))
    settings = dict(save_every=100, keep=1, log_every=1) | options
    return Phase("test", folder, tiny.trainer(), steps, batches, lambda step: 1e-2, **settings)


def two(folder, stop_at=(None, None)):
    """A phase of four updates, and one of three that begins with its weights; how often each was begun anew."""
    first, second = (phase(folder / name, n, stop_at=at) for name, n, at in zip("ab", (4, 3), stop_at, strict=True))
    begun = []

    def start_first():
        begun.append("a")
        return tiny.trainer().random_parameters(0)

    def start_second():
        begun.append("b")
        return weights(first.run(start_first))

    return weights(second.run(start_second)), begun


def test_a_run_of_two_phases_continues_in_the_phase_it_was_in(tmp_path):
    """Stopped in the first and in the second phase, it ends with the bits of a run that was not."""
    straight, begun = two(tmp_path / "straight")
    assert begun == ["b", "a"]
    folder = tmp_path / "stopped"
    for stop_at in ((2, None), (None, 1)):
        with pytest.raises(Stopped):
            two(folder, stop_at)
    resumed, begun = two(folder)
    assert begun == []
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), straight, resumed)
    assert all(jax.tree.leaves(same))
    steps = [json.loads(line)["step"] for line in (folder / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
