"""Rules between settings, as far as the config alone decides."""

import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from premem_jax.analysis import jobs
from premem_jax.data.examples import FIELD
from premem_jax.errors import UserError
from premem_jax.evaluators import find
from premem_jax.grading import named
from premem_jax.members import chosen, members_of
from premem_jax.running import topology as topologies
from premem_jax.tasks import task as tasks
from premem_jax.training import trackers

MIN_HELDOUT = 50  # examples of which a quantile is taken
OTHERWISE = "give threshold.rule=given and threshold.perplexity, or do without the metric: threshold.rule=none"


def check(config: ConfigDict) -> None:
    """Raises UserError if settings cannot work together, though each is within its limits; names one of them."""
    if "study" in config:
        chosen(members_of(config), config.study.member)
    for rule in RULES.get(config.experiment, ()):
        rule(config)


def batches(sizes: Mapping[str, float], parts: int) -> None:
    """Raises UserError if a batch does not divide over the `parts` of the mesh."""
    for name, size in sizes.items():
        if size % parts:
            raise UserError(f"{name} = {size:g} does not divide over the {parts} parts of the mesh (data x fsdp)")


def on_mesh(config, parts: int, decode_parts: int) -> None:
    """Raises UserError if a batch of a finetune does not divide over the mesh for training or sampling."""
    train, base = config.train, config.base
    batches({"train.batch / train.micro_batches": train.batch / train.micro_batches}, parts)
    if base.steps:
        batches({"base.batch": base.batch}, parts)
    if (own := config.get("on_policy")) and own.every:
        batches({"on_policy.batch": own.batch}, decode_parts)
    for name, options in config.evals.items():
        evaluator = find(options.type)
        size = evaluator.batch_at_a_time(options)
        if size is not None:
            batches({f"evals.{name}.batch": size}, {"train": parts, "decode": decode_parts}[evaluator.layout])


def endless(config) -> None:
    for split in ("train", "test") if tasks.find(config.data.task).SIZES is None else ():
        if not config.data[split]:
            raise UserError(f"data.{split}=0: the task {config.data.task!r} has no end, say how many examples")


def on_policy(config) -> None:
    own = config.data.task == "preferences" and not config.data.grader
    if config.on_policy.every and (own or config.data.grader == "none"):
        raise UserError(
            f"on_policy.every={config.on_policy.every}: sampled responses have to be right or wrong, and nothing here "
            "grades them; give data.grader, or another data.task"
        )


def ungraded(config) -> None:
    if config.data.grader:
        named.find(config.data.grader)
    for name, options in config.evals.items() if config.data.grader == "none" else ():
        if "samples" in find(options.type).columns:
            raise UserError(f"evals.{name}: data.grader='none' grades no responses; leave this evaluator out")


def tracked(config) -> None:
    trackers.check(config.trackers)


def templates(config) -> None:
    given = {key: config.data[key] for key in ("prompt", "target")}
    for key, template in given.items():
        if any(given.values()) and not FIELD.search(template):
            raise UserError(
                f"data.{key}={template!r}: the templates of prompt and target go together, and each names a field of "
                "the rows, such as {question}"
            )


def mesh(config) -> None:
    asked = {axis: config.mesh[axis] for axis in ("data", "fsdp", "tensor")}
    if list(asked.values()).count(-1) > 1:
        raise UserError(f"mesh {asked}: sizes are positive, and at most one may be -1 (the rest)")


def buckets(config) -> None:
    longest = max(config.data.buckets, default=0)
    if longest > config.data.context:
        raise UserError(
            f"data.buckets={config.data.buckets}: the last one is longer than data.context={config.data.context}, the "
            "longest example; raise that, or leave the bucket out"
        )


def groups(config) -> dict:
    """The settings of training and of each evaluator, by their prefix."""
    return {"train": config.train} | {f"evals.{name}": options for name, options in config.evals.items()}


def packed(config) -> None:
    for name, options in groups(config).items():
        sizes, pairs = options.get("packed_tokens", ()), name == "train" and "preference" in config
        if max(sizes, default=0) > (longest := config.data.context) * (2 if pairs else 1):
            raise UserError(
                f"{name}.packed_tokens={sizes}: these are tokens for each example, and none has more than "
                f"{'2 responses of ' if pairs else ''}data.context={longest}; give the mean, and a few sizes above it"
            )


def micro_batches(config) -> None:
    for name, options in groups(config).items():
        if options.get("batch", 0) % (parts := options.get("micro_batches", 1)):
            raise UserError(f"{name}.micro_batches={parts} does not divide {name}.batch={options.batch}")


def base(config) -> None:
    if config.base.steps and config.model.path:
        raise UserError(
            f"base.steps={config.base.steps}: the weights of model.path are the base model; set base.steps=0"
        )


def lora(config) -> None:
    asked = list(config.lora.targets)
    if config.lora.rank and len(set(asked)) != max(len(asked), 1):
        raise UserError(f"lora.targets={tuple(asked)}: name each matrix once, and at least one")


def heldout(config) -> None:
    for name, options in config.evals.items():
        if options.split == "heldout" and not config.data.heldout:
            raise UserError(f"evals.{name}.split='heldout': data.heldout=0 keeps no examples aside")


def measured(config) -> set[tuple[str, str]]:
    """(column, split) of all that is measured on the task's own prompts and targets."""
    other = "opening", "reworded", "alone", "response"
    evals = [e for e in config.evals.values() if not any(e.get(key) for key in other)]
    return {(column, options.split) for options in evals for column in find(options.type).columns}


def quantile_wanted(config) -> bool:
    """Whether the run has the metric, with a threshold of its own.

    The metric needs likelihood and samples of `train`; a run without these needs no threshold.
    """
    needed = {("target_nll", "train"), ("samples", "train")}
    return config.threshold.rule == "heldout_quantile" and needed <= measured(config)


def threshold(config) -> None:
    perplexity(config)
    if not quantile_wanted(config):
        return
    split = config.threshold.split
    scored = {split for column, split in measured(config) if column == "target_nll"}
    if split not in scored:
        raise UserError(
            f"threshold.split={split!r} has no likelihood evaluator with alone=False (there are: "
            f"{', '.join(sorted(scored))}); add one, {OTHERWISE}"
        )
    if 0 < config.data[split] < MIN_HELDOUT:
        raise UserError(few(split, config.data[split]))


def few(split: str, examples: int) -> str:
    """The message for a split with too few examples for a quantile."""
    return (
        f"threshold.rule='heldout_quantile' needs at least {MIN_HELDOUT} examples in {split!r}, and there are "
        f"{examples}; raise data.{split}, {OTHERWISE}"
    )


def skipping(config) -> None:
    for name, options in config.evals.items():
        if not options.get("skip_settled"):
            continue
        if options.get("opening") or options.get("reworded"):
            raise UserError(
                f"evals.{name}: skip_settled is for the metric, and with an opening or reworded nothing is in it"
            )
        if config.threshold.rule == "none" or options.split != "train":
            raise UserError(
                f"evals.{name}.skip_settled: samples are skipped on the split 'train' alone, and with a threshold; "
                "set threshold.rule"
            )


def collecting(config) -> None:
    """Members are named after their jobs, and each collects on what one earlier member of its seed shows."""
    for member in members_of(config).values():
        job = jobs.job_of(member.name)
        if job is None or job.strategy not in (jobs.BASE, *jobs.STRATEGIES):
            raise UserError(
                f"study.members: {member.name!r} is no job; jobs are called base-seed0 or STRATEGY+EXAMPLES-seed0, and "
                f"strategies are {', '.join(jobs.STRATEGIES)}"
            )
        before = [jobs.job_of(need) for need in member.needs]
        if job.added and [one.seed for one in before if one.added < job.added] != [job.seed]:
            raise UserError(f"study.members: {member.name} needs one member of its seed, with fewer examples")
    scored_alone = any(e.get("alone") and e.split == "train" for e in config.evals.values())
    if not scored_alone and any(jobs.job_of(name).strategy == "ifd" for name in members_of(config)):
        raise UserError("strategy 'ifd' needs a likelihood evaluator of the split 'train' with alone=True")
    study = config.study
    if (study.source == "file") != bool(study.pool):
        raise UserError(f"study.pool={study.pool!r}: a file goes with study.source=file, and with no other source")
    if (study.source == "endpoint") != bool(study.url) or bool(study.url) != bool(study.model):
        raise UserError(
            f"study.url={study.url!r}, study.model={study.model!r}: both go with study.source=endpoint alone"
        )
    if study.url and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", study.url):
        raise UserError(
            f"study.url={study.url!r}: the address of an endpoint begins with http:// or https:// and a host"
        )
    if study.source == "endpoint" and config.data.task not in ("gsm8k", "math"):
        raise UserError(f"study.source='endpoint': the task {config.data.task!r} has a generator; that is the source")
    if study.source == "generator" and not hasattr(tasks.find(config.data.task), "variants"):
        raise UserError(
            f"study.source='generator': the task {config.data.task!r} makes no new problems; choose another source"
        )


def grading(config) -> None:
    asked = {key: config.data[key] for key in ("task", "grader") if config.data[key]}
    if len(asked) == 2:
        raise UserError(f"data.task={asked['task']!r} and data.grader={asked['grader']!r} both grade; give one of them")
    for key, value in asked.items():
        if not config.sampling.samples:
            raise UserError(
                f"data.{key}={value!r} grades responses, and sampling.samples=0 asks for none; try :samples=5"
            )
    if config.data.grader:
        named.find(config.data.grader)


def perplexity(config) -> None:
    if config.threshold.rule == "given" and config.threshold.perplexity <= 1:
        raise UserError(f"threshold.perplexity={config.threshold.perplexity}: a perplexity is above 1")


def topology(config) -> None:
    topologies.topology(config.plan.topology, config.plan.slices)


def ladder(config) -> None:
    world, asked, amounts = config.world, config.evaluation, config.finetune.amounts
    if config.pretrain.first > config.pretrain.steps:
        raise UserError(f"pretrain.first={config.pretrain.first}: after the last update, {config.pretrain.steps}")
    if config.model.width % 8:
        raise UserError(f"model.width={config.model.width}: must be a multiple of 8")
    even, odd = (part * world.relations for part in ((world.entities + 1) // 2, world.entities // 2))
    if max(amounts, default=0) > even or asked.shots > even:
        raise UserError(f"finetune.amounts={amounts}, evaluation.shots={asked.shots}: there are {even} examples")
    if asked.dev + asked.questions > odd:
        raise UserError(
            f"evaluation.dev={asked.dev}, evaluation.questions={asked.questions}: there are {odd} questions"
        )
    if len(config.planted) not in (0, 5) or (config.planted and config.planted[2] <= 0):
        raise UserError(f"planted={config.planted}: five numbers, of which alpha is above 0, or none")


def rung(config) -> None:
    asked, shots = config.finetune, config.evaluation.shots
    if asked.steps < 2 ** (asked.looks - 1):
        raise UserError(f"finetune.looks={asked.looks}: too many for {asked.steps} steps")
    if any(amount <= shots for amount in asked.amounts):
        raise UserError(f"finetune.amounts={asked.amounts}: each must be more than evaluation.shots={shots}")


def checkpoint(config) -> None:
    if not config.model.path:
        raise UserError("model.path is empty: give the Hugging Face folder of the checkpoint")
    kinds = [find(options.type) for options in config.evals.values()]
    if len(kinds) != 1 or "samples" not in kinds[0].columns:
        raise UserError("evals: one evaluator that says what is right, such as option_likelihood or exact_match")
    if not config.data.heldout:
        raise UserError("data.heldout=0: held-out questions choose when a finetune ends; keep some")
    if bool(config.rung.loss) == bool(config.rung.texts):
        raise UserError(
            f"rung.loss={config.rung.loss:g}, rung.texts={config.rung.texts!r}: give the loss or a text to measure it"
        )


def one_text(config) -> None:
    texts = {member.changes.get("rung.texts", config.rung.texts) for member in members_of(config).values()}
    if len(texts) > 1:
        raise UserError(f"rung.texts: losses are of one text, not of {len(texts)}: {', '.join(sorted(texts))}")


def mixed(config) -> None:
    mixes, members = config.study.mixes, members_of(config)
    if not mixes:
        return
    told = {name: name.partition(".")[0] for name in members}
    if odd := [name for name, mix in told.items() if mix not in mixes]:
        raise UserError(f"study.mixes={mixes}: {odd[0]} is of none of them; members are called MIX.NAME")
    if len(mixes) < 2 or len(set(mixes)) < len(mixes):
        raise UserError(f"study.mixes={mixes}: name two or more, each once")
    for mix in mixes:
        if not [name for name, one in told.items() if one == mix and not members[name].needs]:
            raise UserError(f"study.mixes: {mix} has no model from which a forecast is made")
    worlds = [
        {key: value for key, value in one.changes.items() if key.startswith("world.") and key != "world.asked"}
        for one in members.values()
    ]
    if any(world != worlds[0] for world in worlds):
        raise UserError("study.mixes: mixes differ in world.asked alone, so that their held-out texts are the same")


def predicted(config) -> None:
    every = members_of(config).values()
    weak = [member.name for member in every if not member.needs]
    if wrong := [member.name for member in every if member.needs and set(member.needs) != set(weak)]:
        raise UserError(f"study.members: {wrong[0]} is predicted, so it needs all that are not: {weak}")


FINETUNE = (endless, ungraded, templates, tracked, mesh, buckets, packed, micro_batches)
FINETUNE += (base, lora, heldout, skipping, threshold)
RULES = {  # of a study's members: those of the experiment that makes each
    "finetune": FINETUNE,
    "curate": (collecting,),
    "preference": (*FINETUNE, on_policy),
    "plan": (mesh, buckets, packed, micro_batches, lora, topology),
    "plan_preference": (mesh, buckets, packed, micro_batches, lora, on_policy, topology),
    "evaluate": (mesh, buckets, templates, grading),
    "analyze": (perplexity,),
    "audit_traces": (perplexity,),
    "rungs": (mesh, ladder, rung),
    "ladder": (predicted, mixed),
    "checkpoint_rung": (*FINETUNE, rung, checkpoint),
    "checkpoint_ladder": (predicted, mixed, one_text),
}
