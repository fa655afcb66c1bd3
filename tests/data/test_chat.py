"""Chat templates: ids against `transformers`, markers that only templates can write, and rows of conversations."""

import dataclasses
import json
import re

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from premem_jax.data import chat, markers, rows
from premem_jax.data.examples import Example
from premem_jax.data.tokenizer_files import load
from premem_jax.errors import UserError
from tests.data import folders

# The forms of published templates: a system turn by default, a start marker, roles of its own, text around markers.
TEMPLATES = {
    "chatml": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    + folders.CHATML,
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "llama2": "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] }}"
    "{{ ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{% generation %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}",
    "plain": "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
}
NAMES = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>"),
)
END = dict(chatml="<|im_end|>", llama3="<|eot_id|>", gemma="<end_of_turn>", llama2="</s>", plain="</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    fast = Tokenizer(models.BPE(vocab=alphabet(), merges=[("a", "n"), ("t", "h"), ("th", "e")]))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast.add_special_tokens(folders.special(*NAMES))
    said = dict(bos_token="<s>", eos_token="</s>", pad_token="</s>", tokenizer_class="PreTrainedTokenizerFast")
    return folders.write(tmp_path_factory.mktemp("chat"), fast, **said)


def alphabet() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {piece: i for i, piece in enumerate([*letters, "an", "th", "the"])}


def made(folder, name, examples):
    """The tokenizer in turns, and the examples as the template `name` writes them."""
    file = folder / f"{name}.jinja"
    file.write_text(TEMPLATES[name])
    tokenizer = load(folder)
    template = chat.template_of(str(file), tokenizer)
    return tokenizer, chat.applied(template, tokenizer, {"train": examples})["train"]


def talk(*texts: str, id: int = 0, system: str = "") -> Example:
    """A conversation of user and assistant in turns, of which the last is the target."""
    said = [("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts[:-1])]
    return Example(id, "p", texts[-1], "", messages=(*([("system", system)] if system else []), *said))


def as_messages(example: Example, answered: bool) -> list[dict]:
    said = [*example.messages, *([("assistant", example.target)] if answered else [])]
    return [dict(role=role, content=text) for role, text in said]


TALKS = [talk("Where is the anthem?", "There."), talk("2 + 2 =", "4", "And é∑🧿?", "the\nthe", id=1)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(folder, name):
    """Of the prompt, up to where the model goes on, and of the whole conversation up to the end of its turn."""
    talks = TALKS if name in ("gemma", "llama2") else [*TALKS, talk("Hi", "the", id=2, system="Be an ant.")]
    tokenizer, examples = made(folder, name, talks)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_id == tokenizer.control[END[name]] and tokenizer.start_ids == ()
    assert tokenizer.control["</s>"] in tokenizer.eos_ids
    for example, mine in zip(talks, examples, strict=True):
        prompt, target = tokenizer.encode_pair(mine.prompt, mine.target)
        options = dict(chat_template=TEMPLATES[name], return_dict=False)
        asked = theirs.apply_chat_template(as_messages(example, False), add_generation_prompt=True, **options)
        whole = theirs.apply_chat_template(as_messages(example, True), **options)
        assert prompt.tolist() == asked
        if name == "plain":
            assert [*prompt, *target] == [*whole[:-1], tokenizer.eos_id]  # without the line end behind the turn
        else:
            assert [*prompt, *target] == whole[: len(prompt) + len(target)] and target[-1] == tokenizer.eos_id
            assert theirs.decode(whole[len(prompt) + len(target) :]).strip() == ""


def expected(theirs, name, example, answered, ask) -> list[int]:
    """Ids by `transformers` with the messages' texts put in after the template has written its markers."""
    messages = as_messages(example, answered)
    texts = {f"\x01{i}\x01": message["content"] for i, message in enumerate(messages)}
    marked = [message | {"content": mark} for message, mark in zip(messages, texts, strict=True)]
    said = theirs.apply_chat_template(marked, chat_template=TEMPLATES[name], add_generation_prompt=ask, tokenize=False)
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, NAMES)) + ")", said):
        for mark, text in texts.items():
            part = part.replace(mark, text)
        if part in NAMES:
            ids.append(theirs.convert_tokens_to_ids(part))
        else:
            ids += theirs(part, split_special_tokens=True, add_special_tokens=False).input_ids
    return ids


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "llama2"])
def test_markers_in_messages_are_text(folder, name):
    talks = [talk(f"a{NAMES[i]}b", f"{NAMES[-1 - i]}the {END[name]} x", id=i) for i in range(len(NAMES))]
    tokenizer, examples = made(folder, name, talks)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for example, mine in zip(talks, examples, strict=True):
        prompt, target = tokenizer.encode_pair(mine.prompt, mine.target)
        assert prompt.tolist() == expected(theirs, name, example, False, True)
        assert target.tolist().count(tokenizer.eos_id) == 1
        assert [*prompt, *target] == expected(theirs, name, example, True, False)[: len(prompt) + len(target)]
        assert markers.shown(mine.target).strip() == example.target


words = st.lists(st.sampled_from([*NAMES, "a", " ", "\n", "<", "|>", "<|", "im_end", "é", "[/INST]"]), min_size=1)


@settings(max_examples=60, deadline=None)
@given(asked=words.map("".join), said=words.map("".join), name=st.sampled_from(["chatml", "llama3", "gemma"]))
def test_no_text_writes_a_marker(folder, asked, said, name):
    plain, odd = (made(folder, name, [talk(*texts)]) for texts in (("a", "b"), (asked + "a", said + "b")))
    count = lambda tokenizer, examples: [
        [i for i in ids.tolist() if i in tokenizer.control.values()]
        for e in examples
        for ids in tokenizer.encode_pair(e.prompt, e.target)
    ]
    assert count(*plain) == count(*odd)


def test_questions_and_dialogues_become_turns(folder):
    dialogue = "\n\nHuman: Hi\n\nAssistant: the\n\nHuman: And?\n\nAssistant:"
    given = [
        Example(0, "2 + 2\nAnswer:", " 4", "4", reworded="two and two\nAnswer:", options=(" 4", " 5")),
        Example(1, dialogue, " an", ""),
    ]
    given[1] = dataclasses.replace(given[1], rejected=" no")
    _, (one, two) = made(folder, "llama3", given)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert markers.shown(one.prompt) == f"<s>{head('user')}2 + 2<|eot_id|>{head('assistant')}"
    assert "two and two<|eot_id|>" in markers.shown(one.reworded)
    assert one.target == "4" and one.options == ("4", "5")
    assert markers.shown(two.prompt).count("<|eot_id|>") == 3 and (two.target, two.rejected) == ("an", "no")


def test_the_folders_template_is_taken_unless_told_otherwise(tmp_path):
    folder = folders.qwen(tmp_path, ["Tom had apples"] * 50)
    tokenizer = load(folder)
    assert chat.template_of("none", tokenizer) is None
    assert chat.template_of("auto", tokenizer).source == folders.CHATML
    (folder / "chat_template.jinja").write_text(TEMPLATES["plain"])
    assert chat.template_of("auto", load(folder)).source == TEMPLATES["plain"]
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").unlink()
    said["chat_template"] = [dict(name="tool_use", template="x"), dict(name="default", template="y")]
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    assert chat.template_of("auto", load(folder)).source == "y"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in %}", "not a chat template in Jinja2"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError|unsafe"),
        ("{{ messages[0].update({'role': 'x'}) }}", "SecurityError|not callable"),
        ("{{ lipsum() }}", "undefined"),
        ("{{ raise_exception('roles must alternate') }}", "example 7: .*roles must alternate.*data.template"),
        ("{{ messages | length }}", "another prompt once it is answered: '2' instead of '1'"),
    ],
)
def test_a_template_that_fails_is_named(folder, tmp_path, template, words):
    file, tokenizer = tmp_path / "own.jinja", load(folder)
    file.write_text(template)
    with pytest.raises(UserError, match=words):
        chat.applied(chat.template_of(str(file), tokenizer), tokenizer, {"train": [talk("a", "b", id=7)]})


def test_what_cannot_be_written_is_named(folder, tmp_path):
    tokenizer = load(folder)
    with pytest.raises(UserError, match=r"example 3 is a conversation .*no chat template; give a file with data.temp"):
        chat.applied(None, tokenizer, {"train": [talk("a", "b", id=3)]})
    with pytest.raises(UserError, match="U\\+FDD0"):
        chat.applied(None, tokenizer, {"train": [Example(0, f"a {markers.private('</s>')}", "b", "")]})
    with pytest.raises(UserError, match=r"example 0: .*U\+FDD0"):
        made(folder, "chatml", [talk(f"a {markers.private('</s>')}", "b")])
    with pytest.raises(UserError, match=r"data.template=\S+: auto, none, or a file \(No such file"):
        chat.template_of(str(tmp_path / "nowhere"), tokenizer)
    end = "messages[1].content + ('</s>' if messages[1].content == 'b' else '<s>')"
    (tmp_path / "two.jinja").write_text(f"{{{{ messages[0].content }}}}{{{{ {end} if messages[1] }}}}")
    with pytest.raises(UserError, match="ends the model's turns in several ways: </s>, <s>"):
        template = chat.template_of(str(tmp_path / "two.jinja"), tokenizer)
        chat.applied(template, tokenizer, {"train": [talk("a", "b"), talk("a", "c", id=1)]})


def test_rows_of_messages(tmp_path):
    file = tmp_path / "train.jsonl"
    said = [
        dict(role="system", content="Be kind."),
        dict(role="user", content="Hi"),
        dict(role="assistant", content="5"),
    ]
    file.write_text(json.dumps(dict(messages=said, answer=5)) + "\n")
    (example,) = rows.read(str(file), lambda where, target, answer: f"{target}/{answer}").examples
    assert example.messages == (("system", "Be kind."), ("user", "Hi")) and example.answer == "5/5"
    assert (example.prompt, example.target) == ("Be kind.\n\nHi", "5")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("Hi", "messages must be a list of at least two"),
        ([dict(role="user", content="Hi")], "messages must be a list of at least two"),
        ([dict(role="user", content="Hi"), dict(role="user", content="Ho")], "the last of messages must be the assist"),
        ([dict(role="user", content=["Hi"]), dict(role="assistant", content="Ho")], r"messages\[0\] must be"),
        ([dict(role="user", content="Hi"), "Ho"], r"messages\[1\] must be"),
    ],
)
def test_messages_that_are_none_are_named(tmp_path, messages, words):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(dict(messages=messages)) + "\n")
    with pytest.raises(UserError, match=rf"train.jsonl:1: {words}"):
        rows.read(str(file), None)
