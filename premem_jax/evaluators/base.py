"""The interface of evaluators: their base class, inputs and results. Without JAX, because configs read the options.

An evaluator is one file. `GradientVariance` in `gradient_variance.py` is `type="gradient_variance"` in a config; its
options are the keyword arguments of its constructor. It runs compiled programs over the batches of a split, and imports
JAX code only where it builds these programs.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from premem_jax.errors import NonFinite, UserError
from premem_jax.grading.grader import Grader, grader_of
from premem_jax.limits import Limit

if TYPE_CHECKING:
    from premem_jax.data.pipeline import Tokenized
    from premem_jax.data.tokenizers import Tokenizer
    from premem_jax.evaluators.planned import Planned
    from premem_jax.evaluators.run import Run
    from premem_jax.models.architecture import ModelConfig
    from premem_jax.models.costs import Cost, Layout


@dataclasses.dataclass(frozen=True)
class Split:
    """Tokenized examples, their name in the trace, and their grader."""

    name: str
    data: "Tokenized"
    grader: Grader

    def __post_init__(self):
        object.__setattr__(self, "grader", grader_of(self.grader))

    def perturbed(self, tokenizer: "Tokenizer", opening: str = "", reworded: bool = False) -> "Split":
        """The split with reworded questions, with an opening that every response begins with, or both.

        The opening is appended to each prompt. Raises UserError if the task has no reworded questions.
        """
        if not (opening or reworded):
            return self
        examples = self.data.examples
        if reworded and not all(e.reworded for e in examples):
            raise UserError(f"split {self.name!r}: the task has no questions in other words; leave `reworded` false")
        name = self.name + (" reworded" if reworded else "") + (f" after {opening.strip()!r}" if opening else "")
        return self._asked(tokenizer, name, [(e.reworded if reworded else e.prompt) + opening for e in examples])

    def alone(self, tokenizer: "Tokenizer") -> "Split":
        """The split with targets without their prompts."""
        return self._asked(tokenizer, f"{self.name} alone", [""] * len(self.data.examples))

    def _asked(self, tokenizer: "Tokenizer", name: str, prompts: Sequence[str]) -> "Split":
        examples = [dataclasses.replace(e, prompt=p) for e, p in zip(self.data.examples, prompts, strict=True)]
        prompts, targets = zip(*tokenizer.encode_pairs([(e.prompt, e.target) for e in examples]), strict=True)
        data = dataclasses.replace(self.data, examples=examples, prompts=prompts, targets=targets)
        return dataclasses.replace(self, name=name, data=data)


class Part(NamedTuple):
    """Results of an evaluator on some rows of its split (row e is example e); `measures` are of the whole run."""

    rows: Sequence[int] | np.ndarray
    columns: Mapping[str, np.ndarray] = {}
    texts: Sequence[dict] = ()
    measures: Mapping[str, float] = {}


def checked(name: str, split: Split, parts: Iterable[Part]) -> Iterator[Part]:
    """Checks the `parts` of the evaluator `name` of the config, and passes them on.

    Raises:
      NonFinite: a value of an example is NaN or infinite, or a measure is NaN. Measures that overflow are left out of
        the trace.
    """
    for part in parts:
        for column, values in part.columns.items():
            if not (finite := np.isfinite(values)).all():
                raise not_finite(f"{name}: {column}", split, np.asarray(part.rows)[~finite])
        for measure, value in part.measures.items():
            if np.isnan(value):
                raise not_finite(f"{name}: {measure}", split, ())
        yield part


def not_finite(what: str, split: Split, rows: Iterable[int]) -> NonFinite:
    """The error that names the examples of which `what` is not finite; without rows, the whole split."""
    ids = [str(split.data.examples[row].id) for row in sorted(rows)]
    named = f"examples {', '.join(ids[:10])}{f' and {len(ids) - 10} more' if len(ids) > 10 else ''} of " if ids else ""
    return NonFinite(
        f"{what} is not finite on {named}split {split.name!r}: a weight is NaN or infinite, or a sum overflows; "
        "look at the weights, lower the learning rate, or compute in float32"
    )


class Collected:
    """The parts of one evaluation of a split so far. Missing rows have zeros in all columns."""

    def __init__(self, examples: int):
        self.columns: dict[str, np.ndarray] = {}
        self.texts: list[dict] = []
        self.measures: dict[str, float] = {}
        self.done = np.zeros(examples, bool)
        self.finished = False

    def add(self, part: Part) -> None:
        for name, values in part.columns.items():
            nothing = np.zeros((len(self.done), *values.shape[1:]), values.dtype)
            self.columns.setdefault(name, nothing)[part.rows] = values
        self.done[part.rows] = True
        self.texts += part.texts
        self.measures |= part.measures

    def all(self, parts: Iterable[Part]) -> "Collected":
        """Adds all of `parts` and returns self."""
        for part in parts:
            self.add(part)
        return self


class Evaluator(abc.ABC):
    """Measures one split. `split` is its data; `run` has the mesh and model of its `layout`.

    A subclass defines:
      layout: layout of the weights that `measure` gets: `train`, as in training, or `decode`, as in sampling.
      phase: its phase of the run's clock.
      columns: its results per example.
      planned: name of its program in a plan; without a name, the program is not planned.
      OPTIONS: limit and help line of each keyword argument of its constructor.
    """

    layout: ClassVar[str] = "train"
    phase: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
    planned: ClassVar[str] = ""
    OPTIONS: ClassVar[Mapping[str, tuple[Limit, str]]] = {}
    skip_settled = False  # whether rows may be left out that change nothing; see `settled.py`

    def __init__(self, split: Split, run: "Run"):
        self.split, self.run = split, run.at(self.layout)

    @property
    def examples(self) -> int:
        """Number of examples that it measures."""
        return len(self.split.data)

    @abc.abstractmethod
    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """Yields results with these weights on the rows `only` (default: all), part by part."""

    def left_out(self, rows_E: np.ndarray) -> dict[str, np.ndarray]:
        """Columns (E,) for the rows that were not measured, given as (E,) bool."""
        return {}

    # ---- What its options mean, before there is a run ---------------------------------------------------------------

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options that a config may set, and their defaults."""
        given = inspect.signature(cls).parameters.values()
        return {option.name: option.default for option in given if option.kind is option.KEYWORD_ONLY}

    @classmethod
    def batch_at_a_time(cls, options: Mapping) -> float | None:
        """Examples per batch, to be a multiple of the batch shards of its layout; None without batches."""
        return options.get("batch")

    # ---- Of those with `planned` ------------------------------------------------------------------------------------

    @classmethod
    def size(cls, options: Mapping) -> int:
        """Size of its arrays, to compare evaluators of one type: only the largest is planned."""
        return options["batch"]

    @classmethod
    def cost(cls, options: Mapping, shape: "ModelConfig", layout: "Layout", T: int) -> "Cost":
        """Cost of one call of its program, with T tokens in the longest example."""
        raise TypeError(f"{cls.__name__} is planned, but does not say what it costs")

    @classmethod
    def program(cls, options: Mapping, planned: "Planned") -> tuple[Callable, tuple]:
        """The function that takes most memory, to compile for a plan, and its arguments as shapes with shardings."""
        raise TypeError(f"{cls.__name__} is planned, but does not say what it compiles")
