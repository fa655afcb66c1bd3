"""Tokenized text for the scoring tests: the bytes of real SentencePiece vocabularies, and batches of fixed shapes."""

import json

import jax
import numpy as np
import sentencepiece as spm

from premem_jax.scoring.answers import Answers, answer_bytes, grade
from premem_jax.scoring.bytes import ByteTable, byte_table
from tests.shared import shared

BATCHES = ((192, 128), (512, 48), (1536, 16))  # tokens per row, rows: few shapes, so few compilations
ANSWER_WIDTH = 32
GRADE = jax.jit(grade, static_argnames="marker")


class Vocabulary:
    """A SentencePiece model with its byte table; built here from pieces alone, apart from the package's tokenizers."""

    def __init__(self, processor: spm.SentencePieceProcessor):
        self.processor = processor
        self.token_bytes = [self._piece(i) for i in range(processor.vocab_size())]
        self.table = jax.device_put(byte_table(self.token_bytes))

    def _piece(self, i: int) -> bytes:
        if self.processor.is_control(i) or self.processor.is_unknown(i):
            return b""
        piece = self.processor.id_to_piece(i)
        return bytes([int(piece[3:5], 16)]) if self.processor.is_byte(i) else piece.replace("▁", " ").encode()


def train_sentencepiece(texts: list[str], prefix: str) -> spm.SentencePieceProcessor:
    """A vocabulary of 2,000 pieces that encodes every text without loss."""
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=prefix,
        vocab_size=2000,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=2,
        minloglevel=2,
    )
    return spm.SentencePieceProcessor(model_file=f"{prefix}.model")


def jsonl(path: str) -> list[dict]:
    """Rows of a file of the shared data."""
    return [json.loads(line) for line in shared(path).read_text(encoding="utf-8").splitlines()]


def pad_answers(answers: Answers, width: int, rows: int = 0) -> Answers:
    """The same answers in a wider array and with empty ones behind them, so that shapes repeat."""
    grow = max(0, rows - len(answers.length_E))
    bytes_EA = np.pad(answers.bytes_EA, ((0, grow), (0, width - answers.bytes_EA.shape[1])))
    return Answers(bytes_EA, np.pad(answers.length_E, (0, grow)))


def pad_tokens(rows: list[list[int]], shape: tuple[int, int], vocab: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Rows of ids in one array with random ids behind each; returns tokens_BT and length_B."""
    tokens_BT = np.random.default_rng(seed).integers(0, vocab, shape, dtype=np.int32)
    length_B = np.zeros(shape[0], np.int32)
    for b, row in enumerate(rows):
        tokens_BT[b, : len(row)] = row
        length_B[b] = len(row)
    return tokens_BT, length_B


def batches(rows: list[list[int]], vocab: int):
    """Yields (indices, tokens_BT, length_B) until every row was in one batch; padding is random ids."""
    sizes = np.array([len(row) for row in rows])
    shortest = 0
    for T, B in BATCHES:
        chosen = np.flatnonzero((sizes <= T) & (sizes >= shortest))
        shortest = T + 1
        for index in np.split(chosen, range(B, len(chosen), B)):
            if len(index):
                yield index, *pad_tokens([rows[i] for i in index], (B, T), vocab, seed=int(index[0]))
    assert sizes.max() < shortest, "a row is longer than every batch shape"


def grade_rows(rows: list[list[int]], table: ByteTable, answers: list[str], marker: bytes = b"####") -> np.ndarray:
    """Verdicts of the device kernel for every row, batch by batch."""
    packed = pad_answers(answer_bytes(answers), ANSWER_WIDTH)
    verdicts = np.full(len(rows), -1, np.int8)
    for index, tokens_BT, length_B in batches(rows, len(table.length_V)):
        own = pad_answers(Answers(packed.bytes_EA[index], packed.length_E[index]), ANSWER_WIDTH, len(length_B))
        verdicts[index] = np.asarray(GRADE(tokens_BT, length_B, table, own, marker=marker))[: len(index)]
    return verdicts
