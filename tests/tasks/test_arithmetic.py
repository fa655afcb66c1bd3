"""The generated task, checked by reading its text back with rules written here, apart from the generator's tables."""

import math
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.errors import UserError
from premem_jax.tasks import arithmetic

EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
OPERATOR_OF_VERB = {
    "+": r"\b(finds|picks|wins|gives|brings|buys|got|Plus)\b",
    "-": r"\b(loses|sells|throws|hands|leaves|steals|lost|Minus)\b",
    "*": r"\b(pile|swapped|Later|made|Times)\b",
}
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def train():
    return arithmetic.problems("train", 3000, seed=0)


@pytest.fixture(scope="module")
def base():
    return arithmetic.base_texts(6000, seed=0)


def is_equation_row(example):
    return example.prompt == ""


def is_worded(example):
    return example.prompt != "" and not example.target.split()[0].isdigit()


def program_of_question(prompt):
    """[start, (operator, operand), ...] as a reader would find it, sentence by sentence."""
    asked = re.search(r"(?:many|number of) (\w+)[^.]* \?", prompt)
    starts, steps = [], []
    for sentence in re.split(r"(?<=[.?]) ", prompt):
        numbers = [int(number) for number in re.findall(r"\d+", sentence)]
        operators = [op for op, verbs in OPERATOR_OF_VERB.items() if re.search(verbs, sentence)]
        if operators:
            steps.append((operators[0], numbers[0]))
        elif asked and asked[1] not in sentence.split():  # a distractor, also where a friend has something else
            continue
        elif re.search(r"\b(has|holds|keeps|owns|had|Begin)\b", sentence):
            starts += numbers
    assert len(starts) == 1
    return starts + steps


def equations(text):
    return [(int(a), op, int(b), int(c)) for a, op, b, c in EQUATION.findall(text)]


def check_solution(example):
    chain = equations(example.target)
    assert all(APPLY[op](a, b) == c for a, op, b, c in chain)
    assert [step[3] for step in chain[:-1]] == [step[0] for step in chain[1:]]
    assert example.target.endswith(f" #### {example.answer}")
    assert str(chain[-1][3]) == example.answer
    assert program_of_question(example.prompt) == [chain[0][0], *((op, b) for _, op, b, _ in chain)]


def check_text(example):
    assert example.target.startswith(" ") and not example.target.endswith(" ")
    assert example.prompt == " ".join(example.prompt.split())
    assert example.target == " " + " ".join(example.target.split())
    assert all(0 <= int(number) <= 40 for number in re.findall(r"\d+", example.prompt + example.target))


def test_solutions_are_right_and_answer_the_question(train, base):
    for example in train + [e for e in base if not is_equation_row(e)]:
        check_solution(example)


def test_reworded_questions_ask_the_same_in_no_sentence_that_is_the_same(train, base):
    sentences = lambda prompt: set(re.split(r"(?<=[.?]) ", prompt)) - {"Answer :"}
    for example in train:
        assert program_of_question(example.reworded) == program_of_question(example.prompt)
        assert not sentences(example.reworded) & sentences(example.prompt)
        assert set(example.reworded.split()) <= set(arithmetic.vocabulary())
    assert len({e.reworded for e in train}) > 0.9 * len(train)
    assert not any(e.reworded for e in base)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS, index=st.integers(0, 20), split=st.sampled_from(["train", "heldout", "test"]), steps=st.integers(1, 4)
)
def test_any_problem_is_well_formed(seed, index, split, steps):
    example = arithmetic.problems(split, index + 1, seed, steps)[index]
    assert example.id == index
    assert len(equations(example.target)) == steps
    check_text(example)
    check_solution(example)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, index=st.integers(0, 20))
def test_any_base_text_is_well_formed(seed, index):
    example = arithmetic.base_texts(index + 1, seed)[index]
    assert example.id == index
    check_text(example)
    if is_equation_row(example):
        assert example.answer == ""
        assert all(APPLY[op](a, b) == c for a, op, b, c in equations(example.target))
        assert re.sub(EQUATION, "E", example.target) == " E ;" * arithmetic.EQUATIONS_PER_ROW
    else:
        check_solution(example)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, count=st.integers(0, 20), more=st.integers(0, 20))
def test_a_larger_count_begins_with_the_same_examples(seed, count, more):
    for draw in (lambda n: arithmetic.problems("train", n, seed), lambda n: arithmetic.base_texts(n, seed)):
        assert draw(count + more)[:count] == draw(count)


def test_seeds_and_splits_change_the_examples():
    drawn = [arithmetic.problems(split, 20, seed) for split in ("train", "heldout", "test") for seed in (0, 1)]
    assert len({e.prompt for examples in drawn for e in examples}) == 120


@pytest.mark.parametrize("steps", [1, 2])
def test_no_question_is_shared_or_repeated(monkeypatch, steps, base):
    """With few names and items most questions would collide if nothing kept them apart."""
    monkeypatch.setattr(arithmetic, "NAMES", arithmetic.NAMES[:2])
    monkeypatch.setattr(arithmetic, "ITEMS", arithmetic.ITEMS[:2])
    counts = {"train": 1500, "heldout": 400, "test": 400}
    questions = {}
    for split, count in counts.items():
        drawn = [[e.prompt for e in arithmetic.problems(split, count, seed, steps)] for seed in (0, 1)]
        assert all(len(set(prompts)) == count for prompts in drawn)
        questions[split] = set().union(*drawn)
    questions["base"] = {e.prompt for e in arithmetic.base_texts(1500, seed=0) if e.prompt} | {e.prompt for e in base}
    names = sorted(questions)
    assert not any(questions[a] & questions[b] for a in names for b in names if a < b)


def test_the_test_for_shared_questions_can_fail(monkeypatch):
    """Without the split hash, the same small world does share questions, so the test above is not empty."""
    monkeypatch.setattr(arithmetic, "NAMES", arithmetic.NAMES[:2])
    monkeypatch.setattr(arithmetic, "ITEMS", arithmetic.ITEMS[:2])
    monkeypatch.setattr(arithmetic, "_SPLIT_OF_BUCKET", ("train",))
    drawn = [{e.prompt for e in arithmetic.problems("train", 1500, seed, steps=1)} for seed in (0, 1)]
    assert drawn[0] & drawn[1]


def test_base_mixture_does_not_contain_the_task(base):
    rows = [e for e in base if is_equation_row(e)]
    worded = [e for e in base if is_worded(e)]
    bare = [e for e in base if not is_equation_row(e) and not is_worded(e)]
    for kind, share in ((rows, 0.35), (bare, 0.35), (worded, 0.30)):
        assert abs(len(kind) / len(base) - share) < 4 * math.sqrt(share * (1 - share) / len(base))
    assert {len(equations(e.target)) for e in worded} == {1}
    assert {len(equations(e.target)) for e in bare} == {1, 2}
    assert {len(e.target.split()) for e in rows} == {6 * arithmetic.EQUATIONS_PER_ROW}
    pool_a = {sentence for family in arithmetic.POOL_A.values() for sentence in family}
    pool_b = {sentence for family in arithmetic.POOL_B.values() for sentence in family}
    assert not pool_a & pool_b


def test_vocabulary_is_what_is_emitted(train, base):
    emitted = {word for e in train + base for word in (e.prompt + e.target).split()}
    assert arithmetic.vocabulary() == sorted(emitted)
    assert 240 <= len(emitted) <= 300


def test_lengths_fit_a_small_model(train):
    targets = [len(e.target.split()) for e in train]
    assert max(len(e.prompt.split()) for e in train) <= 44
    assert max(targets) <= 45
    assert 37 <= sum(targets) / len(targets) <= 39


def test_wording_is_uniform_and_independent_of_the_question(train):
    """Chi-square, 5 standard deviations above its mean, for the opening, also given the first operator."""
    counts = Counter(e.target.split(" .")[0].strip() + " ." for e in train)
    assert set(counts) == set(arithmetic.OPENINGS)
    groups = [counts]
    for op in "+-":
        groups.append(Counter(e.target.split(" .")[0] for e in train if equations(e.target)[0][1] == op))
    for group in groups:
        expected = sum(group.values()) / 12
        statistic = sum((count - expected) ** 2 / expected for count in group.values())
        assert len(group) == 12
        assert statistic < 11 + 5 * math.sqrt(2 * 11)


def test_every_operation_phrase_is_drawn_equally_often(train):
    for op, family in arithmetic.OPERATIONS.items():
        phrases = Counter()
        for e in train:
            for found in re.finditer(r"[A-Z]\w* , ([a-z][^=]*?) \d+ (\S) \d+ = ", e.target):
                if found[2] == op:
                    phrases[found[1]] += 1
        expected = sum(phrases.values()) / len(family)
        freedom = len(family) - 1
        assert len(phrases) == len(family)
        statistic = sum((count - expected) ** 2 / expected for count in phrases.values())
        assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_distractors_come_in_half_of_the_questions(train):
    """A distractor is the only sentence whose number the solution does not need."""
    extra = sum(len(re.findall(r"\d+", e.prompt)) == 4 for e in train)
    assert all(len(re.findall(r"\d+", e.prompt)) in (3, 4) for e in train)
    assert abs(extra / len(train) - 0.5) < 4 * 0.5 / math.sqrt(len(train))


def test_families_have_the_sizes_that_fix_the_floor():
    sizes = [len(f) for f in (arithmetic.OPENINGS, arithmetic.STARTS, arithmetic.ADVERBS, arithmetic.ENDINGS)]
    assert sizes == [12, 8, 16, 9]
    assert {op: len(f) for op, f in arithmetic.OPERATIONS.items()} == {"+": 10, "-": 10, "*": 6}
    assert (len(set(arithmetic.NAMES)), len(set(arithmetic.ITEMS))) == (24, 16)


def test_every_choice_of_wording_can_be_read_off_the_solution():
    """No phrase begins another of its family, so different choices never give the same text: the floor is exact."""
    families = [arithmetic.OPENINGS, arithmetic.STARTS, arithmetic.ADVERBS, arithmetic.ENDINGS]
    for family in families + list(arithmetic.OPERATIONS.values()):
        filled = [phrase.format(name="Tom", item="kites", v=3, c=4, eq="3 + 1 = 4").split() for phrase in family]
        for a in filled:
            assert sum(b[: len(a)] == a for b in filled) == 1


def test_wording_floor_counts_the_choices(train):
    for e in train[:200]:
        per_operation = {"+": 10, "-": 10, "*": 6}
        choices = 12 * 8 * 9 * math.prod(16 * per_operation[op] for _, op, _, _ in equations(e.target))
        assert math.isclose(arithmetic.wording_floor_nats(e), math.log(choices))
    tokens = sum(len(e.target.split()) + 1 for e in train)
    perplexity = math.exp(sum(map(arithmetic.wording_floor_nats, train)) / tokens)
    assert 1.5 < perplexity < 1.6


def test_a_word_level_tokenizer_splits_prompt_and_target_cleanly(tmp_path, train, base):
    spm = pytest.importorskip("sentencepiece")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(arithmetic.vocabulary())]),
        model_prefix=str(tmp_path / "words"),
        model_type="word",
        vocab_size=len(arithmetic.vocabulary()) + 3,
        character_coverage=1.0,
        minloglevel=2,
    )
    tokenizer = spm.SentencePieceProcessor(model_file=str(tmp_path / "words.model"))
    for e in train[:300] + base[:300]:
        joint = tokenizer.encode(e.prompt + e.target)
        assert joint == tokenizer.encode(e.prompt) + tokenizer.encode(e.target)
        assert len(joint) == len((e.prompt + e.target).split())
        assert tokenizer.unk_id() not in joint


def test_unknown_split_and_no_steps_are_said_so():
    with pytest.raises(UserError, match="train, heldout or test"):
        arithmetic.problems("validation", 1, seed=0)
    with pytest.raises(UserError, match="at least one step"):
        arithmetic.problems("train", 1, seed=0, steps=0)
