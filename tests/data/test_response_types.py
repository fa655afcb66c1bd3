"""Responses that nobody trains on: each type is what it is called."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premem_jax.data.examples import Example
from premem_jax.data.response_types import MADE, responses
from premem_jax.errors import UserError

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=5)


def items(texts):
    return [Example(i, "p", " " + " ".join(t), "", {"mine": f"m{i}"}, rejected=f" r{i}") for i, t in enumerate(texts)]


@given(st.lists(WORDS, min_size=2, max_size=6, unique_by=tuple), st.integers(0, 1000))
def test_types_are_what_they_are_called(texts, seed):
    examples = items(texts)
    made = {kind: responses(examples, kind, seed) for kind in MADE}
    targets = [e.target for e in examples]
    assert made["chosen"] == targets and made["rejected"] == [e.rejected for e in examples]
    assert Counter(made["other"]) == Counter(targets)  # each once
    assert all(a != b for a, b in zip(made["other"], targets, strict=True))
    assert all(Counter(a.split()) == Counter(b.split()) for a, b in zip(made["permuted"], targets, strict=True))
    assert all(len(a.split()) == len(b.split()) for a, b in zip(made["random"], targets, strict=True))
    assert {w for text in made["random"] for w in text.split()} <= {w for text in targets for w in text.split()}
    assert all(text.startswith(" ") for kind in ("permuted", "random") for text in made[kind])
    assert made == {kind: responses(examples, kind, seed) for kind in MADE}


def test_a_field_of_the_rows_is_a_type():
    assert responses(items([["a"], ["b"]]), "mine", 0) == ["m0", "m1"]
    with pytest.raises(UserError, match=r"no prompt has a response of type 'yours' .*chosen, mine, other"):
        responses(items([["a"]]), "yours", 0)
    with pytest.raises(UserError, match="no prompt has a response of type 'other'"):
        responses(items([["a"]]), "other", 0)
