"""Verdicts of sampled answers on the device. `reference.py` is the specification and decides doubtful cases."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from premem_jax.grading.bytes import ByteTable, byte_table, window
from premem_jax.grading.finder import NOWHERE, Finder, Found, find, make_finder
from premem_jax.grading.normal_form import HALF, normal_form, written_with_slash
from premem_jax.grading.normalise import normalise
from premem_jax.grading.reference import clean
from premem_jax.grading.rules import BOXES, TRIMMED, Rules, rules_of
from premem_jax.grading.text import POSITION_A1, WIDTH, Text, delete, first, running_sum
from premem_jax.grading.verdict import Verdict

# If the kernel does not see the end of a text, it knows how many bytes the rules leave of the visible part. The unseen
# rest can delete some: per rule at most a pattern less one byte (35 in all), and 9 for two characters and a `=`.
SLACK = 44


class Answers(NamedTuple):
    """Reference answers in all accepted forms: normal form, with a slash, decimal, and as written.

    bytes_EFA uint8, zero padded to the kernel's width; length_EF int32, NOWHERE for a missing form.
    """

    bytes_EFA: jax.Array | np.ndarray
    length_EF: jax.Array | np.ndarray


class Vocabulary(NamedTuple):
    """A tokenizer's tables for the kernel: the bytes of each token, and the automaton of one rule set."""

    table: ByteTable
    finder: Finder


def vocabulary(token_bytes: Sequence[bytes], rules: str | Rules) -> Vocabulary:
    """Builds the tables of a vocabulary on the host; `token_bytes[i]` is the text of id i, b"" for a special token.

    Raises ValueError for an empty vocabulary and for unknown rules.
    """
    return Vocabulary(byte_table(token_bytes), make_finder(token_bytes, rules_of(rules)))


def answer_bytes(answers: Sequence[str | bytes | None], rules: str | Rules) -> Answers:
    """Normalises reference answers on the host and returns them as arrays; row e is answers[e], None if missing."""
    rows = [_forms(a.encode() if isinstance(a, str) else a, rules) for a in answers]
    length_EF = np.array([[NOWHERE if form is None else len(form) for form in row] for row in rows], np.int32)
    padded = b"".join((form or b"")[:WIDTH].ljust(WIDTH, b"\0") for row in rows for form in row)
    return Answers(np.frombuffer(padded, np.uint8).reshape(len(rows), 4, WIDTH), length_EF.reshape(len(rows), 4))


def _forms(answer: bytes | None, rules: str | Rules) -> tuple[bytes | None, ...]:
    if answer is None:
        return (None,) * 4
    written = clean(answer, rules)
    normal = normal_form(written)
    slash = None if normal is None else written_with_slash(normal)
    return normal, slash, b"0.5" if normal == HALF else None, written


def grade(
    tokens_BT: jax.Array, length_B: jax.Array, vocabulary: Vocabulary, answers: Answers, rules: str | Rules
) -> jax.Array:
    """Verdicts of sampled responses, from token ids alone and without a call to the host.

    Shapes: tokens_BT int; length_B int, the tokens of each row without padding; answers with one row for each of B ->
    verdict_B int8, codes of `Verdict`. Ids outside the vocabulary have no text. `rules` is static and must be those of
    vocabulary and answers. The verdict is UNDECIDED if an answer does not fit the kernel; `Grader.resolve` decides it.
    Works under jit, vmap (over samples, with the answers not mapped) and, without communication, on batches sharded
    over B. Raises ValueError for unknown rules or tables of other rules. Source: `reference.py`.
    """
    rules = rules_of(rules)
    found = find(tokens_BT, length_B, vocabulary.table.length_V, vocabulary.finder, rules)
    exists_B, text, more_B, unclosed_B = _answer_text(tokens_BT, found, vocabulary.table, rules)
    longer_B = more_B | (text.length_B >= WIDTH)
    normal = normalise(Text(text.bytes_AB, jnp.minimum(text.length_B, WIDTH - 1)))

    length_FB, bytes_AFB = jnp.asarray(answers.length_EF).T, jnp.asarray(answers.bytes_EFA).T
    same = lambda text, f: jnp.all(bytes_AFB[:, f] == text.bytes_AB, axis=0) & (length_FB[f] == text.length_B)
    by_bytes_B = normal.fails_B | (length_FB[0] == NOWHERE)
    equal_B = jnp.where(by_bytes_B, same(text, 3), same(normal.text, 0) | same(normal.text, 1) | same(normal.text, 2))

    missing_B = length_FB[3] == NOWHERE
    too_long_B = normal.least_B > jnp.max(length_FB, axis=0) + SLACK
    doubt_B = exists_B & ~missing_B & (longer_B | normal.unsure_B) & ~too_long_B
    correct_B = jnp.where(exists_B & ~missing_B, equal_B & ~longer_B & ~normal.unsure_B, exists_B == ~missing_B)
    verdict_B = jnp.where(exists_B, Verdict.WRONG.value, Verdict.UNPARSED.value)
    verdict_B = jnp.where(correct_B, Verdict.CORRECT.value, verdict_B)
    return jnp.where(doubt_B | unclosed_B, Verdict.UNDECIDED.value, verdict_B).astype(jnp.int8)


def _answer_text(tokens_BT, found: Found, table: ByteTable, rules: Rules):
    """Whether there is an answer, its text, whether it exceeds the window, and whether a box may close there."""
    boxes, phrases = len(BOXES), len(rules.phrases)
    behind_P = found.token_PB[boxes:] != NOWHERE
    which_B = jnp.where(jnp.any(behind_P, axis=0), jnp.argmax(behind_P, axis=0), phrases)
    flag = lambda name: jnp.array([*(getattr(phrase, name) for phrase in rules.phrases), False])[which_B]
    pick = lambda x_PB, p_B: jnp.take_along_axis(x_PB, p_B[None], axis=0)[0]
    phrase_B = boxes + jnp.minimum(which_B, phrases - 1)
    phrase_end_B = pick(found.end_PB, phrase_B)

    # A box counts anywhere in the text, or only after the phrase. A match that ends after it also starts after it.
    counts_PB = (found.token_PB[:boxes] != NOWHERE) & (
        rules.boxed | (flag("unbox") & (found.end_PB[:boxes] > phrase_end_B))
    )
    box_B = jnp.argmax(counts_PB, axis=0)
    see = lambda p_B: window(
        tokens_BT, found.start_BT, found.total_B, table, pick(found.token_PB, p_B), pick(found.end_PB, p_B)
    )
    boxed, box_more_B = see(box_B)
    rest, rest_more_B = see(phrase_B)

    inside_AB, closed_B, unclosed_B = _braces(boxed, box_more_B)
    has_box_B = jnp.any(counts_PB, axis=0)
    use_box_B = has_box_B & closed_B
    kept_AB = jnp.where(use_box_B, inside_AB, jnp.where(flag("trim"), _trimmed(rest), rest.inside_AB))
    text = Text(*(jnp.where(use_box_B, *pair) for pair in zip(boxed, rest, strict=True)))
    for byte in rules.drop:
        kept_AB &= text.bytes_AB != byte
    exists_B = use_box_B | (which_B < phrases)
    return exists_B, delete(text, ~kept_AB), rest_more_B & ~use_box_B, has_box_B & unclosed_B


def _braces(text: Text, more_B):
    """Marks the content of the braces that open the text; whether they close, and whether that is out of sight."""
    step_AB = jnp.where(text.bytes_AB == ord("{"), 1, jnp.where(text.bytes_AB == ord("}"), -1, 0))
    close_B = first(text.inside_AB & (running_sum(step_AB) == 0))
    opens_B = text.bytes_AB[0] == ord("{")
    inside_AB = (POSITION_A1 > 0) & (close_B > POSITION_A1)
    unseen_B = more_B & ((text.length_B == 0) | (opens_B & (close_B == WIDTH)))
    return inside_AB, opens_B & (close_B < WIDTH), unseen_B


def _trimmed(text: Text) -> jax.Array:
    """Marks the text without the bytes that `reference.trim` removes from its ends."""
    blank_AB = ~text.inside_AB
    for byte in TRIMMED:
        blank_AB |= text.bytes_AB == byte
    last = lambda mark_AB: jnp.max(jnp.where(mark_AB, POSITION_A1, -1), axis=0)
    stop_AB = (last(~blank_AB) == POSITION_A1) & (text.bytes_AB == ord("."))
    return (first(~blank_AB) <= POSITION_A1) & (last(~blank_AB & ~stop_AB) >= POSITION_A1)
