"""Pairs: what is unfit is counted, named, refused or left out; batches hold both responses side by side."""

import dataclasses

import numpy as np
import pytest

from premem_jax.data.examples import Example
from premem_jax.data.packing import Packing
from premem_jax.data.pairs import answers, collate_pairs, pair_batches, tokenize_pairs
from premem_jax.data.reader import train_batches
from premem_jax.errors import UserError
from tests import tiny

GOOD = Example(3, "1 + 1 =", " it is 2", "2", rejected=" so we get 3")
UNFIT = {
    "equal": Example(10, "1 + 1 =", " it is 2", "2", rejected=" it is 2"),
    "empty": Example(11, "1 + 1 =", " it is 2", "2", rejected=" "),
    "no common prompt": Example(12, "", " it is 2", "2", rejected=" so 3"),
    "too long": Example(13, "1 + 1 =", " it is 2", "2", rejected=" 3" * 20),
    "seam inside a token": Example(14, "1 + 1", "0 it is", "2", rejected="2 it is"),  # a word would be 10 or 12
}


def tokenized(examples, **options):
    settings = dict(context=16, drop=False, drop_long=False) | options
    return tokenize_pairs("train", examples, tiny.tokenizer(), **settings)


@pytest.mark.parametrize("kind", UNFIT)
def test_an_unfit_pair_is_refused_by_name_or_left_out(kind, caplog):
    examples = [GOOD, UNFIT[kind]]
    with pytest.raises(
        UserError, match=rf"1 of 2 pairs are unfit: 1 {kind} \(.*: {UNFIT[kind].id}\); .*bad_pairs=drop"
    ):
        tokenized(examples)
    assert len(tokenized(examples, drop=True)) == 1
    assert f"1 of 2 pairs left out: 1 {kind}" in caplog.text
    if kind == "too long":
        assert len(tokenized(examples, drop_long=True)) == 1
    else:
        with pytest.raises(UserError, match=kind):
            tokenized(examples, drop_long=True)


def test_all_kinds_are_counted_in_one_message():
    with pytest.raises(UserError) as error:
        tokenized([GOOD, *UNFIT.values(), UNFIT["equal"]])
    assert "6 of 7 pairs" in str(error.value) and "2 equal" in str(error.value)
    assert all(f"1 {kind}" in str(error.value) for kind in UNFIT if kind != "equal")
    with pytest.raises(UserError, match="no pairs after leaving out 5"):
        tokenized(list(UNFIT.values()), drop=True)


def pairs(count=7):
    rejected = lambda e: " we get 0" + " 1" * (e.id % 3)
    return tokenized([dataclasses.replace(e, rejected=rejected(e)) for e in tiny.examples(count)])


def test_a_batch_holds_the_tokens_of_both_responses():
    data, reference = pairs(), np.arange(14, dtype=np.float32).reshape(7, 2)
    given = dict(batch=4, buckets=(16,), reference_ER=reference)
    arrays = collate_pairs(data, [4, 2, 6], **given, packing=Packing(micro_batches=2))
    for b, e in enumerate((4, 2, 6)):
        for r, response in enumerate((data.targets[e], data.rejected[e])):
            prompt, row = data.prompts[e], b % 2 + 2 * (2 * (b // 2) + r)
            whole = np.concatenate([prompt, response])
            assert arrays["tokens"][row].tolist() == [*whole, *[0] * (16 - len(whole))]
            assert np.flatnonzero(arrays["weights"][row]).tolist() == list(range(len(prompt), len(whole)))
            assert set(arrays["segments"][row, : len(whole)]) == {arrays["responses"][b, r]}
    assert arrays["weights"][[5, 7]].sum() == 0 and arrays["tokens"].shape == (8, 16)
    assert arrays["reference"].tolist() == [[8, 9], [4, 5], [12, 13], [0, 0]] and not arrays["responses"][3].any()
    second = lambda count: range(count // 2, count)
    part = collate_pairs(data, [4, 2, 6], **given, packing=Packing(micro_batches=2, here=second))
    assert all(np.array_equal(part[key], arrays[key][len(arrays[key]) // 2 :]) for key in arrays)


def test_pairs_come_in_the_order_of_supervised_training():
    order = dict(batch=3, seed=5, buckets=(16,))
    single = [ids.tolist() for ids, _ in train_batches(pairs(), 0, 6, **order)]
    both = list(pair_batches(pairs(), 0, 6, **order))
    assert [ids.tolist() for ids, _ in both] == single
    one = list(pair_batches(pairs(), 2, 6, responses=1, **order))
    assert all(np.array_equal(a["tokens"][::2], b["tokens"]) for (_, a), (_, b) in zip(both[2:], one, strict=True))
    assert answers(pairs(), True).lengths.tolist() != pairs().lengths.tolist()
