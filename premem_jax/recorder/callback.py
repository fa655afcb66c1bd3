"""A callback of Hugging Face's `Trainer`, and so of TRL's, that measures its examples while it trains.

    recorder = Recorder("runs/mine", task="my task", model="my model")
    measure = RecorderCallback(recorder, {"train": "train.jsonl", "test": "test.jsonl"}, tokenizer, grader="number")
    Trainer(model, arguments, train_dataset=..., callbacks=[measure]).train()

The rows and graders are those of docs/own_data.md. Measuring changes no bit of the training.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers

from premem_jax.data import rows as files
from premem_jax.data.examples import Example
from premem_jax.errors import UserError
from premem_jax.grading import named
from premem_jax.grading.grader import Grader
from premem_jax.recorder import Recorder
from premem_jax.tasks.jsonl import answer_of

IGNORED = -100  # label of a token that no loss counts


class RecorderCallback(transformers.TrainerCallback):
    """Measures before the first update, at the end of each epoch or every so many updates, and at the end of the run.

    The target NLL is measured of every split. Responses are sampled of the splits in `sampled`, and graded. The run has
    one process.
    """

    def __init__(
        self,
        recorder: Recorder,
        splits: Mapping[str, str | Sequence[Mapping]],
        tokenizer: transformers.PreTrainedTokenizerBase,
        *,
        grader: str = "",
        sampled: Sequence[str] = ("train", "test"),
        samples: int = 5,
        max_new_tokens: int = 512,
        temperature: float = 0.8,
        top_p: float = 1.0,
        batch: int = 16,
        every: int = 0,
        seed: int = 0,
        prompt: str = "",
        target: str = "",
    ):
        """Reads and tokenizes the examples, and records their texts.

        Prompt and target are tokenized as one text, and cut before the first token that holds any of the target. The
        tokenizer's markers are added unless the texts bring them: the start marker before the prompt, the end marker
        behind the target.

        Args:
          recorder: the folder.
          splits: the examples measured, by split: a file of rows, or the rows themselves.
          tokenizer: a fast one, of the model.
          grader: a name of `grading/named.py`; empty: the first that gives every target an answer; `none`: no samples.
          sampled: splits of which responses are drawn; names that `splits` lacks are passed over.
          samples, max_new_tokens, temperature, top_p: of these responses; temperature 0 takes the likeliest token.
          batch: examples at a time.
          every: updates between measurements; 0: an epoch.
          seed: of the responses.
          prompt, target: templates for rows with other fields, such as `Q: {ask}`.

        Raises:
          UserError: a row that is none, a row without an answer, or a tokenizer without places of its tokens.
        """
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} does not tell where its tokens are; load it with use_fast=True"
            )
        self._recorder, self._tokenizer = recorder, tokenizer
        self._batch, self._every, self._seed, self._samples = batch, every, seed, samples
        self._drawing: dict[str, float] = dict(
            max_new_tokens=max_new_tokens, num_return_sequences=samples, do_sample=temperature > 0
        )
        if temperature:
            self._drawing |= dict(temperature=temperature, top_p=top_p, top_k=0)
        read = {name: partial(_read, name, split, prompt=prompt, target=target) for name, split in splits.items()}
        grader = grader or named.guess([e.target for of in read.values() for e in of(None).examples])
        chosen = named.find(grader)
        self._grader: Grader = chosen.grader
        self._splits = {name: of(partial(answer_of, chosen)).examples for name, of in read.items()}
        self._sampled = [name for name in sampled if name in splits and grader != "none"]
        for name, examples in self._splits.items():
            texts = [(e.id, e.prompt, e.target, e.metadata) for e in examples]
            recorder.examples(name, *zip(*texts, strict=True))
        self._tokens = {name: [self._encode(e) for e in examples] for name, examples in self._splits.items()}

    # ---- When ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, *, model, **others):
        if args.world_size > 1:
            raise UserError(
                f"The callback measures in runs of one process, and this one has {args.world_size}: call Recorder.log "
                "from the processes that have the numbers, or measure the kept checkpoints afterwards."
            )
        due = state.global_step % self._every == 0 if self._every else state.epoch == int(state.epoch or 0)
        if state.global_step == 0 or (due and set(self._recorder.recorded(state.global_step)) != set(self._splits)):
            self._measure(model, state)

    def on_step_end(self, args, state, control, *, model, **others):
        if self._every and state.global_step % self._every == 0:
            self._measure(model, state)

    def on_epoch_end(self, args, state, control, *, model, **others):
        if not self._every:
            self._measure(model, state)

    def on_train_end(self, args, state, control, *, model, **others):
        """Measures the last step, unless that is done, and writes the report."""
        if self._measured != state.global_step:
            self._measure(model, state)
        self._recorder.report()

    # ---- What ------------------------------------------------------------------------------------------------------

    _measured = -1

    def _measure(self, model, state) -> None:
        """All splits at this step; the model and the random numbers of the training are left as they were."""
        step, devices = state.global_step, [model.device] if model.device.type == "cuda" else []
        training = model.training
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices):
            for name, examples in self._splits.items():
                ids = [e.id for e in examples]
                columns: dict[str, Any] = {}
                if name in self._sampled:
                    torch.manual_seed(zlib.crc32(f"{self._seed} {step} {name}".encode()))
                    columns = self._sample(model, name)
                columns |= {"nll": self._score(model, name)}
                columns |= {"target_tokens": [len(tokens) - begin for tokens, begin in self._tokens[name]]}
                self._recorder.log(step, name, ids, **columns, epoch=float(state.epoch or 0))
        model.train(training)
        self._measured = step

    def _score(self, model, name: str) -> np.ndarray:
        """(E,) mean NLL of the target tokens, nats, in float32 from the logits on."""
        nll = np.zeros(len(self._tokens[name]))
        for rows in self._batches([len(tokens) for tokens, _ in self._tokens[name]]):
            tokens, mask = self._padded([self._tokens[name][row][0] for row in rows], "right")
            labels = torch.full_like(tokens, IGNORED)
            for b, row in enumerate(rows):
                whole, begin = self._tokens[name][row]
                labels[b, begin : len(whole)] = tokens[b, begin : len(whole)]
            logits = model(input_ids=tokens.to(model.device), attention_mask=mask.to(model.device)).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), labels[:, 1:].to(model.device), reduction="none"
            )
            counted = (labels[:, 1:] != IGNORED).sum(dim=1)
            nll[rows] = (losses.sum(dim=1, dtype=torch.float64).cpu() / counted).numpy()
        return nll

    def _sample(self, model, name: str) -> dict[str, Any]:
        """The responses of each example with their verdicts, as `Recorder.log` takes them."""
        tokenizer = self._tokenizer
        texts: list[list[tuple[str, str]]] = [[] for _ in self._splits[name]]
        stops = model.generation_config.eos_token_id
        stops = [stops] if isinstance(stops, int) else list(stops or ())
        stops = [*dict.fromkeys([*stops, tokenizer.eos_token_id])] if tokenizer.eos_token_id is not None else stops
        for rows in self._batches([begin for _, begin in self._tokens[name]]):
            prompts = [self._tokens[name][row][0][: self._tokens[name][row][1]] for row in rows]
            tokens, mask = self._padded(prompts, "left")
            out = model.generate(
                input_ids=tokens.to(model.device),
                attention_mask=mask.to(model.device),
                eos_token_id=stops or None,
                pad_token_id=self._pad,
                **self._drawing,
            )
            said = tokenizer.batch_decode(out[:, tokens.shape[1] :], skip_special_tokens=True)
            for at, row in enumerate(np.repeat(rows, self._samples)):
                verdict = self._grader.host(said[at].encode(), self._splits[name][row].answer)
                texts[row].append((said[at], verdict.name.lower()))
        count = lambda verdict: [sum(found == verdict for _, found in each) for each in texts]
        return dict(correct=count("correct"), unparsed=count("unparsed"), samples=self._samples, texts=texts)

    # ---- Tokens ----------------------------------------------------------------------------------------------------

    @property
    def _pad(self) -> int:
        """Any token does, as padding is masked."""
        markers = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        return next((marker for marker in markers if marker is not None), 0)

    def _encode(self, example: Example) -> tuple[list[int], int]:
        """The tokens of prompt and target, and the place of the first one that holds any of the target."""
        tokenizer, text = self._tokenizer, example.prompt + example.target
        bare = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        coded = tokenizer(text, add_special_tokens=not bare, return_offsets_mapping=True)
        tokens, ends = coded["input_ids"], [end for _, end in coded["offset_mapping"]]
        begin = next((at for at, end in enumerate(ends) if end > len(example.prompt)), len(tokens))
        if tokenizer.eos_token_id not in (None, tokens[-1]):
            tokens = [*tokens, tokenizer.eos_token_id]
        return tokens, begin

    def _batches(self, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        """Rows of similar length, shortest first."""
        order = np.argsort(lengths, kind="stable")
        return (order[at : at + self._batch] for at in range(0, len(order), self._batch))

    def _padded(self, sequences: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and mask (B, T), padded on the `side`."""
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
        tokens = [torch.tensor(each) for each in sequences]
        return pad(tokens, padding_value=self._pad), pad([torch.ones_like(each) for each in tokens])


def _read(
    name: str, split: str | Sequence[Mapping], answer: files.Answer | None, *, prompt: str, target: str
) -> files.Rows:
    """The rows of a split, from a file or as they are."""
    if isinstance(split, str):
        return files.read(split, answer, prompt=prompt, target=target)
    items = ((f"split {name!r}, row {number}", row) for number, row in enumerate(split))
    return files.parse(items, answer, prompt=prompt, target=target)
