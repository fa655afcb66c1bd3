"""Tokenized text for the grading tests: real vocabularies, any way to cut a text into tokens, batches of few shapes."""

import base64
import functools
import json
import random

import jax
import numpy as np
import sentencepiece as spm

from premem_jax.grading.answers import Vocabulary, answer_bytes, grade, vocabulary
from premem_jax.grading.reference import grade_bytes
from premem_jax.grading.verdict import Verdict
from tests.shared import shared

SHAPES = ((1024, 1024), (64, 16384))  # rows, tokens per row: few shapes, so few compilations
GRADE = jax.jit(grade, static_argnames="rules")
SINGLE_BYTES = tuple(bytes([i]) for i in range(256))


@functools.cache
def byte_vocabulary(rules: str) -> Vocabulary:
    """Every byte is a token: ids are the text."""
    return jax.device_put(vocabulary(SINGLE_BYTES, rules))


@functools.cache
def llama3() -> tuple[bytes, ...]:
    """The bytes of Llama 3's tokens, the 256 special ones included."""
    lines = shared("data/tokenizers/tokenizer_llama3.tiktoken").read_bytes().splitlines()
    tokens = [base64.b64decode(line.split()[0]) for line in lines]
    assert len(tokens) == 128_000 and max(map(len, tokens)) == 128
    return (*tokens, *[b""] * 256)


@functools.cache
def gemma() -> tuple[bytes, ...]:
    """The bytes of Gemma's pieces, built here from the pieces alone, apart from the package's tokenizers."""
    processor = spm.SentencePieceProcessor(model_file=str(shared("data/tokenizers/tokenizer.gemma")))

    def piece(i: int) -> bytes:
        if processor.is_control(i) or processor.is_unknown(i):
            return b""
        text = processor.id_to_piece(i)
        return bytes([int(text[3:5], 16)]) if processor.is_byte(i) else text.replace("▁", " ").encode()

    return tuple(piece(i) for i in range(processor.vocab_size()))


REAL = {"llama3": llama3, "gemma": gemma}


def cutter(token_bytes: tuple[bytes, ...], seed: int):
    """A function that cuts a text into tokens of the vocabulary at random places, special tokens thrown in."""
    draw = random.Random(seed)
    ids = {token: i for i, token in enumerate(token_bytes) if token}
    empty = [i for i, token in enumerate(token_bytes) if not token]

    def cut(text: bytes) -> list[int]:
        row, at = [], 0
        while at < len(text):
            size = draw.choice((1, 2, 3, 4, 5, 6, 8, 12, 20))
            while text[at : at + size] not in ids:
                size -= 1
            row.append(ids[text[at : at + size]])
            at += size
            if draw.random() < 0.02:
                row.append(draw.choice(empty))
        return row

    return cut


def jsonl(path: str) -> list[dict]:
    """Rows of a file of the shared data."""
    return [json.loads(line) for line in shared(path).read_text(encoding="utf-8").splitlines()]


def solutions(task: str) -> list[bytes]:
    """Every reference solution of GSM8K or MATH, both splits."""
    field = {"gsm8k": "answer", "math": "solution"}[task]
    rows = [row for split in ("train", "test") for row in jsonl(f"data/{task}/{split}.jsonl")]
    assert len(rows) == {"gsm8k": 8792, "math": 12500}[task]
    return [row[field].encode() for row in rows]


def pad_tokens(rows, shape: tuple[int, int], vocab: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids in one array with random ids behind each; returns tokens_BT and length_B."""
    tokens_BT = np.random.default_rng(seed).integers(0, vocab, shape, dtype=np.int32)
    length_B = np.zeros(shape[0], np.int32)
    for b, row in enumerate(rows):
        tokens_BT[b, : len(row)] = np.frombuffer(row, np.uint8) if isinstance(row, bytes) else row
        length_B[b] = len(row)
    return tokens_BT, length_B


def grade_rows(rows, answers, tables: Vocabulary, rules: str, shapes=SHAPES) -> np.ndarray:
    """The kernel's verdicts, batch by batch, of rows of ids (bytes are ids of `SINGLE_BYTES`)."""
    verdicts = np.full(len(rows), -1, np.int8)
    sizes, shortest = np.array([len(row) for row in rows]), 0
    for B, T in shapes:
        chosen = np.flatnonzero((sizes <= T) & (sizes >= shortest))
        shortest = T + 1
        for index in np.split(chosen, range(B, len(chosen), B)):
            if len(index):
                padded = [answers[i] for i in index] + [None] * (B - len(index))
                batch = pad_tokens([rows[i] for i in index], (B, T), len(tables.table.length_V), int(index[0]))
                verdict_B = GRADE(*batch, tables, answer_bytes(padded, rules), rules=rules)
                verdicts[index] = np.asarray(verdict_B)[: len(index)]
    assert sizes.max() < shortest, "a row is longer than every batch shape"
    return verdicts


def agree(verdicts: np.ndarray, texts: list[bytes], answers, rules: str) -> np.ndarray:
    """The reference's verdicts, after a check that the kernel's are the same but where it leaves them open."""
    expected = np.array([grade_bytes(*pair, rules) for pair in zip(texts, answers, strict=True)], np.int8)
    for i in np.flatnonzero((verdicts != expected) & (verdicts != Verdict.UNDECIDED))[:1]:
        raise AssertionError(f"{verdicts[i]} for {expected[i]}: {texts[i][-300:]!r} against {answers[i]!r}")
    return expected
