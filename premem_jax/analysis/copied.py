"""Answers to other questions in what the model writes: one kind of hallucination, after Ren & Sutherland.

Their account (arXiv 2407.10490, section 4) is that finetuning makes the training answer of question B likelier under
question A. What is counted here is its outcome: responses that repeat a long passage of another prompt's training
answer.
"""

from collections.abc import Iterable, Mapping, Sequence

WORDS = 8  # of a passage that is not repeated by chance in free text


class Copied:
    """Passages of `words` words of training answers, and the prompts that they answer."""

    def __init__(self, answers: Iterable[tuple[str, str]], words: int = WORDS):
        """`answers`: pairs of prompt and training answer."""
        self._words, self._of = words, {}
        for prompt, answer in answers:
            for passage in _passages(answer, words):
                self._of.setdefault(passage, set()).add(prompt)

    def repeats(self, prompt: str, response: str) -> bool:
        """Whether the response has a passage of a training answer, and of none to the same prompt."""
        found = (self._of.get(passage) for passage in _passages(response, self._words))
        return any(of and prompt not in of for of in found)

    def share(self, responses: Sequence[tuple[str, str]]) -> float:
        """The share of responses, pairs of prompt and text, that repeat one; NaN if there are none."""
        return sum(self.repeats(*each) for each in responses) / len(responses) if responses else float("nan")


def shares(
    answers: Iterable[tuple[str, str]], samples: Iterable[Mapping], split: str, words: int = WORDS
) -> dict[int, float]:
    """By step: the share of the texts of `split` in `samples`, rows as in the run's folder, that repeat a passage."""
    known, by_step = Copied(answers, words), {}
    for row in samples:
        if row["split"] == split:
            said = [(row["prompt"], response["text"]) for response in row["responses"]]
            by_step.setdefault(int(row["step"]), []).extend(said)
    return {step: known.share(said) for step, said in sorted(by_step.items())}


def _passages(text: str, words: int) -> set[str]:
    said = text.split()
    return {" ".join(said[i : i + words]) for i in range(len(said) - words + 1)}
