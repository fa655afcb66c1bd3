"""A stack of members is trained in one program as each would be alone."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.analysis.trace import members, read_trace
from premem_jax.data.reader import stacked, train_batches
from premem_jax.errors import Stopped, UserError
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.evaluators.suite import Suite
from premem_jax.models.decoder import build
from premem_jax.running.programs import Clock
from premem_jax.training.phase import NonFiniteLoss, Phase
from premem_jax.training.step import weights
from premem_jax.training.trainer import Trainer
from tests import tiny

NAMES, SEEDS, RATES, STEPS = ("a", "b", "c"), (0, 1, 2), (1e-2, 3e-3, 1e-3), 5


def sources():
    """Each member has its own order of the data, and b a part of it."""
    counts = (13, 7, 13)
    return [
        partial(train_batches, tiny.data(count), batch=tiny.BATCH // 2, seed=seed, buckets=(8, tiny.CONTEXT))
        for count, seed in zip(counts, SEEDS, strict=True)
    ]


def trainer(mesh=None, members=3):
    mesh = mesh or tiny.one_device()
    return Trainer(build(tiny.config(), mesh=mesh), mesh, Clock(), tiny.OPTIMIZER, micro_batches=1, members=members)


def run(folder, of=None, rates=RATES, stop_at=None, **options) -> dict:
    of = of or trainer()
    single = trainer(of.mesh, 0)

    def batches(start, stop):
        for t, batch in enumerate(stacked(sources(), start, stop), start):
            if t == stop_at:
                raise Stopped
            yield batch

    settings = dict(save_every=2, keep=1, log_every=1, members=NAMES) | options
    phase = Phase("stack", folder, of, STEPS, batches, lambda step: np.array(rates), **settings)
    return phase.run(lambda: of.stack([single.random_parameters(seed) for seed in SEEDS]))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    return folder, run(folder)


def assert_close(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


def test_each_member_ends_as_if_it_had_been_trained_alone(together, tmp_path):
    folder, state = together
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for m, name in enumerate(NAMES):
        alone, rate = trainer(members=0), RATES[m]
        options = dict(save_every=100, keep=1, log_every=1)
        phase = Phase("alone", tmp_path / name, alone, STEPS, sources()[m], lambda step, rate=rate: rate, **options)
        expected = weights(phase.run(partial(alone.random_parameters, SEEDS[m])))
        assert_close(weights(state, m), expected, rtol=1e-4, atol=1e-5)
        of_alone = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for row, other in zip([row for row in rows if row["member"] == name], of_alone, strict=True):
            assert row.keys() - {"member"} == other.keys()
            for key in other:
                np.testing.assert_allclose(row[key], other[key], rtol=1e-4, err_msg=key)
    spread = jax.tree.map(lambda x: float(np.abs(x[0] - x[1]).max()), weights(state))
    assert max(jax.tree.leaves(spread)) > 0.1  # the members are not alike


def test_a_stack_continues_with_the_same_bits(together, tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, stop_at=3)
    resumed = run(tmp_path)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, together[1], resumed)))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (together[0] / "metrics.jsonl").read_bytes()


def test_a_member_that_diverges_leaves_the_others_as_they_are(together, tmp_path, caplog):
    """Its loss overflows after the first update; b and c end with the bits of a run in which it does not.

    The trace tells the members apart, and has of a what was seen before.
    """
    evals = dict(nll=dict(type="likelihood", split="train", epochs=(0,), batch=13))
    on = tiny.run(model=build(tiny.CONFIG))
    suite = Suite(evals, {"train": tiny.split()}, on, steps_per_epoch=STEPS, steps=STEPS, workdir=tmp_path)
    options = dict(evaluate=suite.run, evaluation_steps=suite.steps)
    state = run(tmp_path / "one", rates=(1e30, *RATES[1:]), **options)
    assert members(tmp_path / "trace") == list(NAMES)
    for m, name in enumerate(NAMES):
        found = read_trace(tmp_path / "trace", member=name)
        assert found.steps.tolist() == ([0, STEPS] if m else [0])
        if m:
            alone = Likelihood(tiny.split(), on, batch=13).measure(weights(state, m), STEPS, np.arange(13))
            expected = np.zeros(13)
            for part in alone:
                expected[part.rows] = part.columns["target_nll"]
            np.testing.assert_array_equal(found.split("train").nll[-1], expected.astype("f"))
    with pytest.raises(UserError, match="no member ''; it is a stack of: a, b, c"):
        read_trace(tmp_path / "trace")
    assert state["good"].tolist() == [False, True, True] and state["step"].tolist() == [1, STEPS, STEPS]
    for m in (1, 2):
        assert_close(weights(state, m), weights(together[1], m), rtol=1e-6)
    assert sum("member a" in record.message for record in caplog.records) == 1
    with pytest.raises(NonFiniteLoss, match="stack, step 2"):
        run(tmp_path / "all", rates=(1e30,) * 3)


def test_a_mesh_trains_a_stack_as_one_device_does(together, tmp_path):
    mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
    state = run(tmp_path, of=trainer(mesh))
    cut = weights(state)["layers"]["mlp"]["up"].sharding.spec
    assert cut[0] is None and "tensor" in cut
    assert_close(weights(state), weights(together[1]), rtol=1e-3, atol=1e-4)
