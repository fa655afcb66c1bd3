"""A real Hugging Face `Trainer` whose examples are measured: the numbers are ours, and the training is not changed."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from configs import evaluate as run_card
from premem_jax import sharding
from premem_jax.analysis.readers import read_runs
from premem_jax.analysis.trace import evaluation_path, evaluation_steps
from premem_jax.data import tokenizer_export
from premem_jax.errors import UserError
from premem_jax.experiments import evaluate
from premem_jax.grading.reference import grade_bytes
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.hf_files import save
from premem_jax.recorder import Recorder
from premem_jax.recorder.callback import RecorderCallback
from tests import tiny

EXAMPLES, EPOCHS, BATCH, SAMPLES = 24, 2, 8, 3
STEPS = EPOCHS * EXAMPLES // BATCH
ROWS = [{"prompt": e.prompt, "target": e.target, "answer": e.answer} for e in tiny.examples(EXAMPLES + 9)]
TRAIN, TEST = ROWS[:EXAMPLES], ROWS[EXAMPLES:]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model that solves the task now and then."""
    folder, tokenizer, config = tmp_path_factory.mktemp("model"), tiny.tokenizer(), tiny.config()
    mesh = tiny.one_device()
    params = jax.device_put(tiny.trained(), sharding.replicated(mesh))
    files = tokenizer_export.files(tokenizer)
    save(folder / "start", params, config, mesh, description=to_hf_config(config), files=files)
    return folder / "start"


def rows_of(tokenizer):
    """The training rows as a `Trainer` takes them; right padding costs nothing here."""
    made = []
    for row in TRAIN:
        prompt, target = tiny.tokenizer().encode_pair(row["prompt"], row["target"])
        pad = tiny.CONTEXT - len(prompt) - len(target)
        made.append(
            {
                "input_ids": [*prompt, *target, *[tokenizer.pad_token_id] * pad],
                "attention_mask": [1] * (tiny.CONTEXT - pad) + [0] * pad,
                "labels": [-100] * len(prompt) + list(target) + [-100] * pad,
            }
        )
    return made


def trained(start, folder, measured: bool, resume=None, **changes) -> transformers.Trainer:
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    arguments = transformers.TrainingArguments(
        str(folder / "trainer"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=3e-3,
        save_strategy="epoch" if measured else "no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    options = dict(attn_implementation="eager", attention_dropout=0.1)  # so that a random number of ours would be seen
    network = transformers.AutoModelForCausalLM.from_pretrained(start, **options)
    callbacks = []
    if measured:
        recorder = Recorder(folder / "run", task="sums", model="tiny", threshold=dict(rule="given", perplexity=1.2))
        options = dict(samples=SAMPLES, max_new_tokens=8, batch=5, grader="gsm8k", temperature=1.0) | changes
        callbacks = [RecorderCallback(recorder, {"train": TRAIN, "test": TEST}, tokenizer, **options)]
    trainer = transformers.Trainer(network, arguments, train_dataset=rows_of(tokenizer), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer = trained(model, folder, measured=True)
    trainer.save_model(str(folder / "saved"))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (folder / "saved" / name).write_bytes((model / name).read_bytes())
    return folder, trainer


def test_likelihoods_are_ours_on_the_exported_weights(finished, tmp_path):
    """Of the untrained and of the trained weights, within 1e-5; and the two differ by far more."""
    folder, _ = finished
    [run] = read_runs(folder / "run")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN))
    config = run_card.get_config()
    config.model.path, config.data.path = str(folder / "saved"), str(tmp_path / "rows.jsonl")
    config.cache = str(tmp_path / "cache")
    config.update_from_flattened_dict({"compute_dtype": "float32", "likelihood.batch": 8})
    evaluate.run(config, tmp_path / "ours")
    ours = [json.loads(line) for line in (tmp_path / "ours" / "evaluation.jsonl").read_text().splitlines()]
    assert run.trace.steps.tolist() == [0, STEPS // 2, STEPS]
    np.testing.assert_allclose(run.train.nll[-1], [row["target_nll"] for row in ours], rtol=0, atol=1e-5)
    assert run.train.tokens.tolist() == [row["target_tokens"] for row in ours]
    assert np.abs(run.train.nll[-1] - run.train.nll[0]).max() > 1e-2


def test_measuring_changes_no_bit_of_the_training(model, finished, tmp_path):
    plain = trained(model, tmp_path, measured=False)
    for (name, mine), theirs in zip(finished[1].model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_responses_are_graded_and_shown(finished):
    folder = finished[0] / "run"
    [run] = read_runs(folder)
    verdicts = []
    for path in sorted(folder.glob("samples/*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            example = (TRAIN if row["split"] == "train" else TEST)[row["example"]]
            for each in row["responses"]:
                plain = grade_bytes(each["text"].encode(), example["answer"].encode(), "gsm8k").name.lower()
                assert each["verdict"] == plain
                verdicts.append(plain)
    assert len(verdicts) == 3 * SAMPLES * len(ROWS) and {"correct", "wrong"} <= set(verdicts)
    splits = run.trace.splits.values()
    assert sum(split.correct.sum() for split in splits) == verdicts.count("correct")
    assert sum(split.unparsed.sum() for split in splits) == verdicts.count("unparsed")
    page = (folder / "report.html").read_text()
    assert 'id="explorer"' in page and ROWS[0]["prompt"] in page and "accuracy before memorization is" in page


@pytest.mark.slow
def test_a_resumed_run_measures_what_is_missing(finished, model, tmp_path):
    """After a kill between the checkpoint and the measurement of its step, and after one later."""
    folder, _ = finished
    (tmp_path / "run").mkdir()
    for name in ("config.json", "examples.jsonl"):
        (tmp_path / "run" / name).write_bytes((folder / "run" / name).read_bytes())
    trained(model, tmp_path, measured=True, resume=str(folder / "trainer" / f"checkpoint-{STEPS // 2}"))
    assert evaluation_steps(tmp_path / "run" / "trace") == [STEPS // 2, STEPS]
    for step in (STEPS // 2, STEPS):
        mine, theirs = (evaluation_path(where / "run" / "trace", step).read_bytes() for where in (tmp_path, folder))
        assert mine == theirs


def test_a_seam_inside_a_token_and_markers_in_the_texts(tmp_path):
    """A token across the seam belongs to the target, and a marker that a text brings is not added again."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, processors

    fast = Fast(models.WordLevel({"<s>": 0, "</s>": 1, "ab": 2, "cd": 3, "?": 4}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")
    recorder = Recorder(tmp_path, task="letters", model="none")
    rows = [{"prompt": p, "target": t} for p, t in (("ab c", "d"), ("ab", " cd"), ("<s> ab", " cd </s>"))]
    callback = RecorderCallback(recorder, {"train": rows}, tokenizer, grader="none")
    assert callback._tokens["train"] == [([0, 2, 3, 1], 2)] * 3


def test_mistakes_are_named_before_training(model, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    recorder = Recorder(tmp_path / "run", task="sums", model="tiny")
    made = lambda rows, **options: RecorderCallback(recorder, {"train": rows}, tokenizer, **options)
    with pytest.raises(UserError, match="split 'train', row 1: not a row"):
        made([TRAIN[0], {"prompt": "a"}])
    with pytest.raises(UserError, match="split 'train', row 0: no answer by the grader boxed"):
        made([{"prompt": "a", "target": "b"}], grader="boxed")
    with pytest.raises(UserError, match=r"nowhere.jsonl: cannot be read"):
        made("nowhere.jsonl")
    several = type("Arguments", (), {"world_size": 2})
    with pytest.raises(UserError, match="runs of one process, and this one has 2"):
        made(TRAIN).on_train_begin(several, transformers.TrainerState(), None, model=None)
