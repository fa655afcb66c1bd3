"""Collect new training examples where the model is weak, retrain from the base model, and measure the savings.

Algorithm 1 of Kang et al. (arXiv 2411.07681): train on original and added examples, evaluate only the originals, add
new examples similar to those with a low value, repeat. Other strategies use other values. `iid` adds to all originals
equally; its curve over several numbers of examples is the baseline.

`members/NAME/` has the inputs of a member: `added.jsonl`, its training examples besides the originals, and
`selection.json`, the value, weight and number of new examples of each original.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache, partial

import numpy as np
from etils.epath import Path

from premem_jax import keys
from premem_jax.analysis import conclusion, curation, selection
from premem_jax.analysis.jobs import BASE, job_of
from premem_jax.analysis.selection import STRATEGIES, Seen
from premem_jax.analysis.texts import texts_of_run
from premem_jax.analysis.trace import Trace, read_trace
from premem_jax.data import added, collection
from premem_jax.data.examples import Example
from premem_jax.data.rewriting import Endpoint, Rewriter
from premem_jax.errors import UserError
from premem_jax.experiments import materials, studies
from premem_jax.experiments.analyze import without_nan
from premem_jax.members import Member, config_of, members_of
from premem_jax.running import progress, sealed, storage
from premem_jax.tasks import task as tasks

COLUMNS = dict(train_examples="d", estimate=".1%", test_accuracy=".1%")


def run(config, folder: Path) -> dict | None:
    """Makes or continues the members of `config.study`, then compares strategies at equal numbers of examples.

    Raises:
      UserError: as finetunes do; a strategy without its inputs; a source with too few examples.
    """
    keys.check(config)
    if config.study.pool:  # a mistake in it is told before members are trained
        collection.pool(config.study.pool, partial(tasks.answer_of_target, config.data.task))
    _check_strategies(config)
    give, end = partial(choose, config), lambda rows, failed: conclude(config, folder, rows)
    return studies.run(config, folder, columns=COLUMNS, give=give, conclude=end)


def choose(config, member: Member, earlier: Mapping[str, Path], files: Path) -> dict[str, str]:
    """Selects and writes the added examples of a member; returns the setting with their path."""
    job, [(name, run)] = job_of(member.name), earlier.items()
    before = files.parent / name / "added.jsonl"
    there = added.read(before) if before.exists() else []
    trace = read_trace(run / "trace")
    splits = _splits(_data(config, member))
    by_id = {example.id: example for example in splits["train"]}
    originals = [by_id[id] for id in trace.split("train").example]
    chosen = conclusion.conclude(trace, **config_of(config, member).threshold).threshold
    seen = _seen(config, job, trace, chosen and chosen.perplexity, originals, splits["test"])
    weights_E = STRATEGIES[job.strategy](seen)
    endpoint = Endpoint(config.study.url, config.study.model, Path(config.cache) / "replies", config.study.per_minute)
    source = _source(config, job, trace, run, endpoint)
    if config.study.pool:  # all members are given of one file
        digest = sealed.digest(storage.path(config.study.pool).read_bytes())
        materials.claim(files.parent.parent, {"pool (study.pool)": digest})
    collector = collection.Collector(source, splits["test"], [*splits["train"], *there])
    counts_E = selection.allocate(
        weights_E,
        seen.example,
        job.added - len(there),
        seed=job.seed,
        round=job.added,
        most_E=collector.most(originals),
    )
    new = collector.collect(originals, counts_E)
    added.write(files / "added.jsonl", [*there, *new.examples])
    record = {
        "strategy": job.strategy,
        "seed": job.seed,
        "from": name,
        "examples": seen.example.tolist(),
        "values": {name: values.tolist() for name, values in selection.values(seen).items()},
        "weights": weights_E.tolist(),
        "counts": counts_E.tolist(),
        "originals": new.originals,  # of each new example, in the order in which they stand at the end of the file
        "left_out": new.left_out,
        "spent": endpoint.spent,
        "types": Counter(by_id[id].metadata.get("type", "all") for id in new.originals),
    }
    sealed.write_json(files / "selection.json", without_nan(record))
    return {"data.added": str(files / "added.jsonl")}


def conclude(config, folder: Path, rows: Mapping[str, Mapping]) -> dict:
    """Writes findings over the seeds that have all members, costs, figure and page."""
    from premem_jax.report.curation_page import write_curation  # matplotlib

    found = curation.line_up({name: row["test_accuracy"] for name, row in rows.items()})
    originals = next(row["train_examples"] for name, row in rows.items() if job_of(name).strategy == BASE)
    points = curation.findings(found, originals, config.study.draws, config.seed) if found.seeds else []
    seconds = Counter()
    for name, row in rows.items():
        seconds[job_of(name)[:2]] += row["seconds_total"]
    for point in points:
        point["seconds"] = seconds[point["strategy"], point["added"]]
    read = lambda name: sealed.unless_damaged(sealed.read_json, _record(folder, name), folder, "the page is without it")
    selections = {name: read(name) for name in rows if job_of(name).added}
    selections = {name: chosen for name, chosen in selections.items() if chosen is not None}
    base = float(np.mean(found.base)) if found.seeds else None
    curve = curation.iid_curve(found, originals, np.arange(len(found.seeds))) if found.seeds else ([], [])
    result = {"seeds": found.seeds, "base_accuracy": base, "originals": originals, "points": points}
    result["iid_curve"] = [np.asarray(part).tolist() for part in curve]  # examples, and accuracies that do not fall
    result = without_nan(result) | {"types": {name: selection["types"] for name, selection in selections.items()}}
    page = write_curation(folder, result, _shown(config, folder, selections))
    progress.say(f"Look at {page}")
    return result | {"report": str(page)}


def _seen(
    config, job, trace: Trace, perplexity: float | np.ndarray | None, originals: list[Example], test: list[Example]
) -> Seen:
    return Seen(
        trace,
        perplexity,
        share=config.study.share,
        below=config.study.below or None,
        seed=job.seed,
        round=job.added,
        difficulty=_difficulties(originals),
        kinds=_kinds(originals),
        error=_errors(trace, test),
    )


def _check_strategies(config) -> None:
    """Raises UserError for a strategy whose inputs the task's examples do not have."""
    members = members_of(config)
    strategies = {job_of(name).strategy for name in members}
    originals = _splits(_data(config, next(iter(members.values()))))["train"]
    for strategy, what, values in ("difficulty", "difficulty", _difficulties), ("oracle", "type", _kinds):
        if strategy in strategies and values(originals) is None:
            raise UserError(f"strategy {strategy!r}: not all training examples of {config.data.task} have a {what}")


def _difficulties(originals: list[Example]) -> np.ndarray | None:
    """(E,) as the task says, higher is harder; None unless all have one."""
    hard = [example.metadata.get("difficulty") or example.metadata.get("level") for example in originals]
    return None if None in hard else np.array([_level(value) for value in hard])


def _kinds(originals: list[Example]) -> np.ndarray | None:
    """(E,) the types of the examples; None unless all have one."""
    kinds = [example.metadata.get("type") for example in originals]
    return None if None in kinds else np.array(kinds)


def _level(text: str) -> float:
    """The number in a level; NaN where it has none, as in a few rows of MATH."""
    digits = "".join(c for c in text if c.isdigit())
    return float(digits) if digits else np.nan


def _errors(trace: Trace, test: list[Example]) -> dict[str, float]:
    """The share of wrong samples of each type at the last evaluation."""
    split, wrong = trace.split("test"), {}
    of = {example.id: example.metadata.get("type") for example in test}
    for id, accuracy in zip(split.example, split.accuracy[-1], strict=True):
        if of[id] is not None:
            wrong.setdefault(of[id], []).append(1 - accuracy)
    return {kind: float(np.mean(values)) for kind, values in wrong.items()}


def _source(config, job, trace: Trace, run: Path, endpoint: Endpoint) -> collection.Source:
    study, task = config.study, config.data.task
    if study.source == "generator":
        return collection.generated(tasks.find(task).variants, job.seed)
    if study.source == "file":
        return collection.pool(study.pool, partial(tasks.answer_of_target, task))
    if study.source == "endpoint":
        return collection.rewritten(Rewriter(endpoint, tasks.find(task).final_answer))
    return collection.own_samples(texts_of_run(run, trace))


def _data(config, member: Member) -> tuple:
    data = config_of(config, member).data
    return tuple((key, data[key]) for key in ("task", "path", "train", "heldout", "test", "seed")), config.cache


@cache
def _splits(data: tuple) -> dict[str, list[Example]]:
    settings, cache = data
    settings = dict(settings)
    return tasks.load(settings.pop("task"), **settings, cache=cache).splits


def _record(folder: Path, name: str) -> Path:
    return folder / "members" / name / "selection.json"


def _shown(config, folder: Path, selections: Mapping[str, Mapping], most: int = 3) -> dict[str, list[tuple[str, str]]]:
    """For each strategy, a few originals and the examples added for them, from its first member."""
    shown: dict[str, list] = {}
    members = members_of(config)
    for name, chosen in selections.items():
        if (strategy := job_of(name).strategy) in shown:
            continue
        prompts = {example.id: example.prompt for example in _splits(_data(config, members[name]))["train"]}
        path = folder / "members" / name / "added.jsonl"
        if (new := sealed.unless_damaged(added.read, path, folder, "the page is without it")) is None:
            continue
        new = new[-len(chosen["originals"]) :]
        pairs = list(zip(chosen["originals"], new, strict=True))[:: max(1, len(new) // most)]
        shown[strategy] = [(prompts[id], f"{example.prompt}{example.target}") for id, example in pairs[:most]]
    return shown
