"""Passages of other prompts' training answers in responses, against plain search in the texts."""

import math

from hypothesis import given
from hypothesis import strategies as st

from premem_jax.analysis.copied import Copied, shares

WORDS = st.lists(st.sampled_from("ab"), max_size=7).map(" ".join)


@given(st.lists(st.tuples(st.sampled_from(["p", "q"]), WORDS), max_size=4), st.sampled_from(["p", "q", "r"]), WORDS)
def test_a_passage_is_looked_for_in_every_other_answer(answers, prompt, response):
    """One by one: a run of three words that is in an answer to another prompt, and in none to this one."""
    words = response.split()
    runs = [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]
    within = lambda run, own: any(f" {run} " in f" {text} " for p, text in answers if (p == prompt) == own)
    expected = any(within(run, own=False) and not within(run, own=True) for run in runs)
    assert Copied(answers, words=3).repeats(prompt, response) == expected


def test_shares_are_of_the_texts_of_each_step():
    row = lambda step, prompt, *texts, split="test greedy": dict(
        step=step, prompt=prompt, split=split, responses=[{"text": text} for text in texts]
    )
    answers = [("p", "one two three four"), ("q", "five six seven")]
    samples = [
        *(row(0, "r", "nothing here"), row(0, "s", "so one two three"), row(0, "p", "one two three"), row(4, "r")),
        *(row(4, "q", "one two three", "five six seven"), row(4, "r", "one two three", split="test")),
    ]
    assert shares(answers, samples, "test greedy", words=3) == {0: 1 / 3, 4: 1 / 2}
    assert math.isnan(Copied(answers).share([]))
