"""Evaluation of folders: likelihoods of transformers, verdicts of the plain rules, kills, meshes and mistakes."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from configs import evaluate as run_card
from premem_jax import sharding
from premem_jax.data.pipeline import pad_to
from premem_jax.errors import NonFinite, UserError
from premem_jax.experiments import evaluate
from premem_jax.grading.reference import grade_bytes
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.hf_files import save
from tests import tiny
from tests.models.published import gemma, llama
from tests.pod import pod, texts
from tests.processes import command, finish, interrupt, kill

CONFIG = Path(run_card.__file__)
ROWS = 21


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`llama`, which half solves the task, and a random `gemma`, both with a tokenizer; `rows.jsonl`; a cache."""
    root = tmp_path_factory.mktemp("evaluate")
    tokenizer, config, mesh = tiny.tokenizer(), tiny.config(), tiny.one_device()
    params = jax.device_put(tiny.trained(), sharding.replicated(mesh))
    files = {"tokenizer.model": tokenizer.model}
    save(root / "llama", params, config, mesh, description=to_hf_config(config), files=files)
    theirs = gemma(4, 2, window=5)
    theirs.vocab_size = tokenizer.vocab_size + 3  # as published ones, it has rows to spare
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(theirs).save_pretrained(root / "gemma")
    (root / "gemma" / "tokenizer.model").write_bytes(tokenizer.model)
    rows = [{"prompt": e.prompt, "target": e.target, "answer": e.answer} for e in tiny.examples(ROWS)]
    rows = [row | ({"id": f"row {i}"} if i % 3 else {}) for i, row in enumerate(rows)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def settings(place, model="llama", arg=None, **changes):
    c = run_card.get_config(arg)
    c.model.path, c.data.path, c.cache = str(place / model), str(place / "rows.jsonl"), str(place / "cache")
    c.update_from_flattened_dict({"compute_dtype": "float32", "likelihood.batch": 8, "sampling.batch": 8} | changes)
    return c


def read(path):
    return [json.loads(line) for line in (path / "evaluation.jsonl").read_text().splitlines()]


def expected_nll(folder, rows) -> list[tuple[float, int]]:
    """Mean NLL of each target and its number of tokens, by transformers, a row at a time and without padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    out = []
    for row in rows:
        prompt, target = tiny.tokenizer().encode_pair(row["prompt"], row["target"])
        tokens = torch.tensor([[*prompt, *target]], dtype=torch.long)
        with torch.no_grad():
            logits = model(tokens).logits[0, len(prompt) - 1 : -1]
        out.append((torch.nn.functional.cross_entropy(logits, tokens[0, len(prompt) :]).item(), len(target)))
    return out


@given(longest=st.integers(1, 2**17), length=st.integers(1, 2**17))
def test_rows_of_all_lengths_have_few_shapes(longest, length):
    lengths, length = evaluate.few_lengths(longest), min(length, longest)
    padded = pad_to(length, lengths)
    assert len(lengths) <= 5 and padded in lengths and not padded % 32
    assert padded < 1.42 * max(length, longest / 4) + 32


def test_without_buckets_the_evaluators_take_the_shapes_that_their_rows_need():
    made = lambda **changes: evaluate.evaluators(settings(Path(), **changes), tiny.split(), tiny.run())
    likelihood, accuracy = made(**{"sampling.samples": 1, "sampling.max_new_tokens": 100})
    assert likelihood.run.buckets == (32,) and accuracy.run.buckets == (32, 64, 96, 128)
    assert made(**{"data.buckets": (20, 40)})[0].run.buckets == (20, 40)


def rows_of(place):
    return [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("model", "arg", "mesh"),
    [("llama", "samples=2,max_new_tokens=5", dict(fsdp=8)), ("gemma", "", dict(data=2, fsdp=2, tensor=2))],
)
def test_likelihoods_are_those_of_transformers(place, model, arg, mesh, tmp_path):
    """In the order of the file, under the names of the file, on 8 devices. Without a task nothing is graded."""
    changes = {f"mesh.{axis}": size for axis, size in mesh.items()} | {"chunk": 13, "sampling.temperature": 0.0}
    summary = evaluate.run(settings(place, model, arg, **changes), tmp_path / "run")
    got, rows = read(tmp_path / "run"), rows_of(place)
    assert [row["id"] for row in got] == [f"row {i}" if i % 3 else i for i in range(ROWS)]
    nll, counts = zip(*expected_nll(place / model, rows), strict=True)
    np.testing.assert_allclose([row["target_nll"] for row in got], nll, rtol=0, atol=1e-4)
    assert [row["target_tokens"] for row in got] == list(counts) and np.std(nll) > 0.01
    np.testing.assert_allclose(summary["target_nll"], np.mean(nll), atol=1e-4)
    np.testing.assert_allclose(summary["token_nll"], np.average(nll, weights=counts), atol=1e-4)
    assert "accuracy" not in summary
    assert {key for row in got for key in row} == {"id", "target_nll", "target_tokens"} | (
        {"responses"} if arg else set()
    )
    for first, second in [row["responses"] for row in got if arg]:
        assert first.keys() == {"text"} and first == second  # the likeliest token has no choice


def test_damaged_chunks_are_named_and_done_again(place, tmp_path, caplog):
    """One emptied, one with another digit, one cut at a line: the rows are those of before, and the fourth is kept."""
    config = settings(place, chunk=(ROWS + 3) // 4)
    evaluate.run(config, tmp_path / "run")
    expected = (tmp_path / "run" / "evaluation.jsonl").read_bytes()
    chunks = sorted(tmp_path.glob("run/chunks/*/*.jsonl"))
    whole = [path.read_bytes() for path in chunks]
    assert len(chunks) == 4
    chunks[0].write_bytes(b"")
    digit = re.search(rb'"target_nll": \d', whole[1]).end() - 1
    chunks[1].write_bytes(
        whole[1][:digit] + (b"7" if whole[1][digit : digit + 1] != b"7" else b"3") + whole[1][digit + 1 :]
    )
    chunks[2].write_bytes(b"".join(whole[2].splitlines(keepends=True)[:1]))
    kept = chunks[3].stat().st_mtime_ns
    evaluate.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "evaluation.jsonl").read_bytes() == expected
    assert [path.read_bytes() for path in chunks] == whole and chunks[3].stat().st_mtime_ns == kept
    assert caplog.text.count("its rows are done again") == 3 == len(list(tmp_path.glob("run/unreadable/*")))


def test_a_weight_that_is_no_number_is_named(place, tmp_path):
    params = jax.tree.map(np.array, tiny.trained())
    params["head"][0, 5] = np.nan
    mesh = tiny.one_device()
    files = {"tokenizer.model": tiny.tokenizer().model}
    shape = tiny.config()
    save(
        tmp_path / "model",
        jax.device_put(params, sharding.replicated(mesh)),
        shape,
        mesh,
        description=to_hf_config(shape),
        files=files,
    )
    with pytest.raises(NonFinite, match=r"weights that are NaN or infinite in float32: \['head'\]"):
        evaluate.run(settings(place, **{"model.path": str(tmp_path / "model")}), tmp_path / "run")
    assert not list(tmp_path.glob("run/chunks/*/*"))


def test_a_file_that_changed_is_another_evaluation(place, tmp_path):
    rows = tmp_path / "rows.jsonl"
    config = settings(place, **{"data.path": str(rows)})
    one, other = (place / "rows.jsonl").read_text().splitlines()[:2]
    found = []
    for text in (one, other):
        rows.write_text(f"{text}\n")
        evaluate.run(config, tmp_path / "run")
        found += read(tmp_path / "run")
    assert [row["id"] for row in found] == [0, "row 1"] and found[0]["target_nll"] != found[1]["target_nll"]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(place, tmp_path):
    """The rows of each batch on two hosts: the same texts, verdicts and order of rows, and one file."""
    arguments = [
        f"--config.model.path={place / 'llama'}",
        f"--config.data.path={place / 'rows.jsonl'}",
        f"--config.cache={place / 'cache'}",
        "--config.compute_dtype=float32",
        "--config.likelihood.batch=8",
        "--config.sampling.batch=8",
        "--config.chunk=10",
    ]
    card = f"{CONFIG}:samples=3,task=gsm8k,max_new_tokens=9"
    alone = finish(*arguments, f"--workdir={tmp_path / 'one'}", config=card)
    assert alone.returncode == 0, alone.stderr
    with pod(2, command([*arguments, f"--workdir={tmp_path / 'two'}"], config=card), tmp_path / "logs") as processes:
        assert [process.wait(timeout=240) for process in processes] == [0, 0], texts(tmp_path / "logs")
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert [(row["id"], row["target_tokens"], row["responses"]) for row in one] == [
        (row["id"], row["target_tokens"], row["responses"]) for row in two
    ]
    np.testing.assert_allclose([row["target_nll"] for row in two], [row["target_nll"] for row in one], atol=1e-5)


def test_a_killed_evaluation_continues_and_other_meshes_agree(place, tmp_path):
    """On one device, in real processes: the same bits after a kill. On 8: the same texts and verdicts."""
    arg = "samples=6,task=gsm8k,max_new_tokens=9"
    changes = dict(chunk=5) | {"sampling.temperature": 1.0}
    flags = {"compute_dtype": "float32", "likelihood.batch": 8, "sampling.batch": 8, "cache": place / "cache"} | changes
    flags |= {"model.path": place / "llama", "data.path": place / "rows.jsonl"}
    command = [f"--config.{key}={value}" for key, value in flags.items()]
    config = f"{CONFIG}:{arg}"
    done = finish(*command, f"--workdir={tmp_path / 'straight'}", config=config)
    assert done.returncode == 0, done.stderr

    killed, begun = tmp_path / "killed", lambda: len(list(killed.glob("chunks/*/0*.jsonl")))
    _, stderr = interrupt(*command, f"--workdir={killed}", when=lambda: begun() >= 2, then=kill, config=config)
    assert 2 <= begun() < 5 and not (killed / "evaluation.jsonl").exists(), stderr
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("chunks/*/0*.jsonl")}
    done = finish(*command, f"--workdir={killed}", config=config)
    assert done.returncode == 0, done.stderr
    assert (killed / "evaluation.jsonl").read_bytes() == (tmp_path / "straight" / "evaluation.jsonl").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    summary = evaluate.run(settings(place, arg=arg, **changes, **{"mesh.tensor": 2}), tmp_path / "eight")
    ours, theirs = read(tmp_path / "eight"), read(killed)
    nll = lambda rows: [row.pop("target_nll") for row in rows]
    np.testing.assert_allclose(nll(ours), nll(theirs), rtol=0, atol=1e-4)
    assert ours == theirs
    verdicts = [
        (response["verdict"], grade_bytes(response["text"].encode(), row["answer"].encode(), "gsm8k").name.lower())
        for got, row in zip(ours, rows_of(place), strict=True)
        for response in got["responses"]
    ]
    assert all(mine == plain for mine, plain in verdicts) and len(verdicts) == 6 * ROWS
    found = [verdict for verdict, _ in verdicts]
    assert set(found) == {"correct", "wrong", "unparsed"}
    assert summary["accuracy"] == found.count("correct") / len(found)
    assert summary["unparsed"] == found.count("unparsed") / len(found)


@pytest.mark.parametrize(
    ("arg", "changes", "words"),
    [
        ("", {"model.path": ""}, ["model.path is empty"]),
        ("", {"model.path": "nowhere"}, ["model.path=nowhere does not exist"]),
        ("", {"data.path": ""}, ["data.path is empty"]),
        ("", {"data.path": "nowhere.jsonl"}, ["data.path=nowhere.jsonl", "No such file"]),
        ("", {"tokenizer.path": "nowhere"}, ["tokenizer.path=nowhere"]),
        ("", {"likelihood.batch": 12}, ["likelihood.batch", "8 parts"]),
        ("samples=2", {"sampling.batch": 12}, ["sampling.batch", "8 parts"]),
        ("", {"likelihood.batch": 0}, ["likelihood.batch=0"]),
        ("", {"chunk": 0}, ["chunk=0"]),
        ("", {"compute_dtype": "float16"}, ["'float16'", "bfloat16"]),
        ("", {"data.context": 9}, ["rows.jsonl", "longer than data.context=9"]),
        ("samples=-1", {}, ["samples=-1"]),
        ("task=gsm8k", {}, ["'gsm8k'", ":samples=5"]),
        ("task=gsm,samples=1", {}, ["data.task='gsm'", "gsm8k"]),
    ],
)
def test_a_wrong_setting_is_named(place, arg, changes, words, tmp_path):
    with pytest.raises(UserError) as error:
        evaluate.run(settings(place, arg=arg, **changes), tmp_path / "run")
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    assert not (tmp_path / "run" / "chunks").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["rows.jsonl:2", "not a row"]),
        ('{"prompt": "a"}', ["rows.jsonl:2", "{prompt, target}", "it has prompt"]),
        ('["a", "b"]', ["rows.jsonl:2"]),
        ('{"prompt": "a", "target": 3}', ["rows.jsonl:2", "must be a string"]),
        ('{"prompt": "a", "target": "b", "id": [1]}', ["rows.jsonl:2", "id must be", "[1]"]),
        ('{"prompt": "a", "target": "b"}', ["rows.jsonl:2", "no answer"]),
        ('{"prompt": "a", "target": "b", "answer": "1\\n2"}', ["rows.jsonl:2", "several lines"]),
    ],
)
def test_a_wrong_row_is_named_with_its_line(place, line, words, tmp_path):
    (tmp_path / "rows.jsonl").write_text((place / "rows.jsonl").read_text().splitlines()[0] + f"\n{line}\n")
    config = settings(place, arg="task=gsm8k,samples=1", **{"data.path": str(tmp_path / "rows.jsonl")})
    with pytest.raises(UserError) as error:
        evaluate.run(config, tmp_path / "run")
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("spare", [-1, 1024])
def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(place, spare, tmp_path):
    theirs, rows = llama(1, 2), tiny.tokenizer().vocab_size + spare
    theirs.vocab_size = rows
    transformers.AutoModelForCausalLM.from_config(theirs).save_pretrained(tmp_path / "model")
    changes = {"model.path": str(tmp_path / "model"), "tokenizer.path": str(place / "llama")}
    with pytest.raises(UserError, match=rf"vocabulary of {rows} tokens and the tokenizer one of"):
        evaluate.run(settings(place, **changes), tmp_path / "run")
