"""Accuracy: the share of correct samples of each example."""

import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from premem_jax.data.markers import shown
from premem_jax.evaluators.base import Evaluator, Part, not_finite
from premem_jax.evaluators.rounds import Drawn, Rounds, continuing, round_tokens
from premem_jax.grading.verdict import Verdict, answer_hash
from premem_jax.limits import NATURAL, ROWS, TOKENS, either, flag, integer, number, text


class Accuracy(Evaluator):
    """Samples R responses per example in rounds and grades them by the grader of the split.

    Rules grade on the device, inside the sampling program. A Python function gets each complete text.
    """

    phase, layout, planned = "sample", "decode", "sample"
    columns = ("samples", "correct", "unparsed", "decided_on_host", "answers")
    OPTIONS: ClassVar = {
        "batch": (ROWS, "prompts that are sampled at a time, over all devices"),
        "samples": (integer(1, 10**4), "responses to each prompt"),
        "max_new_tokens": (integer(1, 2**17), "longest response in tokens"),
        "first_round": (TOKENS, "tokens after which unfinished responses go on in batches of their own"),
        "temperature": (either(number(0, 0), number(1e-6, 1e6)), "divides the logits; 0: the likeliest token"),
        "top_p": (number(1e-6, 1), "nucleus mass; 1: the full distribution"),
        "keep_texts": (NATURAL, "examples whose responses are kept for the report"),
        "skip_settled": (flag(), "leave out training examples whose metric is 0 whatever is sampled"),
        "opening": (text(200), "text with which every response is made to begin"),
        "reworded": (flag(), "ask in other words, where the task has them"),
        "drafted": (flag(), "let one pass over the references decide how far each response follows them"),
    }

    def __init__(
        self,
        split,
        run,
        *,
        batch: int = 64,
        samples: int = 5,  # with the temperature, as in Kang et al. (arXiv 2411.07681)
        max_new_tokens: int = 512,
        first_round: int = 128,
        temperature: float = 0.8,
        top_p: float = 1.0,
        keep_texts: int = 64,
        skip_settled: bool = False,
        opening: str = "",
        reworded: bool = False,
        drafted: bool = False,
    ):
        """With `opening` or `reworded`, the perturbed prompts are a split of their own."""
        from premem_jax.grading.answers import answer_bytes, vocabulary
        from premem_jax.grading.score import follow_and_grade, sample_and_grade

        super().__init__(split.perturbed(run.tokenizer, opening, reworded), run)
        self.samples, self.skip_settled = samples, skip_settled
        self._batch, self._keep, run = batch, keep_texts, self.run
        token_bytes, rules = run.tokenizer.token_bytes(), split.grader.rules
        if token_bytes is None:  # the device cannot read responses
            rules = None
        self._vocabulary = self._answers = None  # of use on the device alone
        if rules is not None:
            self._vocabulary = run.put_copies(vocabulary(token_bytes, rules))
            self._answers = answer_bytes([example.answer for example in self.split.data.examples], rules)

        tokens = round_tokens(max_new_tokens, first_round)
        self._rounds = partial(Rounds, self.split.data, samples, tokens, run.buckets)
        settings = dict(temperature=temperature, top_p=top_p, eos_ids=run.tokenizer.eos_ids, longest=max_new_tokens)
        sampling = lambda R, T: run.program(sample_and_grade, run.model, rules, samples=R, max_new_tokens=T, **settings)
        self._programs = {(i, R): sampling(R, T) for i, T in enumerate(tokens) for R in (samples, 1)}
        self._follow = run.program(follow_and_grade, run.model, rules, samples=samples, **settings) if drafted else None

    def measure(self, params, step: int, only: Sequence[int] | None = None) -> Iterator[Part]:
        """Counts `samples`, `correct`, `unparsed` and `decided_on_host` of the rows `only` (default: all), and
        `answers`, the hash of each sample's answer where the grader tells it.

        Yields rows as they complete, with the texts to keep. Raises UserError if a Python grader fails.
        """
        rounds, run = self._rounds(range(len(self.split.data)) if only is None else list(map(int, only))), self.run
        key = run.key(zlib.crc32(self.split.name.encode()), step)
        part = lambda complete: self._part(step, complete, [rounds.take(row) for row in complete])
        if self._follow is not None:
            for rows, arrays in run.batches(self.split.data, self._batch, only):
                answers = run.put(self._answers_of(rows, self._batch))
                found = map(np.asarray, self._follow(params, arrays, answers, self._vocabulary, key))
                each = zip(rows.tolist(), *found, strict=False)  # there are more places than rows
                if complete := [row for row, *begun in each if rounds.begin(row, *begun)]:
                    yield part(complete)
        for batch in rounds.batches(self._batch, run.places_here):
            arrays, answers = run.put((batch.arrays, self._answers_of(batch.rows, batch.size)))
            program = self._programs[batch.round, batch.arrays["begun"].shape[1]]
            out = program(params, arrays, answers, self._vocabulary, key)
            tokens, length, verdict = (np.asarray(x)[: len(batch.at)] for x in out)
            if (length < 0).any():
                rows = {row for (row, _), n in zip(batch.at, length, strict=True) if n < 0}
                raise not_finite("what responses are drawn from", self.split, rows)
            if complete := rounds.add(batch, tokens, length, verdict):
                yield part(complete)

    def left_out(self, rows_E: np.ndarray) -> dict[str, np.ndarray]:
        """`skipped`: number of responses that were not sampled because they cannot change the metric."""
        return {"skipped": rows_E * self.samples} if self.skip_settled else {}

    def _answers_of(self, rows: Sequence[int], size: int):
        """The answers of a batch of `size` on this process; for padding rows, arbitrary ones."""
        if self._answers is None:
            return None
        here = self.run.places_here(size)
        fill = lambda x: np.resize(x[rows], (size, *x.shape[1:]))[here]
        return type(self._answers)(*map(fill, self._answers))

    def _part(self, step: int, rows: list[int], drawn: list[Drawn]) -> Part:
        verdicts, asked = zip(*self._resolved(rows, drawn), strict=True)
        columns = {
            "samples": np.full(len(rows), self.samples, np.int32),
            "correct": np.sum(np.equal(verdicts, Verdict.CORRECT), axis=1, dtype=np.int32),
            "unparsed": np.sum(np.equal(verdicts, Verdict.UNPARSED), axis=1, dtype=np.int32),
            "decided_on_host": np.array(asked, np.int32),
            "answers": np.array([*map(self._hashes, drawn, verdicts)], np.uint32),
        }
        kept = [b for b, row in enumerate(rows) if row < self._keep]
        return Part(rows, columns, [self._text(step, rows[b], drawn[b], verdicts[b]) for b in kept])

    def _resolved(self, rows: list[int], drawn: list[Drawn]) -> list[tuple[list[int], int]]:
        """The verdicts of each row, UNDECIDED ones resolved on the host, and the number of these."""
        grader = self.split.grader

        def of_row(row: int, mine: Drawn) -> tuple[list[int], int]:
            example = self.split.data.examples[row]
            answers, ids = [example.answer] * self.samples, [example.id] * self.samples
            found, asked = grader.resolve(
                mine.verdict, mine.tokens, mine.length, self.run.tokenizer.spell, answers=answers, ids=ids
            )
            return found.tolist(), asked

        every = lambda: [of_row(*each) for each in zip(rows, drawn, strict=True)]
        # Our rules agree in every process; a user's function may not.
        return self.run.once(every) if grader.rules is None else every()

    def _hashes(self, drawn: Drawn, verdict_R: Sequence[int]) -> list[int]:
        if (answer := self.split.grader.answer) is None:
            return [0] * self.samples
        text = self.run.tokenizer.spell
        each = zip(drawn.tokens, drawn.length, verdict_R, strict=True)
        return [answer_hash(answer(text(tokens[:length])), verdict) for tokens, length, verdict in each]

    def _text(self, step: int, row: int, drawn: Drawn, verdict_R: Sequence[int]) -> dict:
        example, decode = self.split.data.examples[row], self.run.tokenizer.decode
        responses = [
            {"text": decode(tokens[:length]), "verdict": Verdict(verdict).name.lower()}
            for tokens, length, verdict in zip(drawn.tokens, drawn.length, verdict_R, strict=True)
        ]
        return {
            "step": step,
            "split": self.split.name,
            "example": int(example.id),
            "prompt": shown(example.prompt),
            "reference": shown(example.target).strip(),
            "responses": responses,
        }

    # ---- For a plan -------------------------------------------------------------------------------------------------

    @classmethod
    def size(cls, options) -> int:
        """Number of tokens sampled in a batch."""
        return options["batch"] * options["samples"] * options["max_new_tokens"]

    @classmethod
    def cost(cls, options, shape, layout, T: int):
        """Cost of one batch, all rounds, and with `drafted` of the pass over the references, which decide nothing."""
        from premem_jax.models import costs

        sizes = dict(B=options["batch"], R=options["samples"], P=T, T=options["max_new_tokens"])
        sampled = costs.sample(shape, layout, **sizes)
        if not options["drafted"]:
            return sampled
        return costs.Cost(*map(sum, zip(sampled, costs.score(shape, layout, B=options["batch"], T=T), strict=True)))

    @classmethod
    def program(cls, options, planned):
        """The program of the last round, which has the longest prompts."""
        from premem_jax.grading.answers import answer_bytes, vocabulary
        from premem_jax.grading.score import sample_and_grade

        samples, rules = options["samples"], planned.grader.rules
        *before, T = round_tokens(options["max_new_tokens"], options["first_round"])
        begun, R = sum(before), 1 if before else samples
        B = continuing(options["batch"], samples) if before else options["batch"]
        integers = lambda *shape: planned.batch((B, *shape), "int32")
        arrays = dict(
            tokens=integers(planned.T + begun),
            prompt_length=integers(),
            ids=integers(),
            first=integers(),
            begun=integers(R),
        )
        answers = tables = None
        if rules is not None:
            answers = type(made := answer_bytes([b"0"] * B, rules))(*(planned.batch(x.shape, x.dtype) for x in made))
            # A dummy vocabulary: real token bytes barely affect shapes.
            tokens = [bytes([i]) for i in range(256)] + [b" " * 128] + [b""] * (planned.shape.V - 257)
            tables = planned.copies(vocabulary(tokens, rules))
        drawing = {name: options[name] for name in ("temperature", "top_p")}
        drawing |= dict(samples=R, max_new_tokens=T, longest=options["max_new_tokens"], eos_ids=(0,))
        function = partial(sample_and_grade, planned.model, rules, **drawing)
        return function, (planned.params, arrays, answers, tables, planned.key)
