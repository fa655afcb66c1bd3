"""TFDS builders for datasets in files: prepared once as ArrayRecord, then read by row number.

Importing this module takes seconds (TFDS), so import it only where it is used. TensorFlow is never imported.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from premem_jax.data import sources
from premem_jax.data.examples import Example, worked
from premem_jax.data.sources import SPLITS, Dataset, Documents
from premem_jax.errors import UserError
from premem_jax.running import progress, storage

tfds.disable_progress_bar()


class Loaded(NamedTuple):
    """The checked rows of each split, and their metadata."""

    rows: dict[str, list[dict[str, str]]]
    metadata: dict


class Problems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits `train` and `test` of rows `{id, problem, solution, answer, ...}`; row i of a split has id i.

    `info.metadata` holds `files_sha256` and `rows_sha256` of each split, whether the rows are the `official` ones, and
    `defects`: counts per split of each defect in `dataset.defects`.
    """

    # Raise the version when `dataset.parse` changes, so that folders made by the old rule are not read.
    VERSION = tfds.core.Version("1.0.0")
    # `sources` checks downloads; TFDS would need a package that it does not require.
    url_infos = None
    dataset: Dataset

    def __init__(self, *, loaded: Loaded | None = None, **kwargs):
        """`loaded`: the rows to write; without them, preparing downloads the official files."""
        self._loaded = loaded
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in self.dataset.columns}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.dataset.about,
            features=tfds.features.FeaturesDict({"id": tfds.features.Scalar(np.int64)} | texts),
            homepage=self.dataset.url,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # row i stays row i
        )

    def _split_generators(self, dl_manager) -> dict:
        loaded = self._loaded or load(self.dataset, sources.download(self.dataset))
        self.info.metadata.update(loaded.metadata)
        return {split: self._generate_examples(rows) for split, rows in loaded.rows.items()}

    def _generate_examples(self, rows):
        for id, row in enumerate(rows):
            yield id, {"id": id, **row}


def builder_of(dataset: Dataset) -> type[Problems]:
    """The builder of a dataset; TFDS needs one class per dataset."""
    members = {"name": dataset.name, "dataset": dataset, "__doc__": dataset.about}
    return type(dataset.name, (Problems,), members, skip_registration=True)


class OwnRows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits of people's own rows, checked: each the JSON of an example. `info.metadata` has the name of the grader."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when what is made of a row changes
    name = "own_rows"

    def __init__(self, *, grader: str = "", splits: Mapping[str, Sequence[Example]] | None = None, **kwargs):
        self._grader, self._splits = grader, splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"row": tfds.features.Text()})
        metadata = tfds.core.MetadataDict(grader=self._grader)
        return tfds.core.DatasetInfo(builder=self, features=features, metadata=metadata, disable_shuffling=True)

    def _split_generators(self, dl_manager) -> dict:
        return {split: self._generate_examples(found) for split, found in self._splits.items()}

    def _generate_examples(self, found):
        for at, example in enumerate(found):
            yield at, {"row": json.dumps(example.row)}


def own_rows(
    key: Mapping, cache: str | Path, make: Callable[[], tuple[str, dict[str, Sequence[Example]]]]
) -> tuple[str, dict[str, list[Example]]]:
    """The name of the grader and the examples of each split: what `make` gave when it was called for `key`.

    They are kept under `cache` as `prepared` keeps datasets, and `make` is called where they are not there.

    Args:
      key: JSON values on which the examples depend.

    Raises:
      UserError: as `make`; or the files are damaged.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = _folder(cache) / digest
    if not (folder / OwnRows.name / str(OwnRows.VERSION)).exists():
        grader, found = make()
        _write(OwnRows(data_dir=folder, grader=grader, splits=found))
    builder = OwnRows(data_dir=folder)
    with _undamaged(folder):
        rows = {name: data.__getitems__(range(len(data))) for name, data in builder.as_data_source().items()}
    found = {name: [Example.of_row(json.loads(row["row"])) for row in each] for name, each in rows.items()}
    return builder.info.metadata["grader"], found


def splits(
    dataset: Dataset, path: str, sizes: Mapping[str, int], seed: int, cache: str
) -> tuple[dict[str, list[Example]], list[Example]]:
    """Random subsets of a prepared dataset as `train`, `heldout` and `test`, in file order, and all training examples.

    Raises:
      UserError: as `prepared`, or more training and held-out examples than the training split has.
    """
    found, name = prepared(dataset, path, cache), dataset.name
    progress.say(summary(name, found))
    train, test = (examples(found[split]) for split in SPLITS)
    order = [train[i] for i in np.random.default_rng(seed).permutation(len(train))]
    used = sizes["train"] or len(train)
    if used + sizes["heldout"] > len(train):
        raise UserError(f"data: {used} train and {sizes['heldout']} heldout examples asked, {name} has {len(train)}")
    shuffled = [test[i] for i in np.random.default_rng(seed).permutation(len(test))]
    chosen = {
        "train": order[:used],
        "heldout": order[used : used + sizes["heldout"]],
        "test": shuffled[: sizes["test"] or None],
    }
    return {split: sorted(mine, key=lambda e: e.id) for split, mine in chosen.items()}, train


def prepared(dataset: Dataset, source: str | None, cache: str | Path) -> dict[str, Sequence[dict]]:
    """Random access to the rows of each split of a dataset; text is bytes, `.dataset_info` has the metadata.

    They are written under `cache` on first use, into a folder named after the checksums of the source files, so a
    changed file gives another folder. It is renamed when complete. ArrayRecord reads only from disks: if the cache is
    in a bucket, this part is in `~/.cache/premem_jax`.

    Args:
      source: a folder, the URL of a mirror of the official files, or empty for the official URL.

    Raises:
      UserError: no files and no network, a wrong checksum, or a malformed row; nothing is written then.
    """
    builder, name, documents = builder_of(dataset), dataset.name, None
    if source and not source.startswith(("http://", "https://")):
        documents = {split: sources.read_folder(Path(storage.path(source)), split, dataset) for split in SPLITS}
        checksums = {split: documents[split].checksum for split in SPLITS}
    else:  # known without a look at the network
        checksums = {Path(file).stem: checksum for file, checksum in dataset.files.items()}
    key = hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()[:16]
    folder = _folder(cache) / key
    if not (folder / name / str(builder.VERSION)).exists():
        loaded = load(dataset, documents or sources.download(dataset, source))
        _write(builder(data_dir=folder, loaded=loaded))
    return builder(data_dir=folder).as_data_source()


def load(dataset: Dataset, documents: Mapping[str, Documents]) -> Loaded:
    """The checked rows of `documents`, with checksums and counts.

    Raises:
      UserError: a malformed row, by file and line, or a split without rows.
    """
    rows = {split: sources.parse_rows(documents[split], dataset) for split in SPLITS}
    if empty := [split for split in SPLITS if not rows[split]]:
        raise UserError(f"split {empty[0]!r} is empty; {dataset.get}")
    checksums = {split: sources.rows_checksum(rows[split]) for split in SPLITS}
    defects = {name: {split: sum(map(has, rows[split])) for split in SPLITS} for name, has in dataset.defects.items()}
    # A test problem that is also a training problem stays in both, as it did for the papers.
    seen = {row["problem"].strip() for row in rows["train"]}
    defects["in_both_splits"] = {"train": 0, "test": sum(row["problem"].strip() in seen for row in rows["test"])}
    metadata = {
        "files_sha256": {split: documents[split].checksum for split in SPLITS},
        "rows_sha256": checksums,
        "official": checksums == dataset.rows,
        "defects": defects,
    }
    return Loaded(rows, metadata)


def examples(rows: Sequence[dict]) -> list[Example]:
    """All examples of one split of `prepared`; raises UserError if its file is damaged."""
    with _undamaged(rows.dataset_info.data_dir):
        return [worked(int(row.pop("id")), {name: text.decode("utf-8") for name, text in row.items()}) for row in rows]


@contextlib.contextmanager
def _undamaged(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of ArrayRecord
        raise UserError(f"{folder} is damaged ({error}); delete it, and it will be prepared again") from error


def summary(name: str, data: Mapping[str, Sequence[dict]]) -> str:
    """One line on prepared data: number of rows, whether they are official, and defects by split."""
    metadata = data["train"].dataset_info.metadata
    rows = " and ".join(f"{len(data[split])} {split}" for split in SPLITS)
    official = "the official ones" if metadata["official"] else "not the official ones"
    counts = {defect.replace("_", " "): n for defect, n in metadata["defects"].items() if any(n.values())}
    defects = ", ".join(f"{defect} {' + '.join(str(n[split]) for split in SPLITS)}" for defect, n in counts.items())
    return f"{name}: {rows} rows, {official}; {defects or 'no known defects'}"


def _folder(cache: str | Path) -> Path:
    return (Path.home() / ".cache" / "premem_jax" if storage.in_bucket(cache) else Path(cache).absolute()) / "data"


def _write(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the dataset to a temporary folder and renames it, as TFDS does; another process may be first."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloading, whatever it does
            builder.download_and_prepare()
    except OSError as error:
        if not builder.data_path.exists():
            raise UserError(f"cannot write {builder.data_path} ({error}); config.cache says where") from error
