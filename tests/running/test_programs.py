"""The clock with a time source that the test turns by hand, and programs that count how often they are traced."""

import types
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from premem_jax.running import programs
from premem_jax.running.programs import Clock, Program


@pytest.fixture
def time(monkeypatch):
    """`time.now` is what the clock reads."""
    source = types.SimpleNamespace(now=100.0)
    source.perf_counter = lambda: source.now
    monkeypatch.setattr(programs, "time", source)
    return source


def test_phases_nest_and_exclude_each_other(time):
    """The outer phase stands still while an inner one runs; what is in no phase is "other"; together it is all."""
    clock = Clock()
    time.now += 1
    with clock("train"):
        time.now += 10
        with clock("sample"):
            time.now += 100
            with clock("compile"):
                time.now += 1000
            time.now += 100
        time.now += 10
        with clock("sample"):
            time.now += 100
    time.now += 1
    assert clock.read() == {"other": 2, "train": 20, "sample": 300, "compile": 1000}
    assert sum(clock.read().values()) == time.now - 100


def test_a_phase_nests_in_itself(time):
    clock = Clock()
    with clock("compile"), clock("compile"):
        time.now += 3
    assert clock.read()["compile"] == 3


def test_reading_within_a_phase_charges_it_so_far(time):
    clock = Clock()
    with clock("train"):
        time.now += 5
        first = clock.read()
        assert first["train"] == 5
        time.now += 2
    assert clock.read()["train"] == 7 and first["train"] == 5


def test_an_error_ends_its_phase(time):
    clock = Clock()
    with pytest.raises(KeyError), clock("train"):
        time.now += 5
        raise KeyError
    time.now += 1
    assert clock.read() == {"other": 1, "train": 5}


def test_a_program_compiles_once_per_shapes(time):
    """New values do not compile again; new shapes, dtypes and structures do, and the clock calls that "compile"."""
    compiled = []

    class Counting(Clock):
        def __call__(self, phase):
            compiled.extend([phase] if phase == "compile" else [])
            return super().__call__(phase)

    clock = Counting()

    def function(tree, y):
        time.now += 10  # tracing is all that runs in Python
        return tree["x"] * 2 + y

    program = Program(function, clock)
    x = np.arange(3, dtype=np.float32)
    with clock("train"):
        for i in range(3):
            np.testing.assert_array_equal(program({"x": x + i}, x), (x + i) * 2 + x)
        assert len(compiled) == 1
        program({"x": x[:2]}, x[:2])
        program({"x": x.astype(np.int32)}, x)
        program({"x": x, "unused": x}, x)
        assert len(compiled) == 4
        program({"x": jnp.asarray(x)}, x)
        program({"x": x[:2]}, x[:2])
    assert len(compiled) == 4
    assert clock.read() == {"other": 0, "train": 0, "compile": 40}


def scale(factor, traced, x):
    traced.append(factor)
    return factor * x


class Traced(list):
    """A list that may be bound: it is itself alone."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_programs_of_the_same_parts_share_what_is_compiled():
    traced, x = Traced(), np.arange(3.0, dtype=np.float32)
    make = lambda factor, **options: Program(partial(scale, factor, traced), Clock(), **options)
    for factor in 2.0, 3.0, 2.0:
        np.testing.assert_array_equal(make(factor)(x), factor * x)
    assert traced == [2.0, 3.0]
    np.testing.assert_array_equal(make(2.0, donate_argnums=0)(x), 2 * x)
    assert traced == [2.0, 3.0, 2.0]


def test_programs_with_something_that_has_no_hash_are_compiled_each():
    traced, x = [], np.arange(3.0, dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(Program(partial(scale, 2.0, traced), Clock())(x), 2 * x)
    assert traced == [2.0, 2.0]
