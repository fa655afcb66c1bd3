"""Chat templates: an example as the conversation that an instruct model was trained on.

A template is a Jinja2 program that comes with a model folder. It runs in Jinja2's sandbox, in which it reaches no file,
no attribute of Python, and no clock: a date in it is its own default, so that a run sees the same tomorrow. The markers
that it writes become control tokens; those that people's texts spell stay text (`markers.py`).
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from premem_jax.data import markers
from premem_jax.data.examples import Example
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.running import storage

AUTO, NONE = "auto", "none"
BREAK = "\ufdd2"  # inside a marker's name in people's texts while a template is applied
END = re.compile(rf"(?:{markers.PRIVATE.pattern}|\s)*\Z")  # markers and spaces at the end of a turn


class Template(NamedTuple):
    """A template, and the names of the control tokens that it can write."""

    source: str
    program: jinja2.Template
    control: re.Pattern
    names: Mapping[str, str]  # bos_token and others, as templates know them

    def text(self, messages: Sequence[tuple[str, str]], ask: bool) -> str:
        """The conversation, with control tokens in their private spelling; `ask`: up to where the model goes on.

        Raises:
          UserError: the template refuses the conversation, or is none.
        """
        marked = [{"role": role, "content": self.control.sub(_broken, content)} for role, content in messages]
        try:
            made = self.program.render(messages=marked, add_generation_prompt=ask, **self.names)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(f"the chat template fails: {type(error).__name__}: {error}") from error
        return self.control.sub(lambda found: markers.private(found[0]), made).replace(BREAK, "")


def template_of(wanted: str, tokenizer: Tokenizer) -> Template | None:
    """The template that `data.template` asks for: auto (the folder's, if it has one), none, or a file.

    Raises:
      UserError: no such file, or no Jinja2.
    """
    if wanted == NONE or (wanted == AUTO and "chat_template" not in tokenizer.said):
        return None
    source = tokenizer.said["chat_template"] if wanted == AUTO else _read(wanted)
    try:
        program = _environment().from_string(source)
    except jinja2.TemplateError as error:
        raise UserError(f"data.template={wanted}: not a chat template in Jinja2 ({error})") from error
    longest_first = sorted(tokenizer.control, key=len, reverse=True)
    of = {id: name for name, id in tokenizer.control.items()}
    ids = dict(bos_token=tokenizer.bos_id, eos_token=tokenizer.eos_id, pad_token=tokenizer.pad_id)
    names = {key: of[id] for key, id in ids.items() if id in of}
    names |= {key: tokenizer.said[key] for key in markers.NAMES if key in tokenizer.said}
    return Template(source, program, re.compile("|".join(map(re.escape, longest_first)) or "(?!)"), names)


def applied(
    template: Template | None, tokenizer: Tokenizer, splits: Mapping[str, Sequence[Example]]
) -> dict[str, list[Example]]:
    """The examples with prompts and targets as the template writes them; without one, as they are.

    With a template, the tokenizer puts nothing in front, and targets end in the marker that ends the template's turns.

    Raises:
      UserError: the template cannot write an example, or ends turns in several ways; or an example is a conversation
        and there is no template.
    """
    if template is None:
        for example in (e for examples in splits.values() for e in examples):
            if example.messages:
                raise UserError(
                    f"example {example.id} is a conversation ({{messages}}), and the model folder has no chat "
                    "template; give a file with data.template=FILE, or rows of {prompt, target}"
                )
            markers.refuse_private((example.prompt, example.target))
        return {name: list(examples) for name, examples in splits.items()}
    ends: set[str] = set()
    made = {name: [_example(template, e, ends) for e in examples] for name, examples in splits.items()}
    if len(ends) > 1:
        shown = ", ".join(sorted(end or "nothing" for end in ends))
        raise UserError(f"the chat template ends the model's turns in several ways: {shown}")
    end = next(iter(ends), "")
    tokenizer.in_turns(tokenizer.control[end] if end else None)
    return made


def _example(template: Template, example: Example, ends: set[str]) -> Example:
    before, said = example.conversation, example.target if example.messages else example.target.strip()
    try:
        prompt, target = _turn(template, before, said, ends)
        changes = dict(prompt=prompt, target=target)
        if example.rejected:
            changes["rejected"] = _turn(template, before, example.rejected.strip(), ends)[1]
        changes["options"] = tuple(_turn(template, before, each.strip(), ends)[1] for each in example.options)
        if example.reworded:
            again = dataclasses.replace(example, prompt=example.reworded).conversation
            changes["reworded"] = _turn(template, again, said, ends)[0]
    except UserError as error:
        raise UserError(f"example {example.id}: {error}; another data.template, or none, may do") from error
    return dataclasses.replace(example, **changes)


def _turn(template: Template, before: Sequence[tuple[str, str]], said: str, ends: set[str]) -> tuple[str, str]:
    """What comes before the model's turn, and the turn up to the marker that ends it, which is added to `ends`."""
    for text in (text for message in (*before, ("", said)) for text in message):
        markers.refuse_private((text,))
        if BREAK in text:
            raise UserError("a text with U+FDD2, which is no character")
    prompt = template.text(before, ask=True)
    whole = template.text((*before, ("assistant", said)), ask=False)
    if not whole.startswith(prompt):
        asked, there = (markers.shown(text)[max(0, len(prompt) - 80) :][:80] for text in (prompt, whole))
        raise UserError(f"the chat template writes another prompt once it is answered: {there!r} instead of {asked!r}")
    turn = whole[len(prompt) :]
    at = END.search(turn).start()
    end = markers.PRIVATE.search(turn, at)
    ends.add(end[1] if end else "")
    return prompt, turn[: end.start()] if end else turn[:at]


def _broken(found: re.Match) -> str:
    return found[0][:1] + BREAK + found[0][1:]


def _read(path: str) -> str:
    try:
        return storage.path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"data.template={path}: auto, none, or a file ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.template={path}: not a text in UTF-8") from error


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, which some templates have around what the model says."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.If(nodes.Const(True), body, [], []).set_lineno(line)


def _environment() -> jinja2.Environment:
    """Jinja2 as `transformers` sets it up for templates, without its clock."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    kept = {name: made.globals[name] for name in ("range", "namespace")}
    made.globals = kept | dict(dict=lambda **entries: entries, raise_exception=_refuse)
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **dict(ensure_ascii=False) | options)
    return made


def _refuse(message: str):
    raise jinja2.TemplateError(message)
