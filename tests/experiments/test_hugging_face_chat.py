"""An instruct model finetuned on conversations, from its folder to an export that stops where its turns end."""

import html
import json

import pytest
import torch
import transformers

from premem_jax import config as defaults
from premem_jax.analysis.trace import read_trace
from premem_jax.errors import UserError
from premem_jax.experiments import finetune
from tests.data import folders
from tests.models.published import llama

TEXTS = [f"What is {a} + {b} ? The answer is {a + b}." for a in range(20) for b in range(10)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = folders.qwen(tmp_path_factory.mktemp("base"), TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape = llama(0, kv_heads=2)
    shape.vocab_size, shape.bos_token_id = len(tokenizer), None
    shape.eos_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")  # not the one that ends a turn
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    return folder


def settings(base, rows, folder, **data):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = defaults.finetune()
    c.data.update(task="jsonl", path=str(folder), grader="number", test=4, seed=1, **data)
    c.model.path, c.cache = str(base), str(folder / "cache")
    c.train.update(epochs=2, batch=8, learning_rate=1e-3, warmup_steps=1)
    sampling = dict(batch=8, samples=1, max_new_tokens=4, first_round=4)
    c.evals = dict(
        train_likelihood=defaults.evaluator("likelihood", "train", (0,), batch=8),
        test_accuracy=defaults.evaluator("accuracy", "test", (0,), **sampling),
    )
    c.threshold.rule, c.checkpoint.export = "none", True
    return c.lock()


def nll_of(folder, messages) -> float:
    """Of the last turn up to its end marker, by `transformers` alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32")
    write = lambda messages, ask: tokenizer.apply_chat_template(messages, add_generation_prompt=ask, return_dict=False)
    asked, whole = write(messages[:-1], True), write(messages, False)
    whole = torch.tensor([whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]])
    with torch.no_grad():
        logits = model(whole).logits[0, len(asked) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, whole[0, len(asked) :]).item()


def turns(asked: str, said: str) -> list[dict]:
    return [dict(role="user", content=asked), dict(role="assistant", content=said)]


def test_from_an_instruct_model_to_its_export(base, tmp_path, capsys):
    """The first evaluation is that of the folder, the last that of the export, both by `transformers`."""
    odd = [dict(messages=turns(f"What is {a} + 1 ?", f"The <|im_end|> answer is {a + 1}.")) for a in range(4)]
    plain = [dict(messages=turns(f"What is {a} + 2 ?", f"The answer is {a + 2}.")) for a in range(4, 12)]
    summary = finetune.run(settings(base, odd + plain, tmp_path), tmp_path / "run")
    trace, export = read_trace(tmp_path / "run" / "trace").split("train"), tmp_path / "run" / "export"
    known = [row for row, example in enumerate(trace.example) if example >= 4]
    for evaluation, folder in ((0, base), (-1, export)):
        for row in (known[0], known[-1]):
            expected = nll_of(folder, plain[trace.example[row] - 4]["messages"])
            assert trace.nll[evaluation, row] == pytest.approx(expected, abs=1e-5)
    assert abs(trace.nll[-1] - trace.nll[0]).min() > 1e-3

    tokenizer, said = (
        transformers.AutoTokenizer.from_pretrained(export),
        json.loads((export / "generation_config.json").read_text()),
    )
    assert said["eos_token_id"] == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert said["bos_token_id"] is None and tokenizer.chat_template == folders.CHATML

    first = summary["first_example"]
    assert first["prompt"] == "<|im_start|>user\nWhat is 0 + 1 ?<|im_end|>\n<|im_start|>assistant\n"
    assert first["target"] == "The <|im_end|> answer is 1.<|im_end|>" and "as the chat template" in first["about"]
    assert repr(first["prompt"]) in capsys.readouterr().out
    assert html.escape(first["prompt"]) in (tmp_path / "run" / "report.html").read_text()
    examples = [json.loads(line) for line in (tmp_path / "run" / "examples.jsonl").read_text().splitlines()]
    assert all("<|im_start|>assistant" in row["prompt"] and "\ufdd0" not in row["prompt"] for row in examples)


def test_conversations_need_a_template(base, tmp_path):
    rows = [dict(messages=turns("1", "2"))] * 12
    with pytest.raises(UserError, match=r"is a conversation .*data.template=FILE"):
        finetune.run(settings(base, rows, tmp_path, template="none"), tmp_path / "run")
