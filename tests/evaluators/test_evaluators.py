"""Evaluators against NumPy and the plain grading rules, example by example, however the split is cut into batches."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from premem_jax import sharding
from premem_jax.errors import NonFinite, UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected, checked
from premem_jax.evaluators.confidence import Confidence
from premem_jax.evaluators.likelihood import Likelihood
from premem_jax.evaluators.rounds import round_tokens
from premem_jax.grading.reference import find_answer, grade_bytes
from premem_jax.grading.verdict import Verdict
from tests import tiny
from tests.models import llama

SAMPLING = dict(samples=8, max_new_tokens=9, first_round=9, temperature=1.0, top_p=1.0, keep_texts=100)


def run(evaluator, step=3):
    """The columns and texts, after a check that every example is in one part."""
    parts = list(evaluator.measure(jax.device_put(tiny.trained()), step))
    assert sorted(row for part in parts for row in part.rows) == list(range(len(tiny.data())))
    found = Collected(len(tiny.data())).all(parts)
    return found.columns, sorted(found.texts, key=lambda text: text["example"])


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def accuracy():
    return run(Accuracy(tiny.split(), tiny.run(), batch=13, **SAMPLING))


@pytest.fixture(scope="module")
def likelihood():
    return run(Likelihood(tiny.split(), tiny.run(), batch=13))[0]


def test_likelihood_equals_the_numpy_llama(likelihood):
    """Per example, without padding, in float64; the stop marker is part of the target."""
    data, out = tiny.data(), likelihood
    for e, (prompt, target) in enumerate(zip(data.prompts, data.targets, strict=True)):
        nll = llama.nll(tiny.trained(), tiny.config(), [*prompt, *target])[len(prompt) :]
        np.testing.assert_allclose(out["target_nll"][e], nll.mean(), atol=1e-5)
        assert out["target_tokens"][e] == len(target) == 2 + len(data.examples[e].target.split()) - 1
    assert out["target_nll"].std() > 0.01


@pytest.mark.parametrize(("batch", "buckets"), [(3, (tiny.CONTEXT,)), (8, (11, 13)), (5, ())])
def test_likelihood_does_not_depend_on_batches_or_padding(likelihood, batch, buckets):
    whole, cut = likelihood, run(Likelihood(tiny.split(), tiny.run(buckets=buckets), batch=batch))[0]
    np.testing.assert_allclose(cut["target_nll"], whole["target_nll"], atol=1e-6)
    np.testing.assert_array_equal(cut["target_tokens"], whole["target_tokens"])


@pytest.mark.parametrize(("batch", "axes"), [(5, dict(data=1, fsdp=1, tensor=1)), (12, dict(data=2, fsdp=4, tensor=1))])
def test_likelihood_does_not_depend_on_shared_rows(likelihood, batch, axes):
    """Of 13 examples, a batch or two are not full; what a batch has does not depend on what is left to do."""
    mesh = sharding.make_mesh(axes, jax.devices()[: np.prod([*axes.values()])])
    evaluator = Likelihood(tiny.split(), tiny.run(mesh=mesh), batch=batch, packed_tokens=(16,))
    params = jax.device_put(tiny.trained(), sharding.shardings(mesh, tiny.trained()))
    *_, last = parts = list(evaluator.measure(params, 3))
    assert sorted(row for part in parts for row in part.rows) == list(range(13)) and len(parts) == -(-13 // batch)
    found = Collected(13).all(parts).columns
    np.testing.assert_allclose(found["target_nll"], likelihood["target_nll"], rtol=1e-5)
    np.testing.assert_array_equal(found["target_tokens"], likelihood["target_tokens"])
    (again,) = evaluator.measure(params, 3, only=last.rows)
    assert np.array_equal(again.rows, last.rows) and same(again.columns, last.columns)


@pytest.mark.parametrize(("batch", "buckets", "keep"), [(3, (tiny.CONTEXT,), 2), (8, (5, 7), 100)])
def test_verdicts_do_not_depend_on_batches_or_padding(accuracy, batch, buckets, keep):
    """Nor do the kept texts, which are those of the first rows however the rows were ordered."""
    whole, texts = accuracy
    other = Accuracy(tiny.split(), tiny.run(buckets=buckets), batch=batch, **SAMPLING | {"keep_texts": keep})
    for _ in range(2):
        columns, kept = run(other)
        assert same(columns, whole) and kept == texts[:keep] and len(kept) == min(keep, 13)


@pytest.mark.parametrize(("first", "batch"), [(2, 13), (4, 3)])
def test_rounds_change_no_response(accuracy, first, batch):
    """Drawn a few tokens at a time, with others that are as long, responses are the same."""
    whole, texts = accuracy
    evaluator = Accuracy(tiny.split(), tiny.run(), batch=batch, **SAMPLING | {"first_round": first})
    columns, kept = run(evaluator)
    assert len(round_tokens(9, first)) > 2
    assert same(columns, whole) and kept == texts


def test_references_decide_beginnings_and_change_no_response(accuracy):
    """With rounds, on eight devices, and one half of the rows after the other, as in a resumed evaluation."""
    whole, texts = accuracy
    on = tiny.run(sharding.make_mesh(dict(data=4, fsdp=1, tensor=2)))
    evaluator = Accuracy(tiny.split(), on, batch=8, **SAMPLING | dict(first_round=4), drafted=True)
    params, found = tiny.trained(), Collected(len(tiny.data()))
    params = jax.device_put(params, sharding.shardings(evaluator.run.mesh, params))
    for half in (range(1, 13, 2), range(0, 13, 2)):
        found.all(evaluator.measure(params, 3, half))
    assert same(found.columns, whole) and sorted(found.texts, key=lambda text: text["example"]) == texts


def test_what_references_decide_is_not_sampled():
    """References that are the responses: there is no program that could decode a token."""
    drawn = {}

    class Spied(Accuracy):
        def _part(self, step, rows, found):
            drawn.update(zip(rows, found, strict=True))
            return super()._part(step, rows, found)

    settings = SAMPLING | dict(samples=1, max_new_tokens=5, first_round=5)
    expected, data = run(Spied(tiny.split(), tiny.run(), batch=13, **settings)), tiny.data()
    stop = [tiny.tokenizer().eos_id]
    said = [np.append(drawn[row].tokens[0, : drawn[row].length[0]], stop) for row in range(len(data))]
    assert {len(text) - 1 for text in said} == {4, 5}  # some do not stop in time
    split = tiny.split(data=dataclasses.replace(data, targets=said))
    evaluator = Accuracy(split, tiny.run(), batch=5, **settings, drafted=True)
    evaluator._programs = {}
    columns, texts = run(evaluator)
    assert same(columns, expected[0]) and texts == expected[1]


def test_texts_and_verdicts_are_those_of_the_plain_rules(accuracy):
    """Each kept response decoded and graded by the reference; the counts are counts of these verdicts."""
    out, texts = accuracy
    data = tiny.data()
    assert [text["example"] for text in texts] == list(data.ids)
    seen = set()
    for e, (text, example) in enumerate(zip(texts, data.examples, strict=True)):
        assert (text["step"], text["split"], text["prompt"]) == (3, "train", example.prompt)
        assert text["reference"] == example.target.strip()
        assert len(text["responses"]) == out["samples"][e] == 8
        verdicts = [
            grade_bytes(response["text"].encode(), example.answer.encode(), "gsm8k") for response in text["responses"]
        ]
        assert [response["verdict"] for response in text["responses"]] == [verdict.name.lower() for verdict in verdicts]
        assert out["correct"][e] == verdicts.count(Verdict.CORRECT)
        assert out["unparsed"][e] == verdicts.count(Verdict.UNPARSED)
        # Of twenty such answers, two share a hash with a chance of one in ten million.
        answers = [find_answer(response["text"].encode(), "gsm8k") for response in text["responses"]]
        hashes, of = out["answers"][e].tolist(), {}
        assert [h < 2 for h in hashes] == [answer is None for answer in answers]
        assert [h % 2 == 1 for h in hashes] == [verdict == Verdict.CORRECT for verdict in verdicts]
        for h, answer in zip(hashes, answers, strict=True):
            assert of.setdefault(h, answer) == answer
        assert len(of) == len(set(answers))
        seen |= set(verdicts)
    assert seen == set(Verdict) - {Verdict.UNDECIDED}
    assert len({tuple(r["text"] for r in text["responses"]) for text in texts}) > 1


def test_tokens_without_bytes_are_graded_on_the_host(accuracy, monkeypatch):
    """The same responses have the same verdicts by the same rules, none of them decided on the device."""
    tokenizer = copy.copy(tiny.tokenizer())
    monkeypatch.setattr(tokenizer, "token_bytes", lambda: None)
    columns, texts = run(Accuracy(tiny.split(), tiny.run(tokenizer=tokenizer), batch=13, **SAMPLING))
    assert (columns["decided_on_host"] == SAMPLING["samples"]).all() and texts == accuracy[1]
    assert all((columns[name] == accuracy[0][name]).all() for name in ("samples", "correct", "unparsed"))


def test_what_the_device_leaves_open_is_decided_and_counted():
    """Responses that never stop, against answers too long to rule out that the two are the same."""
    data, endless = tiny.data(), copy.copy(tiny.tokenizer())
    endless.eos_id = endless.vocab_size
    lengthy = [dataclasses.replace(example, answer="1" * 150) for example in data.examples]
    split = tiny.split(data=dataclasses.replace(data, examples=lengthy))
    settings = SAMPLING | {"samples": 2, "max_new_tokens": 80, "first_round": 40, "temperature": 2.0}
    evaluator = Accuracy(split, tiny.run(tokenizer=endless), batch=13, **settings)
    out, kept = run(evaluator)
    assert 0 < out["decided_on_host"].sum() < out["samples"].sum() and not out["correct"].any()
    for e, text in enumerate(kept):
        texts = [response["text"].encode() for response in text["responses"]]
        assert out["decided_on_host"][e] <= sum(len(text) > 128 for text in texts)
        verdicts = [grade_bytes(text, b"1" * 150, "gsm8k") for text in texts]
        assert [response["verdict"] for response in text["responses"]] == [verdict.name.lower() for verdict in verdicts]
        assert out["unparsed"][e] == verdicts.count(Verdict.UNPARSED)


def test_a_python_grader_says_what_the_same_rules_say_on_the_device(accuracy):
    """The same responses, with rounds; every verdict is the function's, and only the host has decided."""
    whole, texts = accuracy
    asked = []

    def grade(response, answer):
        asked.append(response)
        return grade_bytes(response.encode(), answer.encode(), "gsm8k")

    columns, kept = run(Accuracy(tiny.split(grader=grade), tiny.run(), batch=13, **SAMPLING | {"first_round": 4}))
    unknown = {"decided_on_host": whole["samples"], "answers": 0 * whole["answers"]}
    assert same(columns, whole | unknown) and kept == texts
    assert len(asked) == whole["samples"].sum() and len(set(asked)) > 13


def test_a_python_grader_that_fails_names_the_example():
    def grade(response, answer):
        return {"1": True}[answer]

    with pytest.raises(UserError, match=r"test_evaluators.*grade: KeyError: '\d+'; example \d+, response '.*'$"):
        run(Accuracy(tiny.split(grader=grade), tiny.run(), batch=13, **SAMPLING | {"first_round": 4}))


def test_steps_splits_and_seeds_draw_anew(accuracy):
    """And the same of all three draws the same."""
    first = responses(accuracy[1])
    evaluator = Accuracy(tiny.split(), tiny.run(), batch=13, **SAMPLING)
    assert responses(run(evaluator, step=4)[1]) != first
    assert responses(run(evaluator, step=3)[1]) == first
    for split, shared in ((tiny.split("test"), tiny.run()), (tiny.split(), tiny.run(seed=1))):
        assert responses(run(Accuracy(split, shared, batch=13, **SAMPLING))[1]) != first


def responses(texts):
    return [[response["text"] for response in text["responses"]] for text in texts]


EVALUATORS = {
    "target_nll": lambda *given: Likelihood(*given, batch=13),
    "drawn": lambda *given: Accuracy(*given, batch=13, **SAMPLING),
    "responses are drawn": lambda *given: Accuracy(*given, batch=13, **SAMPLING, drafted=True),
    "log_confidence": lambda *given: Confidence(*given, batch=13, max_new_tokens=9),
}


@pytest.mark.parametrize("what", EVALUATORS)
def test_numbers_that_are_not_finite_are_named_with_their_examples(what):
    """One row of the embedding is no number: an evaluator stops, and likelihood names the examples with that token."""
    data, split, on = tiny.data(), tiny.split(), tiny.run()
    (token,) = tiny.tokenizer().encode_pairs([("1 = so", " ####")])[0][0][-1:]
    bad = jax.tree.map(np.array, tiny.trained())
    bad["embedding"][token] = np.nan
    texts = [[*p, *t] for p, t in zip(data.prompts, data.targets, strict=True)]
    theirs = [str(e.id) for e, text in zip(data.examples, texts, strict=True) if token in text]
    with pytest.raises(NonFinite, match=rf"{what}.* is not finite on examples .* of split 'train'") as error:
        list(checked("evals.mine", split, EVALUATORS[what](split, on).measure(bad, 3)))
    if what == "target_nll":
        assert 0 < len(theirs) < 10 and f"examples {', '.join(theirs)} of" in str(error.value)
