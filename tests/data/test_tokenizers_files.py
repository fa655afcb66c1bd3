"""Which file is which tokenizer, what a run keeps of it, and what people are told about files that are none."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from premem_jax.data import tokenizer_export, tokenizer_files, tokenizer_kinds
from premem_jax.data.tokenizer_files import load, train
from premem_jax.data.tokenizer_kinds import HuggingFace, Llama3, SentencePiece
from premem_jax.errors import UserError
from tests.shared import shared

TEXTS = [f"Tom had {i} apples.\nAnswer: he has {i * 7} now.\n#### {i * 7}" for i in range(60)]
LLAMA3 = "data/tokenizers/tokenizer_llama3.tiktoken"


@pytest.fixture(scope="module")
def pieces() -> bytes:
    return train(TEXTS, kind="bpe", vocab_size=400)


def tiny_json(**changes) -> dict:
    """A byte-level tokenizer.json of 256 bytes and Llama3's markers."""
    letters = tokenizer_kinds.BYTE_OF_LETTER
    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for letter, byte in letters.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    markers = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_2|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in markers])
    return json.loads(tokenizer.to_str()) | changes


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_the_content_decides_and_not_the_name(tmp_path, pieces):
    assert isinstance(load(write(tmp_path / "tokenizer.json", pieces)), SentencePiece)
    assert isinstance(load(write(tmp_path / "tokenizer.model", tiny_json())), HuggingFace)
    assert isinstance(load(write(tmp_path / "x.json", shared(LLAMA3).read_bytes())), Llama3)


def test_a_folder_is_searched(tmp_path, pieces):
    with pytest.raises(UserError, match=r"none of tokenizer.model, tokenizer.json, original/tokenizer.model"):
        load(tmp_path)
    write(tmp_path / "tokenizer.json", tiny_json())
    assert isinstance(load(tmp_path), HuggingFace)
    write(tmp_path / "tokenizer.model", pieces)
    assert isinstance(load(str(tmp_path)), HuggingFace)  # as AutoTokenizer, since their tokens differ
    for name, data in tokenizer_export.files(SentencePiece(pieces)).items():
        write(tmp_path / name, data)
    assert isinstance(load(str(tmp_path)), SentencePiece)


@pytest.mark.parametrize("kind", ["json", "pieces"])
@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_a_token_that_another_file_adds_is_added_or_refused(tmp_path, pieces, kind, name):
    """The settings can add one behind the others; an older list of them that the tokenizer contradicts is refused."""
    path = tmp_path / {"json": "tokenizer.json", "pieces": "tokenizer.model"}[kind]
    made = load(write(path, {"json": tiny_json(), "pieces": pieces}[kind]))
    token = next(iter(made.pieces()))
    as_listed = lambda token, i: {"added_tokens_decoder": {str(i): {"content": token}}}
    said = (lambda token, i: {token: i}) if name.startswith("added") else as_listed
    write(tmp_path / name, said(token, made.pieces()[token]))
    assert load(tmp_path).vocab_size == made.vocab_size
    others = [said(token, made.pieces()[token] + 1), said("apples!", made.vocab_size + 7)]
    write(tmp_path / name, next_one := said("apples!", made.vocab_size))
    if name.startswith("added"):
        others.append(next_one)
    else:
        assert load(tmp_path).vocab_size == made.vocab_size + 1
    for other in others:
        write(tmp_path / name, other)
        with pytest.raises(UserError, match=rf"{name} says that .* is token"):
            load(tmp_path)
    for other in ("[]", "{", '{"added_tokens_decoder": {"a": 1}}'):
        (tmp_path / name).write_text(other)
        with pytest.raises(UserError, match=name):
            load(tmp_path)


def test_settings_of_a_json_file_are_left_out(tmp_path):
    """Padding, truncation and start markers that the file asks for would each change what an example is."""
    text = "<|begin_of_text|>Tom had 3 apples. <|end_of_text|>"
    bos = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, sequence],
        "pair": [bos, sequence],
        "special_tokens": {
            "<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [256], "tokens": ["<|begin_of_text|>"]}
        },
    }
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 99},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 258,
        "pad_type_id": 0,
        "pad_token": "<|reserved_special_token_2|>",
    }
    asked = tiny_json(post_processor=template, truncation=truncation, padding=padding)
    assert Tokenizer.from_str(json.dumps(asked)).encode(text).ids[-5:] != list(text.encode())[-5:]
    tokenizer = load(write(tmp_path / "tokenizer.json", asked))
    prompt, target = tokenizer.encode_pair(text, text)
    assert prompt.tolist() == [256, *text.encode()] and target.tolist() == [*text.encode(), 257]


@pytest.mark.parametrize("path", ["json", "pieces"])
def test_a_run_keeps_its_own_copy(tmp_path, pieces, path):
    content = {"json": json.dumps(tiny_json()).encode(), "pieces": pieces}[path]
    source, kept = write(tmp_path / "source", content), tmp_path / "run" / "tokenizer.model"
    make = lambda: tokenizer_files.load_or_train(kept, TEXTS, kind="word", vocab_size=50, path=str(source))
    first = make()
    assert kept.read_bytes() == first.model == content
    assert [file.name for file in kept.parent.iterdir()] == ["tokenizer.model"]
    source.unlink()
    assert make().token_bytes() == first.token_bytes()
    kept.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"run/tokenizer.model .*delete it to make it again"):
        make()


def test_nothing_is_kept_of_a_bad_path(tmp_path):
    kept = tmp_path / "run" / "tokenizer.model"
    with pytest.raises(UserError, match=r"nowhere.*No such file"):
        tokenizer_files.load_or_train(kept, TEXTS, kind="word", vocab_size=50, path=str(tmp_path / "nowhere"))
    assert not kept.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither SentencePiece"),
        (b"<!DOCTYPE html>", "neither SentencePiece.*<!DOCTYPE"),
        (b"Tom had 3 apples\n", "neither SentencePiece"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4241003\n", "git lfs pull"),
        (b"\x0a", "SentencePiece model"),
        (b"\x0a\x0e\x0a\x05<pad>\x15\x00\x00\x00\x00\x18\x03", "without its trainer"),
        (b'{"model": ', "not whole JSON"),
        ({"bos_token": "<bos>"}, "no tokenizer.json.*tokenizer_config.json"),
        ({"model": None, "added_tokens": []}, "no tokenizer.json"),
        (tiny_json(added_tokens=[]), "no end of text is named"),
        (tiny_json(pre_tokenizer=None), "drops characters"),
        (b"IQ== 0\nIg== 1\n", "2 tokens have not the ranks 0 to 127999"),
        (b"IQ== 0\nI 1\n", "line 2 is no token and rank"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(tmp_path, content, message):
    path = write(tmp_path / "tokenizer.model", content)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_truncated_model_is_refused_wherever_it_ends(tmp_path, pieces):
    """Also between two fields, where what is left still reads as a model, but of another type."""
    for size in [*range(0, len(pieces), 7), *range(len(pieces) - 300, len(pieces))]:
        with pytest.raises(UserError):
            load(write(tmp_path / "tokenizer.model", pieces[:size]))


def test_truncated_ranks_are_refused_wherever_they_end(tmp_path):
    model = shared(LLAMA3).read_bytes()
    whole = model.rstrip(b"\n")
    last_line = whole.rindex(b"\n") + 1
    for size in [len(whole) - 1, len(whole) - 5, last_line, last_line + 3, last_line - 1, len(model) // 2, 12]:
        with pytest.raises(UserError):
            load(write(tmp_path / "tokenizer.model", model[:size]))
    assert load(write(tmp_path / "tokenizer.model", whole)).vocab_size == 128_256


def test_other_ranks_than_llama3s_are_refused(tmp_path):
    lines = shared(LLAMA3).read_bytes().splitlines(keepends=True)
    swapped = [b"ISE= 0\n", *lines[1:]]  # "!!" in the place of "!": a second token of the same bytes, a byte missing
    with pytest.raises(UserError, match="127999 tokens have not the ranks"):
        load(write(tmp_path / "tokenizer.model", b"".join(swapped)))


def test_a_turned_bit_is_a_refusal_or_a_tokenizer(pieces):
    rng = np.random.default_rng(0)
    for whole in (json.dumps(tiny_json()).encode(), pieces):
        for _ in range(1000):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            try:
                tokenizer = tokenizer_files._kind(bytes(damaged))(bytes(damaged))
                tokenizer.encode_pair("3 apples", " and 4")
                table = tokenizer.token_bytes()  # none where the decoder is not known any longer
                assert table is None or len(table) == tokenizer.vocab_size
            except UserError as error:
                assert str(error)
