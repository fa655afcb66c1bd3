"""The runs that Kang et al. (arXiv 2411.07681) published, in their layout or with each run packed into one npz.

A run is a folder `RUN/checkpoint-STEP/*.npy`, or `RUN.npz` with the same arrays under `checkpoint-STEP__NAME`:

  train_perplexities             (E,) exp of the mean target NLL, of every training question
  train_num_tokens               (E,) target tokens; missing in some runs
  {split}_answer_types{N}_seed*  (E, N) verdicts: 0 correct, 1 wrong, 2 no answer found
  subsample_idxs                 at the top: which questions a half or quarter run was trained on

Comments explain the peculiarities of the files; the notes of a run list the choices made.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from etils.epath import Path

from premem_jax.analysis.readers import npz
from premem_jax.analysis.runs import Run
from premem_jax.analysis.trace import SplitTrace, Trace
from premem_jax.errors import UserError
from premem_jax.running import storage

# The authors' threshold for their Llama3 8B runs: ln of the mean NLL.
PUBLISHED = {"gsm8k": -2.3, "math": -1.7}
SAMPLES = ("fewest", "most")
SUBSETS = ("repaired", "file")
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,12})/(.+)")
_NAME = re.compile(r"([A-Za-z0-9]+)_.*?([0-9]{1,6})epochs_(full|half|quarter)")
_CLEAR = 6.0  # standard deviations from chance that count as no accident

Arrays = Mapping[str, Callable[[], np.ndarray]]  # "checkpoint-STEP/NAME" or "NAME" to what loads it


def find(path: Path) -> list[Path]:
    """The folders and the packed files of runs at or below `path`."""
    if path.is_file():
        return [path] if is_packed(path) else []
    files = storage.files(path)
    folders = {file.parent.parent for file in files if file.match("checkpoint-*/*.npy")}
    return sorted(folders | {file for file in files if is_packed(file)})


def is_packed(path: Path) -> bool:
    """Whether `path` is an npz file with arrays named `checkpoint-STEP__NAME`."""
    if path.suffix != ".npz":
        return False
    try:
        return any(_CHECKPOINT.fullmatch(name.replace("__", "/", 1)) for name in npz.names(path))
    except UserError:
        return False


def read(
    places: list[Path], train_samples: str = "fewest", test_samples: str = "most", subset: str = "repaired"
) -> list[Run]:
    """Reads each run.

    Args:
      places: what `find` returned.
      train_samples: `fewest` or `most`: the file to take if a checkpoint has several numbers of samples (5, 10, 50).
      test_samples: likewise. The published R² of GSM8K, 0.9354, takes most; fewest gives 0.9349.
      subset: the training examples of a half or quarter run whose published index is no better than chance:
        `repaired` takes the same number of examples with the lowest final NLL; `file` keeps the index.

    Raises:
      UserError: an unknown choice, or files that are missing, damaged or do not fit together.
    """
    for key, value, allowed in (
        ("train_samples", train_samples, SAMPLES),
        ("test_samples", test_samples, SAMPLES),
        ("subset", subset, SUBSETS),
    ):
        if value not in allowed:
            raise UserError(f"release.{key}={value!r}: choose {' or '.join(allowed)}.")
    return [_read(place, train_samples, test_samples, subset) for place in places]


def _read(place: Path, train_samples: str, test_samples: str, subset: str) -> Run:
    arrays = _packed(place) if place.is_file() else _unpacked(place)
    steps = sorted({int(match[1]) for key in arrays if (match := _CHECKPOINT.fullmatch(key))})
    nll = np.log(np.stack(_same(place, [_perplexity(place, arrays, step) for step in steps])))
    notes: list[str] = []
    train = _all_verdicts(place, arrays, steps, "train", train_samples, notes)
    test = _all_verdicts(place, arrays, steps, "test", test_samples, notes)
    if len(train[0]) != nll.shape[1]:
        raise UserError(f"{place}: perplexities of {nll.shape[1]} examples, but verdicts on {len(train[0])}.")
    _note_sorted_samples(train, notes)
    name = place.stem if place.is_file() else place.name
    trained = _trained(place, name, arrays, nll, subset, notes)
    tokens_key = f"checkpoint-{steps[0]}/train_num_tokens"
    tokens = arrays[tokens_key]() if tokens_key in arrays else np.zeros(nll.shape[1], int)
    if tokens.dtype.kind not in "iu" or tokens.shape != nll.shape[1:]:
        raise UserError(f"{place}: {tokens_key} should hold one whole number per training example.")
    everything = _split(train, nll, tokens)
    splits = {"train": _rows(everything, trained), "test": _split(test, np.full((len(steps), len(test[0])), np.nan))}
    if not trained.all():
        splits["heldout"] = _rows(everything, ~trained)
    match = _NAME.match(name)
    task = match[1].lower() if match else name.split("_")[0]
    epochs = np.array(steps) / max(steps[-1], 1) * (int(match[2]) if match else len(steps))
    return Run(
        name,
        task,
        Trace(np.array(steps), epochs, splits),
        np.array([np.mean(verdicts == 0) for verdicts in test]),
        published=math.exp(math.exp(PUBLISHED[task])) if task in PUBLISHED else None,
        one_data_set=True,
        notes=tuple(notes),
    )


def _packed(path: Path) -> Arrays:
    return {name.replace("__", "/", 1): partial(npz.array, path, name) for name in npz.checked(path)}


def _unpacked(folder: Path) -> Arrays:
    names = [file.relative_to(folder).as_posix() for file in storage.files(folder)]
    return {
        name.removesuffix(".npy"): partial(npz.npy, folder / name)
        for name in names
        if re.fullmatch(r"(checkpoint-[^/]*/)?[^/]*\.npy", name)
    }


def _perplexity(place: Path, arrays: Arrays, step: int) -> np.ndarray:
    key = f"checkpoint-{step}/train_perplexities"
    if key not in arrays:
        raise UserError(f"{place}: no {key}.npy; each checkpoint of the published layout has one. Fetch it again.")
    perplexity = arrays[key]()
    if perplexity.dtype.kind != "f" or perplexity.ndim != 1 or not perplexity.size:
        raise UserError(f"{place}: {key} should hold one number per training example.")
    if not np.all((perplexity >= 1) & np.isfinite(perplexity)):
        raise UserError(f"{place}: {key} should hold one finite perplexity, at least 1, per training example.")
    return perplexity


def _all_verdicts(place: Path, arrays: Arrays, steps: list[int], split: str, prefer: str, notes: list[str]) -> list:
    """One (E, N) array per checkpoint; `prefer` chooses among several numbers of samples."""
    names = re.compile(rf"checkpoint-([0-9]{{1,12}})/{split}_answer_types([0-9]{{1,6}})(_seed\d+)?(_temp[\d.]+)?")
    found: dict[int, list] = {step: [] for step in steps}
    for match in filter(None, map(names.fullmatch, sorted(arrays))):
        found[int(match[1])].append((int(match[2]), match[0]))
    out, chosen = [], set()
    for step, files in found.items():
        if not files:
            raise UserError(f"{place}: checkpoint-{step} has no {split}_answer_types*.npy. Fetch it again.")
        count, key = min(files) if prefer == "fewest" else max(files)
        verdicts = arrays[key]()
        fits = verdicts.dtype.kind in "iu" and verdicts.ndim == 2 and verdicts.shape[1] == count > 0
        if not fits or not len(verdicts) or not np.isin(verdicts, (0, 1, 2)).all():
            raise UserError(f"{place}: {key} should hold {count} verdicts 0, 1 or 2 per question.")
        out.append(verdicts)
        if len(files) > 1:
            chosen.add(count)
    if chosen:
        counts = ", ".join(map(str, sorted(chosen)))
        notes.append(f"several {split} verdict files per checkpoint: the one with {counts} samples is used")
    return _same(place, out)


def _same(place: Path, arrays: list[np.ndarray]) -> list[np.ndarray]:
    if len({len(array) for array in arrays}) > 1:
        raise UserError(f"{place}: the checkpoints have different numbers of examples, so they are of different runs.")
    return arrays


def _note_sorted_samples(verdicts: list[np.ndarray], notes: list[str]) -> None:
    """Notes samples sorted by likelihood, as the authors' sampler returned them: the first k are not a random k."""
    correct = np.concatenate([v[:, [0, -1]] == 0 for v in verdicts])
    mean = correct.mean()
    error = math.sqrt(2 * mean * (1 - mean) / len(correct))
    if abs(np.diff(correct.mean(axis=0))[0]) > _CLEAR * error:
        notes.append("the samples of a question are sorted, not in the order drawn: all of them are used")


def _trained(place: Path, name: str, arrays: Arrays, nll: np.ndarray, subset: str, notes: list[str]) -> np.ndarray:
    """(E,) bool: the training examples of the run.

    The index of a full run is a permutation, its data order. The index of the published half run of MATH is not its
    training set: examples inside and outside of it end with the same NLL.
    """
    examples = nll.shape[1]
    trained = np.ones(examples, bool)
    match = _NAME.match(name)
    if "subsample_idxs" not in arrays:
        if match and match[3] != "full":
            raise UserError(f"{place}: a {match[3]} run needs subsample_idxs.npy, which says what it was trained on.")
        return trained
    index = arrays["subsample_idxs"]()
    whole = index.dtype.kind in "iu" and index.ndim == 1 and len(index) == len(np.unique(index)) > 0
    if not whole or not np.all((index >= 0) & (index < examples)):
        raise UserError(f"{place}: subsample_idxs should name different examples between 0 and {examples - 1}.")
    if len(index) == examples:
        return trained
    trained[:] = False
    trained[index] = True
    count = len(index)
    lowest = np.zeros(examples, bool)
    lowest[np.argsort(nll[-1], kind="stable")[:count]] = True
    share = count / examples
    overlap, chance = np.sum(trained & lowest), count * share
    deviation = math.sqrt(chance * (1 - share) * (examples - count) / (examples - 1))  # hypergeometric
    if overlap > chance + _CLEAR * deviation:
        return trained
    text = f"subsample_idxs holds {overlap} of the {count} examples with the lowest NLL, no more than chance"
    if subset == "repaired":
        notes.append(f"{text}: those {count} are taken as the training set")
        return lowest
    notes.append(f"{text}: it is used as it stands")
    return trained


def _split(verdicts: list[np.ndarray], nll: np.ndarray, tokens: np.ndarray | None = None) -> SplitTrace:
    samples = np.array([np.full(len(v), v.shape[1]) for v in verdicts])
    counts = [np.array([(v == code).sum(axis=1) for v in verdicts]) for code in (0, 2)]
    examples = nll.shape[1]
    tokens = np.zeros(examples, np.int64) if tokens is None else tokens.astype(np.int64)
    return SplitTrace(np.arange(examples), nll, tokens, samples, *counts)


def _rows(split: SplitTrace, which: np.ndarray) -> SplitTrace:
    return SplitTrace(
        split.example[which],
        split.nll[:, which],
        split.tokens[which],
        split.samples[:, which],
        split.correct[:, which],
        split.unparsed[:, which],
    )
