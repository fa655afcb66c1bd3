"""Limit and help line of every key of every experiment. Checked before JAX is imported.

`experiments/checks.py` checks what depends on data or mesh.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from premem_jax import evaluators, together
from premem_jax.analysis.audit_columns import COLUMNS
from premem_jax.errors import UserError
from premem_jax.limits import (
    COUNT,
    FP32,
    NATURAL,
    NEEDED,
    PROBABILITY,
    ROWS,
    SEED,
    TOKENS,
    Limit,
    anything,
    choice,
    either,
    flag,
    integer,
    number,
    row,
    shown,
    text,
    tuple_of,
    word,
)
from premem_jax.members import config_of, members_of
from premem_jax.models.architecture import MATRICES, PRESETS
from premem_jax.tasks import task as tasks
from premem_jax.training import trackers

Table = Mapping[str, tuple[Limit, str]]

SPLITS = ("train", "heldout", "test")
TASKS = tasks.names()
GRADED = ("gsm8k", "math")  # rules of the grader
DTYPE = choice("float32", "bfloat16")
CHIPS = integer(1, 2**20)
NAME = word()
MEMBERS = tuple_of(row(NAME, tuple_of(row(NEEDED, anything())), tuple_of(NAME)))

# ---- Keys that several experiments have ------------------------------------------------------------------------------

MODEL: Table = {
    "model.path": (text(), "Hugging Face folder that gives shape, weights and tokenizer; empty: random weights"),
    "model.remat": (choice("none", "dots", "full"), "what the backward pass computes again instead of keeping it"),
    "model.vocab_chunks": (integer(1, 4096), "parts in which the vocabulary is looked at; divides its size"),
    "model.attention": (choice("auto", "reference", "splash", "cudnn"), "code of causal self-attention"),
}
MESH: Table = {
    "mesh.data": (either(integer(-1, -1), CHIPS), "devices that share batches alone; -1: the rest"),
    "mesh.fsdp": (either(integer(-1, -1), CHIPS), "devices that share batches and weights; -1: the rest"),
    "mesh.tensor": (either(integer(-1, -1), CHIPS), "devices that share each product; -1: the rest"),
    "mesh.decode_tensor": (integer(0, 2**20), "devices that share the weights while sampling; 0: as in training"),
}
ROW: Table = {
    "data.grader": (text(), "grades responses: number, choice, boxed, python:FILE.py:FUNCTION, ...; empty: the task's"),
    "data.prompt": (text(), "template of the prompt of own rows, such as '{question}'; empty: by their fields"),
    "data.target": (text(), "template of the target of own rows, such as ' {answer}'; empty: by their fields"),
    "data.template": (NEEDED, "chat template: auto (the one of the model's folder, if any), none, or a Jinja2 file"),
}
BUCKETS = (tuple_of(TOKENS, increasing=True), "lengths to which batches are padded; none: multiples of 32")
PERPLEXITY = (number(0, FP32), "with threshold.rule=given, the perplexity below which an example is memorized")
QUANTILE = (PROBABILITY, "quantile of the held-out solutions' perplexity that is the threshold")

# ---- Options of evaluators: those that all have; the others are in the file of each ----------------------------------

EVALUATOR: Table = {
    "type": (choice(*evaluators.names()), "what is measured"),
    "split": (choice(*SPLITS), "examples on which it is measured"),
    "epochs": (tuple_of(number(0, 1e6)), "when it is measured, beside the end; those past the end are left out"),
}
SAMPLING = ("batch", "samples", "max_new_tokens", "first_round", "temperature", "top_p")  # of them, in `evaluate`

# ---- Experiments -----------------------------------------------------------------------------------------------------

FINETUNE: Table = {
    **MODEL,
    **MESH,
    **ROW,
    "seed": (SEED, "of weights, order of the data and samples"),
    "extend": (flag(), "go on in a folder that has fewer epochs, other evaluators or other checkpoints"),
    "log_every": (COUNT, "updates between rows of metrics.jsonl"),
    "trackers": (tuple_of(choice(*trackers.NAMES)), "where metrics go too, beside TensorBoard: wandb, mlflow, trackio"),
    "compute_dtype": (DTYPE, "of activations, and of the copies of weights that meet them"),
    "data.task": (choice(*TASKS), "where examples come from and how answers are graded"),
    "data.path": (text(), "folder or mirror of the task's files; empty: their official place"),
    "data.added": (text(), "file of training examples beside the task's own, as a curation writes it; empty: none"),
    "data.train": (integer(0, 10**7), "training examples; 0: all"),
    "data.heldout": (integer(0, 10**7), "examples kept aside for the threshold; 0: none"),
    "data.test": (integer(0, 10**7), "test examples; 0: all"),
    "data.seed": (SEED, "of the choice of examples"),
    "data.context": (integer(2, 2**20), "longest example in tokens"),
    "data.drop_long": (flag(), "leave out longer examples instead of refusing them"),
    "data.buckets": BUCKETS,
    "tokenizer.path": (text(), "file or folder of a tokenizer; empty: that of model.path, or one trained on the task"),
    "tokenizer.kind": (choice("word", "bpe"), "of a tokenizer that is trained"),
    "tokenizer.vocab_size": (integer(8, 2**20), "largest vocabulary of a tokenizer that is trained"),
    "model.preset": (choice(*PRESETS), "shape of a model without model.path"),
    "base.steps": (integer(0, 10**6), "updates on the task's base texts before the finetune; 0: none"),
    "base.batch": (ROWS, "texts of an update of the base phase"),
    "base.learning_rate": (number(0, FP32), "highest rate of the base phase; 0 changes nothing"),
    "base.warmup_steps": (NATURAL, "updates until the highest rate; with more than there are it is not reached"),
    "base.prompt_weight": (number(0, 1), "weight of prompt tokens in the loss of the base phase"),
    "train.epochs": (integer(1, 10**5), "passes over the training examples"),
    "train.batch": (ROWS, "examples of an update, over all devices"),
    "train.micro_batches": (ROWS, "parts in which an update is summed; divides the batch"),
    "train.packed_tokens": (BUCKETS[0], "tokens for each example of updates whose rows are shared; none: a row each"),
    "train.length_window": (integer(1, 10**6), "batches among which examples are sorted by length; 1: no sorting"),
    "train.learning_rate": (number(0, FP32), "highest rate; 0 changes nothing, too high a one stops the run"),
    "train.warmup_steps": (NATURAL, "updates until the highest rate; with more than there are it is not reached"),
    "lora.rank": (integer(0, 4096), "LoRA: rank of the adapters, which alone are trained; 0: none, all weights are"),
    "lora.alpha": (number(0, 1e6, above=True), "LoRA: what the adapters add is multiplied by alpha / rank"),
    "lora.targets": (tuple_of(choice(*(f"{name}_proj" for name in MATRICES))), "LoRA: matrices with an adapter"),
    "optimizer.b1": (number(0, 0.999999), "AdamW: decay of the mean of gradients"),
    "optimizer.b2": (number(0, 0.999999), "AdamW: decay of the mean of their squares"),
    "optimizer.eps": (number(1e-30, 1), "AdamW: added to the root of that mean"),
    "optimizer.weight_decay": (number(0, 1000), "AdamW: decay of matrices, times the learning rate"),
    "optimizer.mean_dtype": (choice("float32", "bfloat16"), "in which the mean of gradients is kept"),
    "optimizer.clip_norm": (number(1e-30, FP32), "largest norm of a gradient; 1e30 turns clipping off"),
    "threshold.rule": (choice("given", "heldout_quantile", "none"), "where the memorization threshold comes from"),
    "threshold.quantile": QUANTILE,
    "threshold.split": (choice(*SPLITS), "examples of which the quantile is taken"),
    "threshold.perplexity": PERPLEXITY,
    "checkpoint.every": (COUNT, "updates between checkpoints"),
    "checkpoint.keep": (integer(1, 1000), "checkpoints that stay"),
    "checkpoint.export": (flag(), "write the trained model as a Hugging Face folder"),
    "checkpoint.export_dtype": (DTYPE, "of the exported weights"),
    "profile.start": (NATURAL, "updates before JAX's profiler starts"),
    "profile.steps": (integer(0, 10**4), "updates that it looks at; 0: none"),
}
PREFERENCE: Table = {key: entry for key, entry in FINETUNE.items() if key not in ("data.added", "extend")} | {
    "data.bad_pairs": (
        choice("refuse", "drop"),
        "what is done where pairs are equal, empty, too long or cut in a token",
    ),
    "train.epochs": (integer(1, 10**5), "passes over the training pairs, after those of sft"),
    "train.batch": (ROWS, "pairs of an update, over all devices, also of sft"),
    "sft.epochs": (integer(0, 10**5), "passes of supervised finetuning before; 0: none"),
    "sft.answers": (choice("chosen", "both"), "responses of a pair that it trains on"),
    "sft.learning_rate": (number(0, FP32), "highest rate of sft; 0 changes nothing"),
    "sft.warmup_steps": (NATURAL, "updates until the highest rate; with more than there are it is not reached"),
    "preference.objective": (choice("dpo", "ipo", "slic", "sppo", "ascent"), "loss on pairs"),
    "preference.beta": (number(1e-6, 1e6), "of dpo and ipo: how much a log-ratio weighs"),
    "preference.label_smoothing": (number(0, 0.5), "of dpo: share of pairs taken to be the wrong way round"),
    "preference.reference_free": (flag(), "of dpo: no log-ratio to the first weights"),
    "preference.delta": (number(0, 1e6), "of slic: margin in nats"),
    "preference.weight": (number(0, 1e6), "of slic: weight of supervised finetuning on the chosen response"),
    "preference.eta": (number(0, 1e6), "of sppo: distance between the log-ratios that it aims at"),
    "preference.gate": (number(0, 1, below=True), "mean token probability below which none is pushed down; 0: no gate"),
    "on_policy.every": (NATURAL, "updates between pairs sampled by the model itself; 0: the pairs of the data"),
    "on_policy.samples": (
        integer(2, 10**4),
        "responses to each prompt; its pair is the first right and wrong one",
    ),
    "on_policy.temperature": (number(1e-6, 1e6), "divides the logits of these"),
    "on_policy.max_new_tokens": (integer(1, 2**17), "longest of these in tokens"),
    "on_policy.batch": (ROWS, "prompts that are sampled at a time, over all devices"),
    "influence.every": (NATURAL, "updates between those that are split by source; 0: none is"),
    "influence.prompts": (NATURAL, "training prompts whose responses those are seen at, the first; 0: all"),
    "influence.draws": (
        integer(0, 10**6),
        "gradients from which the kernel's norm is estimated; 0: it is not",
    ),
}
FORM = (choice("log_power_law", "power_law"), "how the elbow moves with the data")
DRAWS = (integer(0, 10**5), "bootstrap draws of whole subsets; 0: none")
RUNGS: Table = {
    "mesh.data": MESH["mesh.data"],
    "mesh.fsdp": MESH["mesh.fsdp"],
    "mesh.tensor": MESH["mesh.tensor"],
    "seed": (SEED, "of facts, texts, weights, subsets and prompts"),
    "log_every": (COUNT, "updates between rows of metrics.jsonl"),
    "compute_dtype": (DTYPE, "of activations, and of the copies of weights that meet them"),
    "world.entities": (integer(2, 10**6), "things that there are facts about; a text names e0 most often"),
    "world.relations": (integer(1, 10**4), "facts about each of them"),
    "world.values": (integer(2, 10**5), "answers that there are; chance is one of them"),
    "world.zipf": (number(0, 10), "exponent of the frequency of entities; 0: all are as frequent"),
    "world.asked": (number(0, 1), "share of base texts that ask, in the format of the benchmark"),
    "world.prose": (number(0, 1), "share of base texts that tell nothing"),
    "model.width": (integer(8, 2**14), "width of the model, a multiple of 8"),
    "model.layers": (integer(1, 1000), "layers of the model"),
    "pretrain.steps": (COUNT, "updates of the pretraining, after which the last rung is kept"),
    "pretrain.batch": (ROWS, "texts of an update, over all devices"),
    "pretrain.learning_rate": (number(0, FP32), "constant rate of the pretraining; 0 changes nothing"),
    "pretrain.warmup_steps": (NATURAL, "updates until that rate"),
    "pretrain.first": (COUNT, "updates until the first rung"),
    "pretrain.rungs": (integer(1, 1000), "checkpoints that are kept, evenly spaced in the logarithm of their steps"),
    "pretrain.loss_texts": (ROWS, "texts of which a rung's loss is the mean"),
    "finetune.amounts": (tuple_of(COUNT, increasing=True), "examples of a finetune; none: few-shot evaluation alone"),
    "finetune.subsets": (integer(1, 1000), "draws of the examples of each amount"),
    "finetune.steps": (COUNT, "updates of each finetune"),
    "finetune.batch": (ROWS, "examples of an update, over all devices"),
    "finetune.learning_rate": (number(0, FP32), "constant rate of the finetunes; 0 changes nothing"),
    "finetune.looks": (integer(1, 30), "evaluations of a finetune: at its end, half, a quarter ...; the best counts"),
    "evaluation.shots": (integer(1, 10**4), "solved examples in a few-shot prompt"),
    "evaluation.dev": (COUNT, "questions that choose when a finetune ends"),
    "evaluation.questions": (COUNT, "questions of the benchmark"),
    "evaluation.batch": (ROWS, "questions that are scored at a time, over all devices"),
    "planted": (
        tuple_of(number(-100, 100)),
        "a law to draw accuracies from: two elbows, alpha, slope, floor; none: measure",
    ),
    "forecast": (text(), "SHA-256 of the forecast that was sealed before; empty: a size that it is made from"),
}
SWEPT = ("finetune.amounts", "finetune.subsets", "finetune.steps", "finetune.looks", "evaluation.shots")
CHECKPOINT_RUNG: Table = {key: FINETUNE[key] for key in FINETUNE if key not in ("extend", "train.epochs")} | {
    **{key: RUNGS[key] for key in SWEPT},
    "train.batch": (ROWS, "examples of an update of the finetunes, over all devices"),
    "train.learning_rate": (number(0, FP32), "constant rate of the finetunes; 0 changes nothing"),
    "evaluation.by": (text(), "field in which these agree with the question, such as subject; empty: any"),
    "rung.loss": (number(0, 1000), "pretraining loss in nats per token; 0: that on rung.texts"),
    "rung.texts": (text(), "text file on which the loss is measured, the same for all checkpoints"),
    "rung.flops": (number(0, 1e40), "FLOPs of the pretraining; 0: not known"),
    "forecast": (text(), "SHA-256 of the forecast that was sealed before; empty: a model that it is made from"),
}
STUDY: Table = {
    "study.members": (MEMBERS, "the runs: name, settings in which it differs, names of those it is made from"),
    "study.member": (NAME, "the one that this launch makes, with what it needs; all: every one"),
}
LADDER: Table = STUDY | {
    "study.form": FORM,
    "study.draws": DRAWS,
    "study.mixes": (
        tuple_of(NAME),
        "mixes that are compared, members being called MIX.NAME; none: there is one",
    ),
}
PLAN: Table = {
    "plan.topology": (NEEDED, "TPU slice, such as v5e:4x4, or GPUs of a host, such as h100:1"),
    "plan.slices": (CHIPS, "slices that are joined by the data-centre network"),
    "plan.search": (flag(), "look for the nearest setting that fits, if the run does not"),
}
FINISHED: Table = {
    "seed": (SEED, "of bootstrap and clusters"),
    "traces": (NEEDED, "folder or file of the runs to study"),
    "threshold.rule": (
        choice("published", "heldout_quantile", "given"),
        "where each run's threshold comes from; published ones were tuned on test accuracy",
    ),
    "threshold.quantile": QUANTILE,
    "threshold.perplexity": PERPLEXITY,
    "release.train_samples": (choice("fewest", "most"), "which of several files of the published train answers"),
    "release.test_samples": (choice("fewest", "most"), "which of several files of the published test answers"),
    "release.subset": (choice("repaired", "file"), "training examples of published half and quarter runs"),
}
TABLES: Mapping[str, Table] = {
    "finetune": FINETUNE,
    "sweep": FINETUNE | STUDY,
    "curate": FINETUNE
    | STUDY
    | {
        "study.source": (choice("generator", "file", "samples", "endpoint"), "where new examples come from"),
        "study.pool": (text(), "with study.source=file, rows {original, prompt, target, answer}"),
        "study.url": (text(), "with study.source=endpoint, its address up to and with /v1"),
        "study.model": (text(), "with study.source=endpoint, the model that is asked"),
        "study.per_minute": (number(0.01, 1e6), "with study.source=endpoint, requests a minute"),
        "study.share": (
            number(0, 1, above=True),
            "of the originals, those with the lowest values, are collected around",
        ),
        "study.below": (number(0, 1), "or all originals with an accuracy below this; 0: the share decides"),
        "study.draws": (integer(1, 10**6), "bootstrap draws of seeds"),
    },
    "preference": PREFERENCE,
    "dynamics": PREFERENCE | STUDY,
    "squeezing_toy": {"seed": (SEED, "of the random trials"), "trials": (integer(1, 10**6), "random trials")},
    "plan": FINETUNE | {"data.task": (choice(*GRADED), "task of the run that is planned")} | PLAN,
    "plan_preference": PREFERENCE | PLAN,
    "evaluate": {
        **MODEL,
        **MESH,
        **ROW,
        "seed": (SEED, "of the samples"),
        "compute_dtype": (DTYPE, "of weights and activations; float32 for exact comparisons"),
        "chunk": (integer(1, 10**7), "rows between files from which a killed evaluation continues"),
        "data.path": (NEEDED, "file of rows {prompt, target}; a task needs their answers too"),
        "data.task": (choice("", *TASKS), "whose rules grade the responses; empty: they are not graded"),
        "data.context": (integer(2, 2**20), "longest row in tokens"),
        "data.buckets": (BUCKETS[0], "lengths to which batches are padded; none: a few, by the longest row"),
        "tokenizer.path": (text(), "file or folder of the tokenizer; empty: that of model.path"),
        "model.path": (NEEDED, "what to evaluate: a Hugging Face folder, a run's folder, or RUN/checkpoints/STEP"),
        "likelihood.batch": evaluators.find("likelihood").OPTIONS["batch"],
        **{f"sampling.{key}": evaluators.find("accuracy").OPTIONS[key] for key in SAMPLING},
        "sampling.samples": (integer(0, 10**4), "responses to each prompt; 0: none"),
    },
    "analyze": FINISHED | {"draws": (integer(1, 10**6), "bootstrap draws of runs, and of held-out examples")},
    "audit_traces": FINISHED
    | {
        "select": (
            choice("", "hardest", *COLUMNS, *(f"-{name}" for name in COLUMNS))._replace(
                says="empty, hardest, or a column of audit.parquet, with or without a leading -"
            ),
            "examples for selected.jsonl: hardest, a column's lowest or (with -) highest; empty: none",
        ),
        "share": (number(0, 1, above=True), "of the examples that is selected"),
        "rows": (text(), "JSON Lines of all examples in the order of their ids; empty: the texts in the runs' folders"),
    },
    "emergence": {
        "seed": (SEED, "of the posterior's chains and the bootstrap"),
        "table": (NEEDED, "file of rows {loss, amount, accuracy, ...}, .jsonl, .csv or .parquet"),
        "truth": (text(), "file of few-shot rows of stronger models, opened after the forecast; empty: none yet"),
        "form": FORM,
        "shots": (integer(1, 10**6), "examples in the prompt of the few-shot evaluation"),
        "draws": DRAWS,
    },
    "rungs": RUNGS,
    "ladder": RUNGS | LADDER,
    "checkpoint_rung": CHECKPOINT_RUNG,
    "checkpoint_ladder": CHECKPOINT_RUNG | LADDER,
    "grade": {
        "data.task": (choice(*GRADED), "whose rules grade the outputs, without a grader"),
        "data.grader": ROW["data.grader"],
        "data.path": (NEEDED, "file of rows {output, answer}, or of own rows with an output"),
        "check": (choice("", "math_verify"), "a second opinion; empty: none"),
        "deadline": (number(0.001, 86400), "seconds that the second opinion may take for a row"),
    },
}
SHARED: Table = {
    "experiment": (choice(*TABLES), "what is run"),
    "cache": (text(), "folder of base models, compiled programs and prepared data; empty: beside the workdir"),
}


# ---- The check -------------------------------------------------------------------------------------------------------


def check(config: ConfigDict) -> None:
    """Checks that a config has exactly the known keys, within their limits, and that they work together.

    Raises:
      UserError: names the first wrong key in full.
    """
    table = table_of(config)
    given = dict(leaves(config))
    given.pop("evals", None)  # there may be none
    for key, value in given.items():
        if key not in table:
            raise _unknown(key, value, table)
        limit, about = table[key]
        if not (limit is NEEDED and value == ""):  # told last, as it may be the mistake of a first command
            limit.check(key, value, about)
    for key, (limit, about) in table.items():
        if key in given and given[key] == "" and limit is NEEDED:
            raise UserError(f"{key} is empty: --config.{key} is missing ({about})")
        if key not in given and not (key.startswith("evals.") and key.split(".")[2] not in EVALUATOR):
            raise UserError(f"{key} is missing ({about})")
    together.check(config)
    for member in members_of(config).values() if "study" in config else ():
        try:
            settings = config_of(config, member)
            if (
                not member.needs
            ):  # what the others are given is checked with the rest of their settings, once it is there
                check(settings)
        except UserError as error:
            raise UserError(f"study.members, {member.name}: {error}") from error


def table_of(config: ConfigDict) -> Table:
    """The keys of a config: those of its experiment and of its evaluators.

    Raises:
      UserError: no config, an unknown experiment, or an entry of `evals` that is no evaluator or of an unknown type.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config must return a ConfigDict, not {type(config).__name__}")
    limit, about = SHARED["experiment"]
    limit.check("config.experiment", config.get("experiment"), about)
    table = SHARED | TABLES[config.experiment]
    if "train.batch" not in table:
        return table
    evals = config.get("evals")
    for name, options in evals.items() if isinstance(evals, ConfigDict) else [("", evals)]:
        if not isinstance(options, ConfigDict):
            raise UserError(f"evals{'.' * bool(name)}{name}={shown(options)}: must hold the options of an evaluator")
        NAME.check("evals", name, "evaluators by their names")
        limit, about = EVALUATOR["type"]
        limit.check(f"evals.{name}.type", options.get("type"), about)
        own = evaluators.find(options.type).OPTIONS
        table |= {f"evals.{name}.{key}": entry for key, entry in (EVALUATOR | own).items()}
    return table


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key by its full name, and its value; an empty group of keys counts as a value."""
    for key, value in config.items():
        if isinstance(value, ConfigDict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _unknown(key: str, value: Any, table: Table) -> UserError:
    if inner := [known.removeprefix(f"{key}.") for known in table if known.startswith(f"{key}.")]:
        return UserError(f"{key}={shown(value)}: must hold the settings {', '.join(inner)}")
    near = difflib.get_close_matches(key, table, n=1)
    return UserError(f"no key {key}" + (f"; did you mean {near[0]}?" if near else ""))
