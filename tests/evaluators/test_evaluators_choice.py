"""Options against NumPy, and exact match against greedy sampling."""

import dataclasses

import jax
import numpy as np
import pytest

from premem_jax.data.pipeline import tokenize
from premem_jax.errors import UserError
from premem_jax.evaluators.base import Collected, Split
from premem_jax.evaluators.exact_match import ExactMatch
from premem_jax.evaluators.option_likelihood import OptionLikelihood
from premem_jax.sampling.sampler import sample
from tests import tiny
from tests.models import llama

CONTEXT = 64


def split(examples) -> Split:
    return Split("test", tokenize("test", examples, tiny.tokenizer(), context=CONTEXT, drop_long=False), "gsm8k")


def measured(evaluator, only=None) -> dict[str, np.ndarray]:
    parts = list(evaluator.measure(jax.device_put(tiny.trained()), 0, only))
    return Collected(evaluator.examples).all(parts).columns


def questions(count=9) -> list:
    """The sums of `tiny` with several solutions to choose from, of different lengths."""
    made = []
    for i, example in enumerate(examples := tiny.examples(count)):
        options = tuple(dict.fromkeys([example.target, *(other.target for other in examples[: 1 + i % 4])]))
        made.append(dataclasses.replace(example, options=options, target=options[-1 if i % 2 else 0]))
    return made


def letters(count=9) -> list:
    """Questions whose options are single tokens, of which one pass decides; not all have as many."""
    some = [(" 3", " 7", " +", " 1")[: 2 + i % 3] for i in range(count)]
    return [
        dataclasses.replace(example, options=options, target=options[i // 2 % 2])
        for i, (example, options) in enumerate(zip(tiny.examples(count), some, strict=True))
    ]


@pytest.mark.parametrize(("shots", "made"), [(0, questions), (2, questions), (0, letters)])
def test_options_are_compared_by_their_likelihood(shots, made):
    data = split(made())
    run = tiny.run(buckets=(16, CONTEXT))
    found = OptionLikelihood(data, run, batch=8, shots=shots)
    assert (found._ids is None) == (made is questions)
    columns = measured(found)
    assert found.split.name == "test options" + " after 2 shots" * (shots > 0)
    rights = []
    for e, example in enumerate(data.data.examples):
        prompt = found._options.examples[list(found._row_of).index(e)].prompt
        assert prompt.endswith(example.prompt) and prompt.count("####") == shots
        assert shots == 0 or example.prompt not in prompt[: -len(example.prompt)]
        score = []
        for option in example.options:
            before, after = tiny.tokenizer().encode_pair(prompt, option)
            nll = llama.nll(tiny.trained(), tiny.config(), [*before, *after[:-1]])
            score.append(-nll[len(before) :].sum())
        gold = example.options.index(example.target)
        np.testing.assert_allclose(columns["target_nll"][e], np.logaddexp.reduce(score) - score[gold], atol=1e-4)
        assert columns["correct"][e] == (np.argmax(score) == gold)
        rights.append(np.argmax(score) == gold)
    assert (columns["samples"] == 1).all() and 0 < sum(rights) < len(rights)
    some = measured(found, [4, 1])
    assert all(np.allclose(some[name][[4, 1]], columns[name][[4, 1]], atol=1e-5) for name in columns)


def test_a_question_without_its_answer_among_the_options_is_refused():
    with pytest.raises(UserError, match="split 'test': example 100 has no options"):
        OptionLikelihood(split(tiny.examples(3)), tiny.run())


def test_exact_match_is_the_greedy_response():
    data, run = split(tiny.examples(13)).data, tiny.run(buckets=(tiny.CONTEXT,))
    settings = dict(samples=1, max_new_tokens=10, temperature=0.0, top_p=1.0, eos_ids=tiny.tokenizer().eos_ids)
    greedy = jax.jit(lambda *args: sample(run.model, *args, jax.random.key(0), **settings))
    prompts = np.zeros((len(data), tiny.CONTEXT), np.int32)
    lengths = np.array([len(prompt) for prompt in data.prompts])
    for row, prompt in zip(prompts, data.prompts, strict=True):
        row[: len(prompt)] = prompt
    drawn = greedy(tiny.trained(), prompts, lengths, np.arange(len(data)))
    said = [[*np.asarray(drawn.tokens[e, 0, : drawn.length[e, 0]]), int(drawn.stop[e, 0])] for e in range(len(data))]
    # The targets of every second one are what it says; those of the others are as they were.
    pairs = enumerate(zip(said, data.targets, strict=True))
    targets = [np.array(mine, np.int32) if e % 2 else theirs for e, (mine, theirs) in pairs]
    data = dataclasses.replace(data, targets=targets)
    columns = measured(ExactMatch(Split("test", data, "gsm8k"), run, batch=5))
    expected = [list(target) == mine for target, mine in zip(targets, said, strict=True)]
    assert columns["correct"].tolist() == expected and 0 < sum(expected) < len(expected)
    for e, (prompt, target) in enumerate(zip(data.prompts, targets, strict=True)):
        nll = llama.nll(tiny.trained(), tiny.config(), [*prompt, *target])[len(prompt) :]
        np.testing.assert_allclose(columns["target_nll"][e], nll.mean(), atol=1e-5)
