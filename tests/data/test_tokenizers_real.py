"""The real vocabularies of Llama3 and Gemma2 on text of GSM8K and MATH, in each form that they are published in."""

import json
import logging

import numpy as np
import pytest
import sentencepiece
import tiktoken.load
from hypothesis import given, settings
from hypothesis import strategies as st

from premem_jax.data.tokenizer_files import load
from premem_jax.errors import UserError
from premem_jax.tasks import gsm8k
from tests.data import tokenizer_json
from tests.shared import shared

GEMMA, LLAMA3 = "data/tokenizers/tokenizer.gemma", "data/tokenizers/tokenizer_llama3.tiktoken"
# Vocabulary, bos, eos, bytes of the longest token.
FACTS = {"llama3": (128_256, 128_000, 128_001, 128), "gemma2": (256_000, 2, 1, 48)}
# What each vocabulary's controls are called, and what looks like them.
NAMES = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_17|>", "<|start_header_id|>"),
    *("<eos>", "<bos>", "<pad>", "<unk>", "<s>", "</s>", "<mask>", "<2mass>", "[@BOS@]", "<unused0>", "<unused99>"),
    *("<start_of_turn>", "<end_of_turn>", "[toxicity=0]", "<0x0A>", "<|endoftext|>", "<b>", "<table>"),
]
ORDINARY = {"<s>", "</s>", "<b>", "<table>"}  # tags of HTML, which Gemma2 has among its words
unicode_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)
awkward = st.lists(st.sampled_from([*NAMES, " ", "  ", "\n", "\t\t", "\r\n", "a", "12", "'S", "é", "e\u0301", "🧿"]))
any_text = st.one_of(unicode_text, awkward.map("".join))


def rows(task: str, split: str) -> list[tuple[str, str]]:
    """(question, solution) of every row."""
    keys = {"gsm8k": ("question", "answer"), "math": ("problem", "solution")}[task]
    lines = shared(f"data/{task}/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [tuple(json.loads(line)[key] for key in keys) for line in lines]


@pytest.fixture(scope="module")
def data():
    found = {(task, split): rows(task, split) for task in ("gsm8k", "math") for split in ("train", "test")}
    assert {name: len(pairs) for name, pairs in found.items()} == {
        ("gsm8k", "train"): 7473,
        ("gsm8k", "test"): 1319,
        ("math", "train"): 7500,
        ("math", "test"): 5000,
    }
    return found


@pytest.fixture(scope="module")
def every_text(data):
    """Of every third row."""
    return [text for pairs in data.values() for pair in pairs[::3] for text in pair]


@pytest.fixture(scope="module")
def llama3():
    return load(shared(LLAMA3))


@pytest.fixture(scope="module")
def gemma2():
    return load(shared(GEMMA))


@pytest.fixture(scope="module")
def llama3_ids(llama3, every_text):
    return ids_of(llama3, every_text)


@pytest.fixture(scope="module")
def gemma2_ids(gemma2, every_text):
    return ids_of(gemma2, every_text)


@pytest.fixture(scope="module")
def llama3_json(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer_json.llama3(shared(LLAMA3)).save(str(path))
    return load(path)


@pytest.fixture(scope="module")
def gemma2_json(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer_json.gemma2(shared(GEMMA)).save(str(path))
    return load(path)


@pytest.fixture(scope="module", params=["llama3", "gemma2"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family, request):
    return request.getfixturevalue(family)


@pytest.fixture(scope="module")
def publisher(family):
    """Ids of a text by the publisher's library alone; of no use where a text spells a marker."""
    if family == "gemma2":
        return sentencepiece.SentencePieceProcessor(model_file=str(shared(GEMMA))).encode
    ranks = tiktoken.load.load_tiktoken_bpe(str(shared(LLAMA3)))
    markers = {name: 128_000 + i for i, name in enumerate(tokenizer_json.LLAMA3_SPECIAL)}
    encoding = tiktoken.Encoding(
        "llama3", pat_str=tokenizer_json.PATTERN, mergeable_ranks=ranks, special_tokens=markers
    )
    return lambda texts: encoding.encode_batch(texts, allowed_special="all")


def ids_of(tokenizer, texts):
    return [target[:-1].tolist() for _, target in tokenizer.encode_pairs([("", text) for text in texts])]


def check_seam(tokenizer, table, prompt, target):
    """One start marker, one stop marker, no other; the seam where the first token ends that holds any of the target."""
    left, right = tokenizer.encode_pair(prompt, target)
    assert left[0] == tokenizer.bos_id and right[-1] == tokenizer.eos_id
    left, right = ([table[i] for i in ids] for ids in (left[1:], right[:-1]))
    assert all(left) and all(right)  # control tokens have no bytes
    assert b"".join([*left, *right]) == (prompt + target).encode()
    border = len(prompt.encode())
    assert len(b"".join(left)) <= border
    assert len(b"".join([*left, *right[:1]])) > border or not right


def test_facts(family, tokenizer):
    table = tokenizer.token_bytes()
    longest = max(map(len, table))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, longest) == FACTS[family]
    assert len(table) == tokenizer.vocab_size
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}) == 3
    assert not any(table[i] for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
    assert {bytes([byte]) for byte in range(256)} <= set(table)


def test_every_text_comes_back(family, tokenizer, every_text, request):
    table = tokenizer.token_bytes()
    encoded = request.getfixturevalue(f"{family}_ids")
    for text, ids in zip(every_text, encoded, strict=True):
        assert b"".join([table[i] for i in ids]) == text.encode()
        assert tokenizer.decode(ids) == text


def test_the_known_lengths(family, tokenizer, data):
    known = {
        ("llama3", "gsm8k"): (158, 327, 458),
        ("gemma2", "gsm8k"): (183, 392, 538),
        ("llama3", "math"): (291, 1153, 2562),
        ("gemma2", "math"): (303, 1204, 2967),
    }
    for task in ("gsm8k", "math"):
        sizes = [len(ids) for ids in ids_of(tokenizer, [f"{q}\n{a}" for q, a in data[task, "train"]])]
        found = np.array([np.mean(sizes), np.percentile(sizes, 99), np.max(sizes)])
        np.testing.assert_allclose(found, known[family, task], atol=0.51)


def test_the_seam_of_the_task_is_clean(tokenizer, publisher, data, caplog):
    """With the tasks' prompts the joint tokens part where the text does: sampling starts from the whole prompt."""
    table = tokenizer.token_bytes()
    examples = [e for split in ("train", "test") for e in gsm8k.read(shared("data/gsm8k"), split)]
    pairs = [(e.prompt, e.target) for e in examples[::3]]
    pairs += [(f"{q}\nAnswer:", f" {a}") for split in ("train", "test") for q, a in data["math", split][::3]]
    with caplog.at_level(logging.WARNING):
        encoded = tokenizer.encode_pairs(pairs)
    assert not caplog.records
    joint = publisher([p + t for p, t in pairs])
    for (left, right), (prompt, _), whole in zip(encoded, pairs, joint, strict=True):
        assert b"".join([table[i] for i in left]) == prompt.encode()
        assert left.dtype == right.dtype == np.int32
        assert left.tolist() + right.tolist() == [tokenizer.bos_id, *whole, tokenizer.eos_id]


@pytest.mark.parametrize("between", ["\nAnswer:", "\nAnswer: ", " ", ""])
def test_a_seam_inside_tokens(tokenizer, publisher, data, between, caplog):
    """Formats that merge across the seam: still the joint ids, cut before the first token with any of the target."""
    table = tokenizer.token_bytes()
    pairs = [(q + between, a) for q, a in data["math", "test"]][::12]
    with caplog.at_level(logging.WARNING):
        encoded = tokenizer.encode_pairs(pairs)
    inside = 0
    for (left, right), (prompt, _), whole in zip(encoded, pairs, publisher([p + t for p, t in pairs]), strict=True):
        assert left.tolist() + right.tolist() == [tokenizer.bos_id, *whole, tokenizer.eos_id]
        before, first = len(b"".join(table[i] for i in left)), len(table[right[0]])
        assert before <= len(prompt.encode()) < before + first
        inside += before < len(prompt.encode())
    assert inside > 0 and len(caplog.records) == 1
    assert int(caplog.records[0].getMessage().split()[0]) >= inside


@pytest.mark.parametrize("name", NAMES)
def test_markers_in_text_are_text(tokenizer, name):
    table = tokenizer.token_bytes()
    for text in (name, f"a{name}b {name}\n{name}{name}"):
        check_seam(tokenizer, table, text, text)
        (ids,) = ids_of(tokenizer, [text])
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert name in ORDINARY or len(ids_of(tokenizer, [name])[0]) > 1


def test_markers_have_no_text(tokenizer):
    markers = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    left, right = tokenizer.encode_pair("One", " two")
    assert tokenizer.decode([*left, *markers, *right, tokenizer.vocab_size + 7]) == "One two"


def test_bytes_that_are_no_text(tokenizer):
    (ids,) = ids_of(tokenizer, ["𒍅"])
    assert len(ids) > 1 and tokenizer.decode(ids[:-1]).strip("\ufffd") == ""


@settings(max_examples=200, deadline=None)
@given(prompt=any_text, target=any_text)
def test_any_unicode(tokenizer, prompt, target):
    check_seam(tokenizer, tokenizer.token_bytes(), prompt, target)
    (ids,) = ids_of(tokenizer, [prompt + target])
    assert tokenizer.decode(ids) == prompt + target


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"surrogate.*6 \\ud83d apples"):
        tokenizer.encode_pair("How many?", json.loads(r'"6 \ud83d apples"'))


def test_both_forms_of_llama3_are_one(llama3_json, llama3, llama3_ids, every_text):
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(llama3_json, name) == getattr(llama3, name)
    assert llama3_json.token_bytes() == llama3.token_bytes()
    assert ids_of(llama3_json, every_text) == llama3_ids


def check_same_pairs(one, other, pairs):
    for ours, theirs in zip(one.encode_pairs(pairs), other.encode_pairs(pairs), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_both_forms_of_llama3_agree_on_the_seam(llama3_json, llama3, data):
    pairs = [(q + between, a) for between in ("\n", "", " ", "\nAnswer:") for q, a in data["math", "test"][::40]]
    check_same_pairs(llama3_json, llama3, pairs + [(name, name) for name in NAMES])


@pytest.mark.parametrize("form", ["llama3", "llama3_json"])
def test_a_seam_at_a_border_that_the_prompt_alone_has_not(form, request):
    """Llama3 takes two spaces for one token at the end of a text, for two before a digit: both are the prompt's."""
    tokenizer = request.getfixturevalue(form)
    table = tokenizer.token_bytes()
    spell = lambda ids: [table[i] for i in ids]
    assert [spell(ids) for ids in tokenizer.encode_pair("x  ", "")] == [[b"", b"x", b"  "], [b""]]
    assert [spell(ids) for ids in tokenizer.encode_pair("x  ", "5")] == [[b"", b"x", b" ", b" "], [b"5", b""]]


@settings(max_examples=200, deadline=None)
@given(prompt=any_text, target=any_text)
def test_both_forms_of_llama3_agree_on_any_unicode(llama3_json, llama3, prompt, target):
    check_same_pairs(llama3_json, llama3, [(prompt, target)])


@pytest.mark.slow
def test_both_forms_of_gemma2_are_one(gemma2_json, gemma2, gemma2_ids, every_text, data):
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(gemma2_json, name) == getattr(gemma2, name)
    assert gemma2_json.token_bytes() == gemma2.token_bytes()
    assert ids_of(gemma2_json, every_text) == gemma2_ids
    pairs = [(q + between, a) for between in ("\n", "", " ", "\nAnswer:") for q, a in data["math", "test"][::40]]
    check_same_pairs(gemma2_json, gemma2, pairs)
    for name in NAMES:
        check_seam(gemma2_json, gemma2_json.token_bytes(), f"x {name}", f"{name} y")
        assert name in ORDINARY or len(ids_of(gemma2_json, [name])[0]) > 1
