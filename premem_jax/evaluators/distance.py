"""Distance of the weights from those at the start of the finetune."""

from collections.abc import Iterator, Sequence

from premem_jax.errors import UserError
from premem_jax.evaluators.base import Evaluator, Part


class Distance(Evaluator):
    """The squared distance from initialization of Kang et al. (arXiv 2411.07681, development code).

    The initial weights are made again for each evaluation and dropped afterwards, so a resumed run has them too. They
    take the memory that the gradient has in an update, so an evaluation needs no more memory than training.
    """

    phase = "distance"

    def __init__(self, split, run):
        """Raises UserError if the run has no base weights."""
        from premem_jax.training.measures import squared_distance

        super().__init__(split, run)
        if run.base is None:
            raise UserError("distance: the weights that the run began with are not known")
        self._program = run.program(squared_distance, run.model.config)

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """The measure `distance_from_initialization`; no columns."""
        yield Part((), measures={"distance_from_initialization": float(self._program(params, self.run.base()))})
