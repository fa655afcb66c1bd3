"""The device kernel against the graders in plain Python, on small cases, mutated texts and its own bounds."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from premem_jax.grading.answers import SLACK, Answers, answer_bytes, grade, vocabulary
from premem_jax.grading.grader import by_rules
from premem_jax.grading.normal_form import normal_form, one_fraction
from premem_jax.grading.normalise import normalise
from premem_jax.grading.reference import find_answer, grade_bytes
from premem_jax.grading.score import score
from premem_jax.grading.text import WIDTH, Text
from premem_jax.grading.verdict import Verdict
from tests.grading.cases import ANSWERS, EQUAL, FORMS, UNEQUAL
from tests.grading.mutations import LONG, Mutator, atoms
from tests.grading.vocabularies import (
    GRADE,
    REAL,
    SHAPES,
    agree,
    byte_vocabulary,
    cutter,
    grade_rows,
    pad_tokens,
    solutions,
)

RULES = ("gsm8k", "math")


def small_cases(rules):
    """Every case of `cases.py`, whichever rules it was written for, as texts and reference answers."""
    texts, answers = [], []
    box = {"gsm8k": "#### %s", "math": r"\boxed{%s}"}[rules]
    for _, text, answer in ANSWERS:
        for other in (answer, "18", None):
            texts.append(text), answers.append(other)
    pairs = [*FORMS, *EQUAL, *UNEQUAL]
    for one, other in [*pairs, *((b, a) for a, b in pairs), *((a, a) for a, _ in pairs)]:
        texts.append("" if one is None else box.replace("%s", one))
        answers.append(other)
    return [t.encode() for t in texts], [None if a is None else a.encode() for a in answers]


@pytest.mark.parametrize("rules", RULES)
def test_small_cases(rules):
    texts, answers = small_cases(rules)
    verdicts = grade_rows(texts, answers, byte_vocabulary(rules), rules)
    expected = agree(verdicts, texts, answers, rules)
    assert not np.any(verdicts == Verdict.UNDECIDED) and set(expected) == {0, 1, 2}


def test_normal_forms():
    """The rewriting alone: text, failure and the lower bound of the length, on every text that fits."""
    texts = [text.encode() for text, _ in FORMS] + [text for text in atoms(30_000, seed=5) if len(text) < WIDTH]
    rows = np.zeros((len(texts), WIDTH), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    sizes = np.array([len(text) for text in texts], np.int32)
    normal = jax.tree.map(np.asarray, jax.jit(normalise)(Text(rows.T, sizes)))
    seen = {"fails": 0, "unsure": 0}
    for i, text in enumerate(texts):
        form, size = normal_form(text), normal.text.length_B[i]
        seen["fails"] += form is None
        seen["unsure"] += bool(normal.unsure_B[i])
        if not normal.unsure_B[i]:
            assert normal.fails_B[i] == (form is None), text
            assert form in (None, one_fraction(normal.text.bytes_AB[:size, i].tobytes())), text
            assert not normal.text.bytes_AB[size:, i].any()
        assert form is None or len(form) >= normal.least_B[i], text
    assert seen["fails"] > 1000 and 0 < seen["unsure"] < 0.02 * len(texts)


def test_the_unseen_rest_takes_no_more_than_the_slack():
    """Any text that goes on: its normal form is at least as long as what is left of its start, less the slack."""
    starts = [text[: WIDTH - 1] for text in atoms(2500, seed=6, most=60) if len(text) >= WIDTH - 1]
    ends = [*atoms(100, seed=8), *LONG, b"ft", rb"ircirc}", b"ext{ ", b"=", rb"\text{ "]
    rows = np.stack([np.frombuffer(text.ljust(WIDTH, b"\0"), np.uint8) for text in starts])
    least_B = np.asarray(jax.jit(normalise)(Text(rows.T, np.full(len(rows), WIDTH - 1, np.int32))).least_B)
    assert len(starts) > 500 and np.mean(least_B > SLACK) > 0.5
    for start, least in zip(starts, least_B, strict=True):
        for end in ends:
            form = normal_form(start + end)
            assert form is None or len(form) >= least - SLACK, (start, end)


def check_mutations(rules, number, seed):
    """Compares the kernel with the reference on mutated texts; what it leaves open must be long, or no UTF-8."""
    texts, answers = Mutator(solutions("gsm8k")[:900] + solutions("math")[:900], rules, seed).pairs(number)
    texts = [text[:1024] for text in texts]
    verdicts = grade_rows(texts, answers, byte_vocabulary(rules), rules)
    expected = agree(verdicts, texts, answers, rules)
    assert all(np.mean(expected == verdict) > 0.1 for verdict in range(3))
    for i in np.flatnonzero(verdicts == Verdict.UNDECIDED):
        assert len(texts[i]) > WIDTH // 2 or texts[i] != texts[i].decode(errors="ignore").encode(), texts[i]
    assert np.mean(verdicts == Verdict.UNDECIDED) < 0.04


@pytest.mark.parametrize("rules", RULES)
def test_mutated_texts(rules):
    check_mutations(rules, 12_000, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("rules", RULES)
def test_many_mutated_texts(rules, seed):
    check_mutations(rules, 30_000, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("rules", RULES)
def test_mutated_texts_in_real_vocabularies(rules, name):
    token_bytes = REAL[name]()
    texts, answers = Mutator(solutions("gsm8k")[:900] + solutions("math")[:900], rules, 77).pairs(10_000)
    cut = cutter(token_bytes, 7)
    tables = jax.device_put(vocabulary(token_bytes, rules))
    verdicts = grade_rows([cut(text)[:1024] for text in texts], answers, tables, rules)
    agree(verdicts, [b"".join(token_bytes[i] for i in cut(text)) for text in texts], answers, rules)


def mutated_batch(rules, shape, most, seed=3):
    """Texts of at most `most` bytes, one for each row of `shape`, and what `grade` takes of them."""
    texts, answers = Mutator(solutions("math")[:300], rules, seed).pairs(shape[0])
    texts = [text[:most] for text in texts]
    return texts, answers, *pad_tokens(texts, shape, 256, seed), answer_bytes(answers, rules)


@pytest.mark.parametrize("rules", RULES)
def test_place_padding_and_order_never_matter(rules):
    _, _, tokens_BT, length_B, answers = mutated_batch(rules, SHAPES[0], most=1000)
    tables = byte_vocabulary(rules)
    verdict_B = np.asarray(GRADE(tokens_BT, length_B, tables, answers, rules=rules))
    assert set(verdict_B) >= {0, 1, 2}
    rng = np.random.default_rng(0)
    order = rng.permutation(len(length_B))
    garbage = rng.integers(-(2**31), 2**31, SHAPES[0], dtype=np.int32)
    moved_BT = np.where(np.arange(SHAPES[0][1]) < length_B[:, None], tokens_BT, garbage)[order]
    moved = Answers(*(x[order] for x in answers))
    again_B = np.asarray(GRADE(moved_BT, length_B[order], tables, moved, rules=rules))
    np.testing.assert_array_equal(again_B, verdict_B[order])


@pytest.mark.parametrize("rules", RULES)
def test_tokens_without_text_never_matter(rules):
    """Ids outside the vocabulary between any two bytes; four in five tokens are such, so windows show fewer bytes."""
    texts, answers, tokens_BT, length_B, packed = mutated_batch(rules, SHAPES[0], most=200)
    spread_BT = np.full(SHAPES[0], -1, np.int32)
    spread_BT[:, 1:1000:5] = tokens_BT[:, :200]
    spread_BT[:, ::5] = 256
    verdict_B = np.asarray(GRADE(spread_BT, 5 * length_B, byte_vocabulary(rules), packed, rules=rules))
    agree(verdict_B, texts, answers, rules)
    assert np.mean(verdict_B == Verdict.UNDECIDED) < 0.5


def test_vmap_over_samples():
    _, _, tokens_BT, length_B, answers = mutated_batch("math", SHAPES[0], most=240)
    tables, answers = byte_vocabulary("math"), Answers(*(x[:256] for x in answers))
    mapped = jax.jit(jax.vmap(grade, in_axes=(0, 0, None, None, None)), static_argnums=4)
    verdict_RB = mapped(tokens_BT[:, :240].reshape(4, 256, 240), length_B.reshape(4, 256), tables, answers, "math")
    repeated = Answers(*(np.concatenate([x] * 4) for x in answers))
    verdict_B = GRADE(tokens_BT, length_B, tables, repeated, rules="math")
    np.testing.assert_array_equal(verdict_RB.reshape(-1), verdict_B)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_sharded_batch_is_the_batch(devices):
    _, _, tokens_BT, length_B, answers = mutated_batch("math", SHAPES[0], most=240)
    tables = byte_vocabulary("math")
    single = np.asarray(GRADE(tokens_BT, length_B, tables, answers, rules="math"))

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arguments = jax.device_put((tokens_BT, length_B, tables, answers), (rows, rows, everywhere, rows))
    compiled = jax.jit(grade, static_argnums=4, out_shardings=rows).lower(*arguments, "math").compile()
    verdict_B = compiled(*arguments)
    assert verdict_B.addressable_shards[0].data.shape == (SHAPES[0][0] // devices,)
    np.testing.assert_array_equal(verdict_B, single)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_nothing_is_asked_of_the_host(platform):
    """Of the whole program, likelihood and verdicts."""
    _, _, tokens_BT, length_B, answers = mutated_batch("math", (8, 256), most=240)
    targets = np.zeros((8, 5, 7), np.float32), np.zeros((8, 5), np.int32), np.ones((8, 5), np.float32)
    sampled = tokens_BT, length_B, byte_vocabulary("math"), answers, "math"
    traced = jax.jit(score, static_argnums=7).trace(*targets, *sampled)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "func.func public @main" in text
    for word in ("custom_call", "callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv"):
        assert word not in text


def test_memory_of_a_large_batch():
    """1,024 samples of 512 tokens; XLA's own analysis says what is needed beyond arguments and result."""
    shape = lambda dtype, *dims: jax.ShapeDtypeStruct(dims, dtype)
    tables = byte_vocabulary("math")
    big = shape(np.uint8, 128_256, 128), shape(np.int32, 128_256)
    tables = tables._replace(table=type(tables.table)(*big), finder=tables.finder._replace(class_V=big[1]))
    answers = Answers(shape(np.uint8, 1024, 4, WIDTH), shape(np.int32, 1024, 4))
    lowered = jax.jit(grade, static_argnums=4).lower(
        shape(np.int32, 1024, 512), shape(np.int32, 1024), tables, answers, "math"
    )
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 64e6


def test_bounds_are_flagged_and_settled():
    most = WIDTH - 2  # a box is seen with its braces
    inside, long = rb"\boxed{" + b"1" * most + b"}", rb"\boxed{" + b"1" * (most + 1) + b"}"
    texts = [inside, long, rb"\boxed{" + b"x" * 400, rb"\boxed{1" + b"x" * 100, b"answer" + b"word " * 200, b"answer 1"]
    answers = ["1" * most, "1" * (most + 1), "1", "1", "1", "1"]
    verdict_B = grade_rows(texts, answers, byte_vocabulary("math"), "math")
    tokens_BT, length_B = pad_tokens(texts, (6, 1024), 256)
    assert verdict_B.tolist() == [0, 3, 3, 2, 1, 0]
    settled, count = by_rules("math").resolve(verdict_B, tokens_BT, length_B, lambda ids: bytes(ids.tolist()), answers)
    assert settled.tolist() == [0, 0, 2, 2, 1, 0] and count == 2
    assert settled.tolist() == [grade_bytes(t, a.encode(), "math") for t, a in zip(texts, answers, strict=True)]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="vocabulary is empty"):
        vocabulary([], "math")
    with pytest.raises(ValueError, match="no grading rules 'maths'"):
        answer_bytes(["18"], "maths")
    _, _, tokens_BT, length_B, answers = mutated_batch("math", (8, 256), most=240)
    with pytest.raises(ValueError, match="made for other grading rules"):
        GRADE(tokens_BT, length_B, byte_vocabulary("math"), answers, rules="gsm8k")
    assert find_answer(b"", "math") is None
