"""Tokenizers as `AutoTokenizer` reads them from our files: the ids of ours, the start marker in front."""

import json

import pytest
import transformers

from premem_jax.data import tokenizer_export
from premem_jax.data.tokenizer_files import train
from premem_jax.data.tokenizer_kinds import Llama3, SentencePiece
from tests.shared import shared

ODD = ["", " ", "  two  spaces ", "é∑🧿\x00\r\n\t", "\n\n1234567", "▁x ▁▁", "<0x0A>"]


@pytest.fixture(scope="module")
def texts():
    rows = map(json.loads, shared("data/gsm8k/train.jsonl").read_text().splitlines()[:150])
    return [text for row in rows for text in (row["question"] + "\nAnswer:", " " + row["answer"])]


def auto(tokenizer, folder):
    for name, data in tokenizer_export.files(tokenizer).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return transformers.AutoTokenizer.from_pretrained(folder)


def check(tokenizer, theirs, texts):
    for name in ("bos", "eos", "pad"):
        assert getattr(theirs, f"{name}_token_id") == getattr(tokenizer, f"{name}_id")
    for text in texts:
        prompt, _ = tokenizer.encode_pair(text, "")
        assert theirs(text).input_ids == prompt.tolist(), text
        if 3 not in prompt:  # an unknown word, which ours shows as a sign
            assert theirs.decode(prompt, skip_special_tokens=True) == tokenizer.decode(prompt)


def test_byte_pairs_trained_here(texts, tmp_path):
    tokenizer = SentencePiece(train(texts[:100], kind="bpe", vocab_size=700))
    check(tokenizer, auto(tokenizer, tmp_path), texts + ODD)


def test_words_trained_here(texts, tmp_path):
    tokenizer = SentencePiece(train(texts, kind="word", vocab_size=10_000))
    check(tokenizer, auto(tokenizer, tmp_path), texts + ODD[:3])


@pytest.mark.slow
@pytest.mark.parametrize("kind, name", [(Llama3, "tokenizer_llama3.tiktoken"), (SentencePiece, "tokenizer.gemma")])
def test_published_tokenizers(kind, name, texts, tmp_path):
    tokenizer = kind(shared(f"data/tokenizers/{name}").read_bytes())
    check(tokenizer, auto(tokenizer, tmp_path), texts + ODD)
