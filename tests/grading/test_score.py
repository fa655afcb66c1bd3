"""`score` on real answers and on random ones, against NumPy and the plain rules; its example in the docstring."""

import doctest

import jax
import numpy as np

from premem_jax.data import tokenizer_files
from premem_jax.grading import score as module
from premem_jax.grading.answers import answer_bytes, vocabulary
from premem_jax.grading.grader import by_rules
from premem_jax.grading.reference import grade_bytes
from premem_jax.grading.score import score
from tests.grading.vocabularies import byte_vocabulary, jsonl, pad_tokens
from tests.shared import shared

SCORE = jax.jit(score, static_argnames="rules")


def nll_of(logits_BTV, target_BT, weight_BT):
    """In float64, token by token."""
    logits_BTV = np.asarray(logits_BTV, np.float64)
    probability = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
    for b, weight_T in enumerate(weight_BT):
        each = [-np.log(probability[b, t, target_BT[b, t]]) for t in np.flatnonzero(weight_T)]
        yield np.mean(each) if each else 0.0


def test_the_example_of_the_docstring():
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=11)


def test_score_is_likelihood_and_verdict():
    texts, answers = [b"#### 18", b"#### 19", b"18"], ["18"] * 3
    rng = np.random.default_rng(0)
    logits_BTV = rng.normal(size=(3, 5, 7)).astype(np.float32)
    target_BT, weight_BT = rng.integers(0, 7, (3, 5)), np.array([[0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0] * 5])
    tables = byte_vocabulary("gsm8k"), answer_bytes(answers, "gsm8k")
    nll_B, verdict_B = SCORE(logits_BTV, target_BT, weight_BT, *pad_tokens(texts, (3, 16), 256), *tables, rules="gsm8k")
    np.testing.assert_allclose(nll_B, list(nll_of(logits_BTV, target_BT, weight_BT)), rtol=1e-5)
    assert verdict_B.tolist() == [0, 1, 2]


def test_real_solutions_by_a_real_tokenizer():
    """Solutions of GSM8K as the target, what five models wrote as responses, with Llama3's tokens."""
    tokenizer = tokenizer_files.load(shared("data/tokenizers/tokenizer_llama3.tiktoken"))
    B, T, S, V = 64, 256, 512, 128
    rows, written = jsonl("data/gsm8k/test.jsonl")[:B], jsonl("data/outputs/gsm8k_graded.jsonl")
    outputs, answers = [row["output"] for row in written[:B]], [row["answer"].split("#### ")[1] for row in rows]
    outputs[:8] = [f"Well.\n{row['answer']}" for row in rows[:8]]  # some must be right
    target_BT, weight_BT = np.zeros((B, T), int), np.zeros((B, T), np.float32)
    sampled_BS, length_B = np.zeros((B, S), np.int32), np.zeros(B, np.int32)
    for b, (row, output) in enumerate(zip(rows, outputs, strict=True)):
        _, target = tokenizer.encode_pair(f"{row['question']}\nAnswer:", f" {row['answer']}")
        weight_BT[b, 3 : 3 + len(target[:200])] = 1
        target_BT[b, 3 : 3 + len(target[:200])] = target[:200] % V  # logits of the whole vocabulary are 8 GB
        ids = tokenizer.encode_pair("", output)[1][:-1][:S]
        sampled_BS[b, : len(ids)], length_B[b] = ids, len(ids)
    logits_BTV = np.random.default_rng(0).normal(size=(B, T, V)).astype(np.float32)
    token_bytes = tokenizer.token_bytes()
    tables = vocabulary(token_bytes, "gsm8k"), answer_bytes(answers, "gsm8k")
    nll_B, verdict_B = SCORE(logits_BTV, target_BT, weight_BT, sampled_BS, length_B, *tables, rules="gsm8k")
    np.testing.assert_allclose(nll_B, list(nll_of(logits_BTV, target_BT, weight_BT)), rtol=1e-5)
    texts = [b"".join(token_bytes[i] for i in ids[:n]) for ids, n in zip(sampled_BS, length_B, strict=True)]
    expected = [grade_bytes(text, answer.encode(), "gsm8k") for text, answer in zip(texts, answers, strict=True)]
    settled, _ = by_rules("gsm8k").resolve(verdict_B, sampled_BS, length_B, tokenizer.spell, answers)
    assert settled.tolist() == expected and expected[:8] == [0] * 8 and len(set(expected)) > 1
