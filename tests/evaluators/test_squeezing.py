"""Where the mass goes, against the NumPy Llama; probes and greedy responses against what they stand for."""

import dataclasses

import jax
import numpy as np
import pytest

from premem_jax.errors import UserError
from premem_jax.evaluators.base import Collected
from premem_jax.evaluators.greedy_responses import GreedyResponses, repeated
from premem_jax.evaluators.probe import Probe
from premem_jax.evaluators.squeezing import Squeezing
from tests import tiny
from tests.models import llama


def pairs():
    data = tiny.data()
    examples = [dataclasses.replace(e, rejected=f" we get {9 - e.id % 9}") for e in data.examples]
    return dataclasses.replace(tiny.split(), data=dataclasses.replace(data, examples=examples))


def measured(evaluator, weights):
    rows = len(evaluator.split.data)
    return evaluator, Collected(rows).all(evaluator.measure(jax.device_put(weights), 3))


def log_probabilities(params, tokens):
    """(T, V) of each next token, one token at a time through the NLL of the NumPy Llama."""
    V = tiny.config().V
    columns = []
    for t in range(1, len(tokens)):
        columns.append([-llama.nll(params, tiny.config(), [*tokens[:t], v])[-1] for v in range(V)])
    return np.array(columns)


def test_squeezing_equals_the_numpy_llama():
    start = tiny.parameters(tiny.config())
    run = tiny.run(base=lambda: jax.device_put(start))
    evaluator, found = measured(Squeezing(pairs(), run, batch=2, prompts=3), tiny.trained())
    assert evaluator.split.name == "train greedy path" and len(found.done) == 3
    peaks, entropies, falls = [], [], []
    for e in range(3):
        prompt, target = evaluator.split.data.prompts[e], evaluator.split.data.targets[e]
        now, before = (
            log_probabilities(params, [*prompt, *target])[len(prompt) - 1 :] for params in (tiny.trained(), start)
        )
        assert found.columns["target_nll"][e] == pytest.approx(-now.max(axis=1).mean(), abs=1e-4)
        assert found.columns["target_tokens"][e] == len(target)
        peaks += list(np.exp(now.max(axis=1)))
        entropies += list(-(np.exp(now) * now).sum(axis=1))
        falls += list((now < before).mean(axis=1))
    expected = {"train_entropy": np.mean(entropies), "train_top_mass": np.mean(peaks), "train_falling": np.mean(falls)}
    assert found.measures == pytest.approx(expected, abs=2e-4)
    with pytest.raises(UserError, match="began with"):
        Squeezing(pairs(), tiny.run())


@pytest.mark.parametrize("response", ["chosen", "rejected", "other"])
def test_a_probe_is_the_likelihood_of_its_response(response):
    evaluator, found = measured(Probe(pairs(), tiny.run(seed=2), batch=4, response=response, prompts=5), tiny.trained())
    assert evaluator.split.name == f"train {response}"
    for e, example in enumerate(evaluator.split.data.examples):
        prompt, target = tiny.tokenizer().encode_pair(example.prompt, example.target)
        nll = llama.nll(tiny.trained(), tiny.config(), [*prompt, *target])[len(prompt) :]
        assert found.columns["target_nll"][e] == pytest.approx(nll.mean(), abs=1e-5)
        assert found.columns["target_tokens"][e] == len(target)
    source = pairs().data.examples[:5]
    said = [e.target for e in evaluator.split.data.examples]
    assert said == [e.rejected for e in source] if response == "rejected" else {*said} <= {e.target for e in source}


def test_greedy_responses_take_the_likeliest_token_and_their_repetitions_count():
    """Token by token with the NumPy Llama; however much of it was measured before."""
    evaluator = GreedyResponses(tiny.split("test"), tiny.run(), batch=2, max_new_tokens=6, prompts=3)
    parts = list(evaluator.measure(jax.device_put(tiny.trained()), 3, only=[2]))
    (part,) = parts
    assert evaluator.split.name == "test greedy" and list(part.rows) == [0, 1, 2]
    shares, lengths = [], []
    for e in range(3):
        prompt, said = list(tiny.data().prompts[e]), []
        while len(said) < 6 and (
            next_ := int(llama.logits(tiny.trained(), tiny.config(), [*prompt, *said])[-1].argmax())
        ):
            if next_ in tiny.tokenizer().eos_ids:
                break
            said.append(next_)
        text = next(row for row in part.texts if row["example"] == tiny.data().examples[e].id)
        assert text["responses"][0]["text"] == tiny.tokenizer().decode(said)
        grams = ["|".join(map(str, said[i : i + 4])) for i in range(len(said) - 3)]
        shares.append(sum(gram in grams[:i] for i, gram in enumerate(grams)) / max(len(grams), 1))
        lengths.append(len(said))
    expected = {"test_greedy_length": np.mean(lengths), "test_repeated_4grams": np.mean(shares)}
    assert part.measures == pytest.approx(expected)


@pytest.mark.parametrize(("text", "share"), [("aaaaaa", 2 / 3), ("abcdabcd", 1 / 5), ("abc", 0), ("", 0)])
def test_the_share_of_repeated_4grams(text, share):
    assert repeated(np.array([ord(c) for c in text], np.int32)) == pytest.approx(share)
