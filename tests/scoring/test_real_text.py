"""Kernel against the plain Python rules on every GSM8K solution and on the outputs of six real models."""

import jax
import numpy as np
import pytest
import sentencepiece as spm

from premem_jax.scoring.bytes import token_bytes_stream
from premem_jax.scoring.reference import grade_bytes
from premem_jax.scoring.verdict import Verdict
from tests.scoring.vocabularies import Vocabulary, batches, grade_rows, jsonl, train_sentencepiece
from tests.shared import shared


@pytest.fixture(scope="module", params=["trained", "gemma"])
def vocabulary(request, tmp_path_factory):
    if request.param == "gemma":
        return Vocabulary(spm.SentencePieceProcessor(model_file=str(shared("data/tokenizers/tokenizer.gemma"))))
    texts = [row["answer"] for row in jsonl("data/gsm8k/train.jsonl")]
    return Vocabulary(train_sentencepiece(texts, str(tmp_path_factory.mktemp("spm") / "vocab")))


@pytest.fixture(scope="module")
def solutions():
    rows = jsonl("data/gsm8k/train.jsonl") + jsonl("data/gsm8k/test.jsonl")
    assert len(rows) == 7473 + 1319
    return [row["answer"] for row in rows]


@pytest.fixture(scope="module")
def solution_rows(vocabulary, solutions):
    return vocabulary.processor.encode(solutions)


@pytest.fixture(scope="module")
def outputs():
    return jsonl("data/outputs/gsm8k_graded.jsonl")


def reference(texts, answers, marker=b"####"):
    pairs = zip(texts, answers, strict=True)
    return np.array([grade_bytes(text.encode(), answer.encode(), marker) for text, answer in pairs], np.int8)


def mutate(row: int, answer: str) -> str:
    """Another number than `answer`, in one of five ways that the rules all call different."""
    digit = answer[:-1] + str((int(answer[-1]) + 1) % 10)
    return [digit, f"-{answer}", f"0{answer}", f"{answer}0", f"{answer}.0"][row % 5]


def test_stream_is_the_text(vocabulary, solutions, solution_rows):
    stream = jax.jit(token_bytes_stream)
    seen = 0
    for index, tokens_BT, length_B in batches(solution_rows, len(vocabulary.token_bytes)):
        bytes_BN, sizes_B = map(np.asarray, stream(tokens_BT, length_B, vocabulary.table))
        assert bytes_BN.shape == (len(length_B), tokens_BT.shape[1] * vocabulary.table.bytes_VW.shape[1])
        for b, i in enumerate(index):
            assert bytes_BN[b, : sizes_B[b]].tobytes() == solutions[i].encode()
            assert not bytes_BN[b, sizes_B[b] :].any()
        seen += len(index)
    assert seen == len(solutions)


def test_solutions_answer_themselves(vocabulary, solutions, solution_rows):
    answers = [text.split("#### ")[1] for text in solutions]
    assert sum("," in answer for answer in answers) == 93 and sum("-" in answer for answer in answers) == 5
    verdicts = grade_rows(solution_rows, vocabulary.table, answers)
    np.testing.assert_array_equal(verdicts, Verdict.CORRECT)
    np.testing.assert_array_equal(verdicts, reference(solutions, answers))


def test_solutions_against_other_answers(vocabulary, solutions, solution_rows):
    answers = [mutate(i, text.split("#### ")[1]) for i, text in enumerate(solutions)]
    verdicts = grade_rows(solution_rows, vocabulary.table, answers)
    np.testing.assert_array_equal(verdicts, Verdict.WRONG)
    np.testing.assert_array_equal(verdicts, reference(solutions, answers))


def test_real_outputs_without_the_marker_are_unparsed(vocabulary, outputs):
    texts, answers = [row["output"] for row in outputs], [row["gt"] for row in outputs]
    assert len(texts) == 7914 and not any("####" in text for text in texts)
    verdicts = grade_rows(vocabulary.processor.encode(texts), vocabulary.table, answers)
    np.testing.assert_array_equal(verdicts, Verdict.UNPARSED)


@pytest.mark.parametrize("marker", ["A:", "####"])
def test_real_outputs_get_the_labels_of_their_authors(vocabulary, outputs, marker):
    """All 5,276 labels of openai/grade-school-math agree; the 11 responses without an answer are labelled false."""
    texts, answers = [row["output"].replace("A:", marker) for row in outputs], [row["gt"] for row in outputs]
    verdicts = grade_rows(vocabulary.processor.encode(texts), vocabulary.table, answers, marker.encode())
    np.testing.assert_array_equal(verdicts, reference(texts, answers, marker.encode()))

    openai = np.array([row["label_by"] == "openai" for row in outputs])
    label = np.array([row["label"] for row in outputs])
    assert openai.sum() == 5276 and label[openai].sum() == 2001
    np.testing.assert_array_equal((verdicts == Verdict.CORRECT)[openai], label[openai])
    # Cut off before an answer: repeated decimals, or the length limit. Every other response of theirs has a number.
    unanswered = np.array([marker not in text for text in texts])
    np.testing.assert_array_equal(verdicts == Verdict.UNPARSED, unanswered)
    assert (unanswered & openai).sum() == 11 and not label[unanswered & openai].any()
    assert unanswered[~openai].all()  # ToRA answers in a box
