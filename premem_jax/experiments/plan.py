"""Plan a finetune for absent TPUs or GPUs: compile its programs for a topology, and report memory and cost."""

import jax
from etils.epath import Path
from ml_collections import ConfigDict

from premem_jax import keys
from premem_jax.models import costs
from premem_jax.planning import search
from premem_jax.planning.lowered import evaluators_of, names_of
from premem_jax.planning.worker import compile_apart
from premem_jax.running import progress, sealed, workdir
from premem_jax.running.lease import opened
from premem_jax.running.topology import Topology, topology
from premem_jax.tasks import task as tasks

GIB = 2**30


def run(config, folder: Path) -> dict:
    """Compiles the programs of `config` for `config.plan.topology`; writes and returns the summary.

    Each result is kept in `folder`, so a killed plan continues.

    Raises:
      UserError: an unknown topology, a mesh that does not fit it, or no compiler.
    """
    keys.check(config)
    jax.config.update("jax_platforms", "cpu")  # plugins would look for chips here, and the compiler is another process
    place = topology(config.plan.topology, config.plan.slices)
    with opened(folder, config.to_dict()):
        return planned(config, folder, place)


def planned(config, folder: Path, place: Topology) -> dict:
    """The compiled programs, and their total cost."""
    progress.say(f"{config.model.preset} on {place}: {place.chips} x {place.chip.hbm} GiB")
    programs, nearest = {}, {}
    names = names_of(config)
    with progress.bar(len(names), "compiling", "program") as bar:
        for name in names:
            programs[name] = result = _compile(config, folder, place, name, {})
            if not result["fits"] and config.plan.search:
                path = search.smaller(config, name, result["parts"])
                found = search.first_that_fits(path, lambda change, n=name: _compile(config, folder, place, n, change))
                nearest[name] = found and {"change": found[0], "peak_hbm_bytes_per_chip": _peak(found[1])}
            bar.update()
            progress.say(_line(name, result, place, nearest.get(name, {})))
    fits = all(result["fits"] for result in programs.values())
    summary = {
        "experiment": "plan",
        "model": config.model.preset,
        "task": config.data.task,
        "topology": str(place),
        "chips": place.chips,
        "hbm_bytes_per_chip": int(place.chip.hbm * GIB),
        "fits": fits,
        "programs": programs,
        "nearest": nearest,
        **_price(config, place, programs),
        **workdir.facts(),
    }
    sealed.write_json(folder / "summary.json", summary)
    progress.say(_verdict(summary))
    return summary


def _compile(config, folder: Path, place: Topology, name: str, change: dict) -> dict:
    """The result of one program with some settings changed; read from `folder` if it exists."""
    path = folder / "programs" / f"{'-'.join([name, *(f'{k}={v}' for k, v in change.items())])}.json"
    if there := sealed.unless_damaged(sealed.read_json, path, folder, "it is compiled again"):
        return there
    changed = ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(change)
    found = compile_apart(changed, name)
    cost = costs.Cost(**found.pop("cost"))
    found |= {"model_flops": cost.flops, "collective_bytes_per_chip": cost.ici_bytes + cost.dcn_bytes}
    found["roofline_seconds"] = cost.seconds(place)
    found["batch_seconds"] = {k: costs.Cost(**c).seconds(place) for k, c in found.pop("batch_costs").items()}
    found["fits"] = found["compiles"] and _peak(found) <= place.chip.hbm * GIB
    sealed.write_json(path, found)
    return found


def _peak(result: dict) -> int:
    """Bytes per chip while the program runs, with the arrays beside it."""
    return result["peak_hbm_bytes_per_chip"] + result["resident_bytes_per_chip"]


def _price(config, place: Topology, programs: dict) -> dict:
    """Calls of each program in the whole run, and chip-hours by the roofline, every batch at the planned length."""
    there = dict(zip(("train", "test"), tasks.find(config.data.task).SIZES or (0, 0), strict=True))
    examples = {split: config.data[split] or there.get(split, 0) for split in keys.SPLITS}
    per_epoch = -(-examples["train"] // config.train.batch)
    calls = {"train": config.train.epochs * per_epoch}
    if "preference" in config:
        updates = (config.sft.epochs + config.train.epochs) * per_epoch  # of sft, as if they had both responses
        splits = updates // config.influence.every if config.influence.every else 0
        types = sum(e.type == "probe" for e in config.evals.values())
        calls = {"train": updates, "reference": per_epoch, "sources": splits, "probe": splits * types}
        calls = {name: calls[name] for name in calls if name in programs}
    seconds = {name: calls[name] * programs[name]["roofline_seconds"] for name in calls}
    for name in evaluators_of(config):
        each = programs[name]["batch_seconds"]  # of the evaluators that run it
        batches = {key: _batches(config.evals[key], examples) for key in each}
        calls[name], seconds[name] = sum(batches.values()), sum(batches[key] * each[key] for key in each)
    hours = {name: value * place.chips / 3600 for name, value in seconds.items()}
    return {"calls": calls, "chip_hours_at_roofline": hours, "chip_hours_total": sum(hours.values())}


def _batches(options, examples: dict[str, int]) -> int:
    """Batches of an evaluator in the whole run."""
    return len(options.epochs) * -(-examples[options.split] // options.batch)


def _line(name: str, result: dict, place: Topology, nearest: dict | None) -> str:
    """The plan's output line for one program."""
    if not result["compiles"]:
        text = f"{name:>6}: does not fit ({result['message']})"
    else:
        peak, left = _peak(result) / GIB, place.chip.hbm - _peak(result) / GIB
        rows = f", {result['rows'][0]} rows of {result['rows'][1]} tokens" if "rows" in result else ""
        text = (
            f"{name:>6}: {'fits' if result['fits'] else 'does not fit'}{rows}, peak {peak:.2f} GiB per chip "
            f"({result['argument_bytes_per_chip'] / GIB:.2f} arguments, {result['resident_bytes_per_chip'] / GIB:.2f} "
            f"beside it), {left:.2f} left; {result['model_flops']:.2e} FLOPs, "
            f"{result['collective_bytes_per_chip'] / GIB:.1f} GiB of collectives per chip, at best "
            f"{result['roofline_seconds']:.2f} s; compiled in {result['compile_seconds']:.0f} s"
        )
    if nearest:
        flags = " ".join(f"--config.{key}={value}" for key, value in nearest["change"].items())
        text += f"\n        fits with {flags} (peak {nearest['peak_hbm_bytes_per_chip'] / GIB:.2f} GiB)"
    elif nearest is None:
        text += "\n        no smaller batch or layout fits: take more chips"
    return text


def _verdict(summary: dict) -> str:
    hours = summary["chip_hours_at_roofline"]
    parts = ", ".join(f"{name} {value:.1f}" for name, value in hours.items())
    price = f"The run takes at least {summary['chip_hours_total']:.1f} chip-hours ({parts})."
    return ("Everything fits. " if summary["fits"] else "It does not fit. ") + price
