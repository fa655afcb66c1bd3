"""On-policy pairs: a right and a wrong response to each prompt, sampled by the model that is trained.

Preference training then goes in rounds of `on_policy.every` updates. Before a round, the model answers the prompts of
the round's batches, and the first right and the first wrong sample of each become its pair, token for token. A prompt
without both has no pair in this round. A round begins at a checkpoint, and its pairs are a function of that checkpoint,
the seed and the step; they are kept in `on_policy/`, so an interrupted run ends in the same bits.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from premem_jax.data.pairs import collate_pairs, pair_lengths
from premem_jax.data.pipeline import Tokenized
from premem_jax.data.reader import batch_rows, known, read_ahead
from premem_jax.errors import UserError
from premem_jax.evaluators.accuracy import Accuracy
from premem_jax.evaluators.base import Collected, Part, Split, checked
from premem_jax.evaluators.rounds import Drawn
from premem_jax.experiments import reference_model
from premem_jax.experiments.finetune import Ready, batch_order
from premem_jax.grading.verdict import Verdict
from premem_jax.running import processes, sealed
from premem_jax.running.programs import Clock
from premem_jax.training.phase import Batch, Phase, steps_done
from premem_jax.training.step import weights

log = logging.getLogger(__name__)

NAME = "on policy"


class Draw(Accuracy):
    """Samples responses and keeps, of each prompt, the tokens of the first right and of the first wrong one."""

    def _part(self, step: int, rows: list[int], drawn: list[Drawn]) -> Part:
        verdicts, _ = zip(*self._resolved(rows, drawn), strict=True)
        found = [self._pair(*each) for each in zip(rows, drawn, verdicts, strict=True)]
        return Part(rows, texts=[pair for pair in found if pair])

    def _pair(self, row: int, drawn: Drawn, verdict_R) -> dict | None:
        right = [r for r, verdict in enumerate(verdict_R) if verdict == Verdict.CORRECT]
        wrong = [r for r, verdict in enumerate(verdict_R) if verdict != Verdict.CORRECT and drawn.length[r]]
        if not (right and wrong):
            return None
        tokenizer, most = self.run.tokenizer, drawn.tokens.shape[1]
        said = [drawn.tokens[r, : drawn.length[r]].tolist() for r in (right[0], wrong[0])]
        return {
            "example": int(self.split.data.examples[row].id),
            "texts": [tokenizer.decode(tokens) for tokens in said],
            "tokens": [tokens + [tokenizer.eos_id] * (len(tokens) < most) for tokens in said],
        }


class Rounds:
    """The rounds of a preference phase in `folder`; `start` makes the weights that it begins with."""

    def __init__(self, config, folder: Path, clock: Clock, made: Ready, run, asked, start: Callable[[], dict]):
        self._config, self._folder, self._clock, self._made, self._run = config, folder, clock, made, run
        self._given, self._data = asked.given, made.splits["train"]
        self._start = functools.cache(start)  # stays on the devices: it is the reference of every round
        self._layout = batch_order(config, made.mesh)
        self._layout["buckets"] = known(self._layout["buckets"], pair_lengths(self._data))
        self._order = {key: self._layout[key] for key in ("batch", "seed", "window")}
        self._rows = lambda: batch_rows(pair_lengths(self._data), **self._order)

    def train(self, phase: Phase) -> dict:
        """The state after the last update of `phase`, whose batches are replaced by those of the rounds.

        Raises:
          UserError: the pairs of a round are lost, and so is the checkpoint from which they could be made.
        """
        every = self._config.on_policy.every
        firsts = range(0, phase.steps, every)
        begin = processes.once(lambda: max([first for first in firsts if self._read(first) is not None], default=0))
        state = None
        for first in range(begin, phase.steps, every):
            end = min(first + every, phase.steps)
            self._prepare(first, end, state)
            state = None  # not beside the one that is restored
            due = [step for step in phase.evaluation_steps if step <= end]
            part = dataclasses.replace(phase, steps=end, batches=self.batches, evaluation_steps=due)
            state = part.run(lambda: jax.tree.map(jnp.copy, self._start()))
        return state

    def share(self) -> float:
        """The share of prompts, over all rounds, that had a right and a wrong sample."""
        counts = [(len(found["pairs"]), found["prompts"]) for path in self._files() if (found := self._load(path))]
        pairs, prompts = np.sum(counts, axis=0) if counts else (0, 0)
        return float(pairs / max(prompts, 1))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of updates start to stop - 1, each with the pairs of its round; see `pair_batches`."""
        every = self._config.on_policy.every
        while start < stop:
            end = min(stop, start - start % every + every)
            yield from self._round(start - start % every, start, end)
            start = end

    def _round(self, first: int, start: int, stop: int) -> Iterator[Batch]:
        data, reference_ER = self._pairs(first)
        layout = {key: self._layout[key] for key in ("batch", "buckets", "packing")}
        make = functools.partial(collate_pairs, data, reference_ER=reference_ER, **layout)
        return read_ahead(make, data.ids, pair_lengths(self._data), start, stop, **self._order)

    def _prepare(self, first: int, end: int, state: Mapping | None) -> None:
        """Makes the pairs of the round of updates first to end - 1 with the weights of `state`, unless they exist."""
        if processes.once(lambda: self._read(first) is not None):
            return
        if first and (state is None or steps_done(state) != first):
            raise UserError(
                f"{self._path(first)} is damaged or missing, and the checkpoint of step {first}, from which it was "
                "made, is no longer the last one; begin again in another --workdir"
            )
        options, split = self._config.on_policy, self._made.splits["train"]
        rows = sorted({row for step in range(first, end) for row in self._rows()[step]})
        take = lambda values: [values[row] for row in rows]
        asked = Tokenized(take(split.examples), take(split.prompts), take(split.targets))
        settings = {key: options[key] for key in ("batch", "samples", "max_new_tokens", "temperature")}
        draw = Draw(Split(NAME, asked, self._made.grader), self._run, **settings)
        params = self._start() if state is None else weights(state)
        with self._clock("sample"):
            parts = draw.measure(self._run.weights(params, "decode"), first)
            found = Collected(len(rows)).all(checked(NAME, draw.split, parts)).texts
        found = sorted((pair for pair in found if self._fits(pair)), key=lambda pair: pair["example"])
        log.info("step %d: %d of %d prompts have a right and a wrong sample", first, len(found), len(rows))
        document = {"step": first, "prompts": len(rows), "pairs": found}
        processes.once(lambda: sealed.write_json(self._path(first), document))

    def _fits(self, pair: Mapping) -> bool:
        prompts = self._prompts
        return max(map(len, pair["tokens"])) + prompts[pair["example"]] <= self._config.data.context

    @functools.cached_property
    def _prompts(self) -> dict[int, int]:
        """Tokens of each prompt by example."""
        return {e.id: len(p) for e, p in zip(self._data.examples, self._data.prompts, strict=True)}

    def _pairs(self, first: int) -> tuple[Tokenized, np.ndarray | None]:
        """The training split with the round's pairs, empty where there is none, and their reference likelihoods."""
        found = self._read(first)
        if found is None:
            raise UserError(f"{self._path(first)} is damaged or missing; begin again in another --workdir")
        pairs = {pair["example"]: [np.array(tokens, np.int32) for tokens in pair["tokens"]] for pair in found["pairs"]}
        nothing = [np.zeros(0, np.int32)] * 2
        targets, rejected = zip(*(pairs.get(e.id, nothing) for e in self._data.examples), strict=True)
        data = dataclasses.replace(self._data, targets=targets, rejected=rejected)
        there = [row for row, e in enumerate(data.examples) if e.id in pairs]
        if not self._given:
            return data, None
        reference_ER = np.zeros((len(data), 2), np.float32)
        if there:
            take = lambda values: [values[row] for row in there]
            some = Tokenized(take(data.examples), take(data.prompts), take(targets), take(rejected))
            file = f"on_policy/reference-{first:08d}.npz"
            scored = reference_model.measured(
                self._config, self._folder, self._clock, self._made, some, self._start, file
            )
            reference_ER[there] = scored.log_likelihood
        return data, reference_ER

    def _path(self, first: int) -> Path:
        return self._folder / "on_policy" / f"step-{first:08d}.json"

    def _read(self, first: int) -> dict | None:
        return self._load(self._path(first))

    def _load(self, path: Path) -> dict | None:
        return sealed.unless_damaged(sealed.read_json, path, self._folder, "its pairs are sampled again if they can be")

    def _files(self) -> list[Path]:
        return sorted((self._folder / "on_policy").glob("step-*.json"))
