"""Tokens of real text: they are its bytes, they never smuggle in a control token, and training repeats itself."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.data.tokenizer_files import load_or_train, train
from premem_jax.data.tokenizer_kinds import SentencePiece
from premem_jax.errors import UserError
from premem_jax.tasks import arithmetic
from tests.shared import shared

LITERALS = ["</s>", "<s>", "<pad>", "<unk>", "<0x41>", "a</s>b", "x <s> y", "#### 5</s>", " </s>", "<pad><pad>"]
TEXTS = [e.prompt + e.target for e in arithmetic.base_texts(400, seed=0)] + LITERALS * 3


@pytest.fixture(scope="module")
def solutions():
    lines = shared("data/gsm8k/train.jsonl").read_text().splitlines()[:1500]
    return [(row["question"] + "\nAnswer:", " " + row["answer"]) for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def pieces():
    """Byte-pair pieces of generated text, in which the names of the control tokens occur."""
    return SentencePiece(train(TEXTS, kind="bpe", vocab_size=420))


@pytest.fixture(scope="module")
def words():
    return SentencePiece(train(arithmetic.vocabulary(), kind="word", vocab_size=512))


def spelt(tokenizer, ids):
    table = tokenizer.token_bytes()
    return b"".join(table[i] for i in ids)


def pair(tokenizer, prompt, target):
    """Ids of both parts without the two markers, which are checked."""
    first, second = tokenizer.encode_pair(prompt, target)
    assert first.dtype == second.dtype == np.int32
    assert first[0] == tokenizer.bos_id and second[-1] == tokenizer.eos_id
    return list(first[1:]), list(second[:-1])


def test_tokens_are_the_bytes_of_real_text(solutions):
    """Trained on 300 solutions and read on 1,500: unseen characters come as bytes, and nothing is lost."""
    tokenizer = SentencePiece(train([p + t for p, t in solutions[:300]], kind="bpe", vocab_size=700))
    assert any(not (p + t).isascii() for p, t in solutions)
    splits = 0
    for prompt, target in solutions:
        first, second = pair(tokenizer, prompt, target)
        assert spelt(tokenizer, first + second) == (prompt + target).encode()
        assert tokenizer.decode(first + second) == prompt + target
        splits += spelt(tokenizer, first) == prompt.encode()
    assert splits > 0.5 * len(solutions)  # else the cut would be in the wrong place, not moved by a merge


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0▁")  # SentencePiece keeps these for itself


@given(text=st.text(CHARACTERS, min_size=1, max_size=30), cut=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(pieces, text, cut):
    at = max(1, int(cut * len(text)))
    first, second = pair(pieces, text[:at], text[at:])
    assert spelt(pieces, first + second) == text.encode() and pieces.decode(first + second) == text


def test_a_pair_is_tokenized_as_one_text(pieces):
    """Joint tokens, cut at the longest common start; merges across the border go to the target."""
    joint = lambda text: pair(pieces, text, "")[0]
    for example in arithmetic.problems("train", 100, seed=1):
        for border in (len(example.prompt), len(example.prompt) - 2, 3):
            text = example.prompt + example.target
            first, second = pair(pieces, text[:border], text[border:])
            assert first + second == joint(text)
            assert text.encode().startswith(spelt(pieces, first)) and len(spelt(pieces, first)) <= border
            assert first == joint(text[:border])[: len(first)]


def test_a_border_inside_a_piece_is_given_to_the_target():
    """Where prompt and target merge, the prompt ends before the merged piece."""
    tokenizer = SentencePiece(train(["abab"] * 50, kind="bpe", vocab_size=300))
    alone, joint = pair(tokenizer, "ab", "")[0], pair(tokenizer, "abab", "")[0]
    assert len(alone) == len(joint) == 1 and alone != joint
    assert pair(tokenizer, "ab", "ab") == ([], joint)


@pytest.mark.parametrize("text", LITERALS)
@pytest.mark.parametrize("kind", ["pieces", "words"])
def test_text_is_never_a_control_token(request, kind, text):
    tokenizer = request.getfixturevalue(kind)
    first, second = pair(tokenizer, "Tom had 3 " + text, text + " left")
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & {*first, *second}
    if kind == "pieces":
        assert spelt(tokenizer, first + second).decode() == f"Tom had 3 {text}{text} left"


def test_one_token_per_word(words):
    for example in arithmetic.problems("train", 50, seed=2):
        first, second = pair(words, example.prompt, example.target)
        assert (len(first), len(second)) == (len(example.prompt.split()), len(example.target.split()))
        assert spelt(words, first + second).decode().split() == (example.prompt + example.target).split()
        assert spelt(words, second).decode() == example.target


def test_control_tokens_have_no_bytes(pieces, words):
    for tokenizer in (pieces, words):
        table = tokenizer.token_bytes()
        assert len(table) == tokenizer.vocab_size
        assert [table[i] for i in range(4)] == [b""] * 4 and all(table[4:])
        assert {tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id} == {0, 1, 2}


@pytest.mark.parametrize(("kind", "size"), [("bpe", 400), ("word", 200)])
def test_training_repeats_itself(kind, size):
    assert train(TEXTS, kind=kind, vocab_size=size) == train(iter(TEXTS), kind=kind, vocab_size=size)
    assert train(TEXTS, kind=kind, vocab_size=size) != train(TEXTS[:50], kind=kind, vocab_size=size)
    assert SentencePiece(train(TEXTS, kind=kind, vocab_size=size)).vocab_size <= size


def test_a_tokenizer_is_trained_once(tmp_path):
    path = tmp_path / "new" / "tokenizer.model"
    made = load_or_train(path, iter(TEXTS), kind="word", vocab_size=100)
    assert path.read_bytes() == made.model == train(TEXTS, kind="word", vocab_size=100)
    again = load_or_train(path, iter(["other words"]), kind="word", vocab_size=50)
    assert again.model == made.model


@pytest.mark.parametrize("content", [b"", b"not a model", "half"])
def test_a_damaged_model_file_is_named(tmp_path, words, content):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(words.model[: len(words.model) // 2] if content == "half" else content)
    with pytest.raises(UserError, match=r"tokenizer\.model") as error:
        load_or_train(path, [], kind="word", vocab_size=100)
    assert "delete it" in str(error.value)


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.kind='unigram': choose one of word, bpe"):
        load_or_train(tmp_path / "tokenizer.model", TEXTS, kind="unigram", vocab_size=100)
    assert not list(tmp_path.iterdir())


def test_texts_that_spell_control_tokens_are_counted(words, caplog):
    words.encode_pairs([("1 <eos>", " 2<|eot_id|>"), ("1 + 1 < 3 | 4 >", " <a> 2"), ("<start_of_turn>", " 2")])
    assert "3 of 6 prompts and targets spell control tokens" in caplog.text
    caplog.clear()
    words.encode_pairs([("1 + 1 < 3 | 4 >", " <a> <<1+1=2>> 2")])
    assert "control tokens" not in caplog.text
