"""Few-shot prompts: chosen by seed and id alone, never with the question itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.data.examples import Example
from premem_jax.data.fewshot import with_shots
from premem_jax.errors import UserError

POOL = [Example(i, f"Q{i}:", f" A{i}", f"A{i}") for i in range(6)]


@given(st.integers(0, 5), st.integers(0, 99), st.permutations(POOL))
def test_prompts_are_a_function_of_seed_and_id(shots, seed, order):
    found = with_shots(order, POOL, shots, seed)
    assert {e.id: e for e in found} == {e.id: e for e in with_shots(POOL, POOL, shots, seed)}
    for before, after in zip(order, found, strict=True):
        *solved, question = after.prompt.split("\n\n")
        assert question == before.prompt and len(set(solved)) == shots and after.target == before.target
        assert set(solved) <= {e.prompt + e.target for e in POOL if e.id != before.id}


def test_shots_can_be_kept_to_one_subject():
    pool = [Example(i, f"Q{i}:", f" A{i}", "", {"subject": "ab"[i % 2]}) for i in range(6)]
    for example in with_shots(pool, pool, 2, 0, by="subject"):
        numbers = [int(part[1]) for part in example.prompt.split("\n\n")]
        assert {n % 2 for n in numbers} == {example.id % 2} and len(set(numbers)) == 3


def test_a_pool_that_is_too_small_is_refused():
    with pytest.raises(UserError, match="6 solved examples: example 0 has 5 others"):
        with_shots(POOL, POOL, 6, 0)
