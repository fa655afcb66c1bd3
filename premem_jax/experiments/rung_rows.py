"""The rows that a rung gives to the table of emergence, whoever pretrained it."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from etils.epath import Path

from premem_jax.analysis.trace import SplitTrace, Trace
from premem_jax.evaluators.base import Part
from premem_jax.running import processes, progress, sealed, workdir
from premem_jax.running.goodput import Goodput


def subsets(asked, available: int) -> dict[str, tuple[int, int]]:
    """(amount, subset) of each finetune of a rung, by its name; the full set has only one subset.

    `asked` has `amounts` and `subsets`.
    """
    return {
        f"{amount}-{k}": (amount, k)
        for amount in asked.amounts
        for k in range(asked.subsets if amount < available else 1)
    }


def drawn(seed: int, amount: int, k: int, available: int) -> np.ndarray:
    """Row numbers (amount,) of subset `k`; a function of its arguments, so all rungs are finetuned on the same."""
    return np.random.default_rng([seed, *b"subset", amount, k]).permutation(available)[:amount]


def looks(asked) -> list[int]:
    """The updates after which a finetune is evaluated: all of `asked.steps`, a half, a quarter, ..."""
    return sorted(asked.steps // 2**i for i in range(asked.looks))


def token_loss(parts: Iterable[Part]) -> float:
    """Nats per token of what a `Likelihood` measures."""
    columns = [part.columns for part in parts]
    nll, tokens = (np.concatenate([each[name] for each in columns]) for name in ("target_nll", "target_tokens"))
    return float(np.sum(nll.astype(float) * tokens) / np.sum(tokens))


def fewshot_row(trace: Trace) -> dict:
    """The row of a rung before any finetune."""
    return row_of(split_of(trace, "fewshot"), 0, 0, 0)


def finetuned_row(trace: Trace, amount: int, k: int) -> dict:
    """The row of a finetune at the evaluation that is best on `heldout`, the first of several."""
    best = int(np.argmax(split_of(trace, "heldout").accuracy.mean(axis=1)))
    return row_of(split_of(trace, "test"), best, amount, k)


def split_of(trace: Trace, name: str) -> SplitTrace:
    """The split that was made from the examples `name`; evaluators may add words, as in `test options`."""
    return trace.split(next(found for found in trace.splits if found.split()[0] == name))


def row_of(split: SplitTrace, at: int, amount: int, subset: int) -> dict:
    """A row of the table from one evaluation; the pass rate is that of samples at temperature 1.

    Without likelihoods there is neither pass rate nor log-probability.
    """
    accuracy = float(split.accuracy[at].mean())
    row = dict(amount=amount, subset=str(subset), accuracy=accuracy, items=len(split.example))
    log_p = -split.nll[at].astype(float) * split.tokens
    if np.isnan(log_p).any():
        return row
    return row | dict(gold_logprob=float(np.mean(log_p)), pass_rate=float(np.mean(np.exp(log_p))))


def kept(folder: Path, make: Callable[[], list[dict]], **about) -> list[dict]:
    """The rows of one rung, few-shot first: those of `folder/rows.json`, or made and written there.

    `about` is of the rung, and in every row.
    """
    rows = once_made(folder / "rows.json", lambda: [about | row for row in make()])
    few, *others = [row["accuracy"] for row in rows]
    best = f", finetuned up to {max(others):.3f}" if others else ""
    progress.say(f"{about['model']}: loss {about['loss']:.3f}, few-shot {few:.3f}{best}")
    return rows


def once_made(path: Path, make: Callable[[], list[dict]]) -> list[dict]:
    """Some rows, made unless the file `path` has them; checkpoints beside it, from which they come, are removed."""
    read = partial(sealed.unless_damaged, sealed.read_json, path, path.parent, "it is made again")
    found = processes.once(read) or {"rows": make()}
    processes.once(lambda: sealed.write_json(path, found))
    processes.once(lambda: forget(path.with_name("checkpoints")))
    return found["rows"]


def forget(folder: Path) -> None:
    """Removes a folder, where there is one."""
    if folder.exists():
        folder.rmtree()


def concluded(config, folder: Path, goodput: Goodput, rows: list[dict]) -> dict:
    """Writes and returns the summary of one or more rungs; what it says beside the rows is of the strongest one."""
    few = [row for row in rows if not row["amount"]]
    last = min(few, key=lambda row: row["loss"])
    finetuned = [row["accuracy"] for row in rows if row["amount"] and row["loss"] == last["loss"]]
    summary = {
        "experiment": config.experiment,
        "rungs": len(few),
        "loss": last["loss"],
        "fewshot_accuracy": last["accuracy"],
        "finetuned_accuracy": max(finetuned, default=None),
        "rows": rows,
        "forecast": config.forecast,
        **goodput.summary(),
        "workdir": str(folder),
        **workdir.facts(),
    }
    sealed.write_json(folder / "summary.json", summary)
    goodput.keep(finished=True)
    return summary
