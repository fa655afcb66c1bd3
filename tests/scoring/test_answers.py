"""The grading rules one by one, and the kernel against them on texts cut into tokens at any place."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from premem_jax.scoring.answers import Answers, answer_bytes, grade
from premem_jax.scoring.bytes import byte_table, token_bytes_stream
from premem_jax.scoring.reference import find_span, grade_bytes
from premem_jax.scoring.verdict import Verdict
from tests.scoring.vocabularies import GRADE, pad_answers, pad_tokens

T, B, W, V = 64, 4, 8, 300
BYTES = byte_table([bytes([i]) for i in range(256)] + [b""] * (V - 257) + [b"#### 18\n"])
MARKERS = [b"####", b"A:", b"\n\n", b"aab", b"\0"]

CASES = [
    ("#### 18", "18", Verdict.CORRECT),
    ("So 9 * 2 = 18.\n#### 18", "18", Verdict.CORRECT),
    ("####18", "18", Verdict.CORRECT),
    ("#### 18\nand 5 more", "18", Verdict.CORRECT),
    ("#### \t18 \r\n", "18", Verdict.CORRECT),
    ("#### 1,234,567", "1234567", Verdict.CORRECT),
    ("#### 1234567", " 1,234,567", Verdict.CORRECT),
    ("#### 1 8", "18", Verdict.CORRECT),
    ("#### +18", "18", Verdict.CORRECT),
    ("#### , + 18", "18", Verdict.CORRECT),
    ("#### 18", "+18", Verdict.CORRECT),
    ("#### -5", "-5", Verdict.CORRECT),
    ("#### 18 apples é", "18apples é", Verdict.CORRECT),
    ("#### 18#### 19", "18####19", Verdict.CORRECT),
    ("##### 18", "#18", Verdict.CORRECT),
    ("#### 0", "0", Verdict.CORRECT),
    ("#### 9", "9", Verdict.CORRECT),
    ("#### /:", "/:", Verdict.UNPARSED),
    ("#### 17\n#### 18", "18", Verdict.WRONG),
    ("#### 18#### 19", "19", Verdict.WRONG),
    ("##### 18", "18", Verdict.WRONG),
    ("#### ++18", "18", Verdict.WRONG),
    ("#### 1+8", "18", Verdict.WRONG),
    ("#### -18", "18", Verdict.WRONG),
    ("#### 18", "-18", Verdict.WRONG),
    ("#### 018", "18", Verdict.WRONG),
    ("#### 18.0", "18", Verdict.WRONG),
    ("#### 18", "18.0", Verdict.WRONG),
    ("#### $18", "18", Verdict.WRONG),
    ("#### 18 apples", "18", Verdict.WRONG),
    ("#### 1", "18", Verdict.WRONG),
    ("#### 18" + "18" * 20, "18", Verdict.WRONG),
    ("#### 18\0", "18", Verdict.WRONG),
    ("#### 18", "", Verdict.WRONG),
    ("", "18", Verdict.UNPARSED),
    ("18", "18", Verdict.UNPARSED),
    ("### 18", "18", Verdict.UNPARSED),
    ("### # 18", "18", Verdict.UNPARSED),
    ("####", "18", Verdict.UNPARSED),
    ("18####", "18", Verdict.UNPARSED),
    ("18 ####\n18", "18", Verdict.UNPARSED),
    ("#### none", "none", Verdict.UNPARSED),
    ("#### ١٨", "١٨", Verdict.UNPARSED),
    ("#### +,\t", "", Verdict.UNPARSED),
]


@pytest.mark.parametrize("text,answer,verdict", CASES)
def test_rules(text, answer, verdict):
    assert grade_bytes(text.encode(), answer.encode()) is verdict
    tokens_BT, length_B = pad_tokens([list(text.encode())], (B, T), V)
    answers = pad_answers(answer_bytes([answer]), 24, B)
    assert GRADE(tokens_BT, length_B, BYTES, answers)[0] == verdict


def test_verdict_codes_are_those_of_published_traces():
    assert [int(v) for v in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED)] == [0, 1, 2]


NOISE = [b" ", b"\t", b"\r", b",", b"+", b"-", b"0", b"1", b"18"]


@st.composite
def texts(draw, marker):
    """Something, most often a marker, something like a number, something; rich in what the rules look at."""
    part = st.sampled_from([*NOISE, b"#", b"\n", b"a", b"\0", marker, marker[:1], marker[-1:], "é１".encode(), b"\xff"])
    parts = [
        *draw(st.lists(part, max_size=6)),
        draw(st.sampled_from([marker, marker, marker, marker[:-1]])),
        *draw(st.lists(st.sampled_from(NOISE), max_size=6)),
        *draw(st.lists(part, max_size=8)),
    ]
    return b"".join(parts)[: T - 1]


@st.composite
def cut(draw, text):
    """The text as tokens of 0 to W bytes."""
    pieces = []
    while text:
        size = draw(st.integers(0, W)) if len(pieces) + len(text) < T else 1
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@st.composite
def tokenized_batches(draw):
    """A vocabulary, B texts as its ids behind which anything may stand, and their answers."""
    marker = draw(st.sampled_from(MARKERS))
    rows = [draw(texts(marker)) for _ in range(B)]
    pieces = [draw(cut(row)) for row in rows]
    vocab = draw(st.permutations(sorted({piece for row in pieces for piece in row} | {marker[:W], b"\n", b"18" * 4})))
    ids = {piece: i for i, piece in enumerate(vocab)}
    tokens = pad_tokens([[ids[p] for p in row] for row in pieces], (B, T), len(vocab), draw(st.integers(0, 2**32 - 1)))
    # An answer is often the row's own, whole or with one byte gone, else equality would hardly ever be met.
    answers = []
    for row in rows:
        own = find_span(row, marker) or b"18"
        other = draw(texts(marker)).replace(b"\n", b"")
        answers.append(draw(st.sampled_from([own, own, b"+" + own, own[:-1], own[1:], own + b"0", other])))
    return marker, rows, vocab + [b""] * (V - len(vocab)), tokens, answers


def table_of(vocab):
    """One of fixed shape, whatever the longest token of this vocabulary."""
    table = byte_table([*vocab[: V - 1], b"x" * W])
    assert table.bytes_VW.shape == (V, W)
    return table


@settings(max_examples=150, deadline=None)
@given(tokenized_batches())
def test_kernel_is_the_reference(batch):
    marker, rows, vocab, (tokens_BT, length_B), answers = batch
    packed = pad_answers(answer_bytes(answers), T + 1)
    verdict_B = GRADE(tokens_BT, length_B, table_of(vocab), packed, marker=marker)
    assert verdict_B.dtype == np.int8
    assert verdict_B.tolist() == [grade_bytes(row, answer, marker) for row, answer in zip(rows, answers, strict=True)]


STREAM = jax.jit(token_bytes_stream)


@settings(max_examples=60, deadline=None)
@given(tokenized_batches())
def test_stream_joins_the_tokens(batch):
    _, rows, vocab, (tokens_BT, length_B), _ = batch
    bytes_BN, size_B = map(np.asarray, STREAM(tokens_BT, length_B, table_of(vocab)))
    assert bytes_BN.shape == (B, T * W) and bytes_BN.dtype == np.uint8 and size_B.dtype == np.int32
    assert [row.tobytes() for row in bytes_BN] == [row.ljust(T * W, b"\0") for row in rows]


@settings(max_examples=40, deadline=None)
@given(tokenized_batches(), st.integers(0, 2**32 - 1))
def test_place_and_padding_never_matter(batch, seed):
    marker, _, vocab, (tokens_BT, length_B), answers = batch
    table, packed = table_of(vocab), pad_answers(answer_bytes(answers), T + 1)
    verdict_B = np.asarray(GRADE(tokens_BT, length_B, table, packed, marker=marker))
    rng = np.random.default_rng(seed)
    order = rng.permutation(B)
    garbage = rng.integers(-(2**31), 2**31, (B, T + 16), dtype=np.int32)
    kept = np.arange(T + 16) < length_B[:, None]
    wide_BT = np.where(kept, np.pad(tokens_BT, ((0, 0), (0, 16))), garbage)[order]
    moved = Answers(packed.bytes_EA[order], packed.length_E[order])
    again_B = np.asarray(GRADE(wide_BT, length_B[order], table, moved, marker=marker))
    np.testing.assert_array_equal(again_B, verdict_B[order])


def test_long_tokens_fill_every_slot():
    rows = [[V - 1] * T, [V - 1] * 3, [], [0] * T]
    tokens_BT, length_B = pad_tokens(rows, (B, T), V)
    bytes_BN, size_B = map(np.asarray, STREAM(tokens_BT, length_B, BYTES))
    assert size_B.tolist() == [T * W, 3 * W, 0, T]
    assert bytes_BN[0].tobytes() == b"#### 18\n" * T


def test_ids_outside_the_vocabulary_have_no_text():
    text = list(b"#### 18")
    rows = [text, [-1, *text, V], [*text[:2], V, 2**31 - 1, *text[2:], -(2**31)], [V, -V]]
    tokens_BT, length_B = pad_tokens(rows, (B, T), V)
    verdict_B = GRADE(tokens_BT, length_B, BYTES, answer_bytes(["18"] * B))
    assert verdict_B.tolist() == [Verdict.CORRECT] * 3 + [Verdict.UNPARSED]


def test_an_answer_longer_than_any_reference_is_decided():
    text = list(b"####" + b"18 ," * 15)
    for row, answer, verdict in [
        (text, "18", 1),
        (text, "18" * 15, 0),
        (text, "18" * 15 + "1", 1),
        (text[:6], "18", 0),
    ]:
        tokens_BT, length_B = pad_tokens([row], (1, T), V)
        assert GRADE(tokens_BT, length_B, BYTES, answer_bytes([answer])).tolist() == [verdict]


def random_rows(rows: int):
    """Texts that end in an answer or nearly so; each verdict occurs."""
    rng = np.random.default_rng(0)
    answers = [str(n) for n in rng.integers(0, 3, rows)]
    before = rng.choice(["### ", "####", "#### ", "####+", "####,", "####\n"], rows)
    texts = [f"{text}{number}" for text, number in zip(before, rng.integers(0, 3, rows), strict=True)]
    return *pad_tokens([list(text.encode()) for text in texts], (rows, T), V), answer_bytes(answers)


def test_vmap_over_samples():
    tokens_BT, length_B, answers = random_rows(40)
    answers = Answers(answers.bytes_EA[:8], answers.length_E[:8])
    tokens_RBT, length_RB = tokens_BT.reshape(5, 8, T), length_B.reshape(5, 8)
    verdict_RB = jax.jit(jax.vmap(grade, in_axes=(0, 0, None, None)))(tokens_RBT, length_RB, BYTES, answers)
    for r in range(5):
        np.testing.assert_array_equal(verdict_RB[r], GRADE(tokens_RBT[r], length_RB[r], BYTES, answers))


def test_sharded_batch_is_the_batch():
    tokens_BT, length_B, answers = random_rows(64)
    single = np.asarray(GRADE(tokens_BT, length_B, BYTES, answers))
    assert set(single.tolist()) == set(Verdict)

    assert len(jax.devices()) >= 8
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arguments = jax.device_put((tokens_BT, length_B, BYTES, answers), (rows, rows, everywhere, rows))
    compiled = jax.jit(grade, out_shardings=rows).lower(*arguments).compile()
    verdict_B = compiled(*arguments)
    assert len(verdict_B.addressable_shards) == 8 and verdict_B.addressable_shards[0].data.shape == (8,)
    np.testing.assert_array_equal(verdict_B, single)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_nothing_is_asked_of_the_host(platform):
    tokens_BT, length_B, answers = random_rows(8)
    lowered = jax.jit(grade).trace(tokens_BT, length_B, BYTES, answers).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert "func.func public @main" in text
    for word in ("custom_call", "callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv"):
        assert word not in text


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="vocabulary is empty"):
        byte_table([])
    with pytest.raises(ValueError, match=r"reference answer 1 holds a newline.*'18\\n'"):
        answer_bytes(["18", "18\n"])
    tokens_BT, length_B, answers = random_rows(2)
    with pytest.raises(ValueError, match="marker is empty"):
        GRADE(tokens_BT, length_B, BYTES, answers, marker=b"")
    with pytest.raises(ValueError, match="marker is empty"):
        find_span(b"#### 18", b"")
