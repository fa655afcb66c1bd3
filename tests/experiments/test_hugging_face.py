"""A finetune that starts from a Hugging Face folder and ends in one, as people run it."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import unflatten_dict

from premem_jax.analysis.trace import read_trace
from premem_jax.data.tokenizer_files import train
from premem_jax.data.tokenizer_kinds import SentencePiece
from premem_jax.errors import UserError
from premem_jax.experiments import finetune
from premem_jax.models import hf
from premem_jax.models.hf_config import from_hf_config
from premem_jax.tasks import arithmetic
from tests.configs import tiny
from tests.models.published import gemma
from tests.processes import LAST, Run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Gemma2 with windows that the texts outgrow, and the arithmetic task's tokenizer beside it."""
    folder, tokenizer = (
        tmp_path_factory.mktemp("base"),
        SentencePiece(train(arithmetic.vocabulary(), kind="word", vocab_size=512)),
    )
    config = gemma(4, 2, window=8)
    config.vocab_size, config.bos_token_id = tokenizer.vocab_size, tokenizer.bos_id
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    return folder


def nll_of(folder, tokenizer, example) -> float:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32")
    prompt, target = tokenizer.encode_pair(example.prompt, example.target)
    tokens = torch.tensor([[*prompt, *target]], dtype=torch.long)
    with torch.no_grad():
        logits = model(tokens).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, tokens[0, len(prompt) :]).item()


def test_from_a_folder_to_a_folder(base, tmp_path):
    """The first evaluation is that of the folder's weights, the last that of the export's, both by transformers."""
    run = Run(tmp_path / "run", tmp_path / "cache")
    options = dict(train=dict(epochs=1), base=dict(steps=0), checkpoint=dict(export=True))  # one epoch has 4 updates
    flags = [f"--config.{group}.{key}={x}" for group, keys in options.items() for key, x in keys.items()]
    run.finish(f"--config.model.path={base}", *flags)
    tokenizer = SentencePiece((base / "tokenizer.model").read_bytes())
    assert (run.workdir / "tokenizer.model").read_bytes() == tokenizer.model
    out = run.workdir / "export"
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "tokenizer.model", "generation_config.json"}
    ours = json.loads((out / "config.json").read_text())
    theirs = json.loads((base / "config.json").read_text())
    markers = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    assert ours.pop("torch_dtype") == theirs.pop("dtype") == "float32" and ours == theirs | markers
    assert json.loads((out / "generation_config.json").read_text()).items() >= markers.items()

    trained = transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()
    params = run.checkpoint(4)
    embedding = next(x for name, x in params.items() if name.endswith("['params']['embedding']"))
    np.testing.assert_array_equal(trained["model.embed_tokens.weight"].numpy(), embedding)

    trace = read_trace(run.workdir / "trace").split("train")
    examples = {example.id: example for example in arithmetic.problems("train", 32, 0)}
    for row in (0, 7):
        example = examples[trace.example[row]]
        for evaluation, folder in ((0, base), (-1, out)):
            assert trace.nll[evaluation, row] == pytest.approx(nll_of(folder, tokenizer, example), abs=1e-4)
    assert abs(trace.nll[-1] - trace.nll[0]).min() > 0.01


def test_a_finished_run_is_exported_with_its_markers(straight, tmp_path):
    """In bf16, of a model of our own; what transformers reads is the rounded checkpoint."""
    run = Run(tmp_path / "run", straight.cache)
    shutil.copytree(straight.workdir, run.workdir)
    run.finish("--config.checkpoint.export=True", "--config.checkpoint.export_dtype=bfloat16")
    description = json.loads((run.workdir / "export" / "config.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(run.workdir / "export")
    assert str(model.dtype) == "torch.bfloat16"
    assert [description[f"{name}_token_id"] for name in ("pad", "eos", "bos")] == [0, 1, 2]
    paths = {
        name[len("['params']['") : -len("']")]: x for name, x in run.checkpoint(LAST).items() if "params" in name[:9]
    }
    params = unflatten_dict({tuple(name.split("']['")): x.astype("bfloat16") for name, x in paths.items()})
    stored = hf.to_hf_state(params, from_hf_config(description))
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.float().numpy(), stored[name].astype(np.float32), err_msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.path": "nowhere"}, ["model.path=nowhere does not exist"]),
        ({"base.steps": 12}, ["base.steps=12", "base.steps=0"]),
        ({"checkpoint.export_dtype": "int8"}, ["checkpoint.export_dtype='int8'", "bfloat16"]),
        ({"tokenizer.path": "TASK"}, ["vocabulary of", "tokenizer.path"]),
    ],
)
def test_a_wrong_setting_is_named(base, changes, words, tmp_path):
    config = tiny.get_config()
    config.cache, config.model.path, config.base.steps = str(tmp_path / "cache"), str(base), 0
    if "tokenizer.path" in changes:  # one with more pieces than the model has rows
        changes = {"tokenizer.path": str(tmp_path / "other.model")}
        texts = [*arithmetic.vocabulary(), "some words that the task does not have"]
        (tmp_path / "other.model").write_bytes(train(texts, kind="word", vocab_size=600))
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        finetune.run(config, tmp_path / "run")
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
    assert not (tmp_path / "run" / "trace").exists()
