"""Cost of grading: on the device, on the host, and relative to sampling.

    python -m benchmarks.grading --data=FOLDER [--rules=math] [--rounds=15]

1,024 responses of 512 tokens in Llama 3's vocabulary of 128,256, assembled from reference solutions. FOLDER holds
`tokenizers/tokenizer_llama3.tiktoken`, `math/test.jsonl`, `gsm8k/test.jsonl`. The host grader copies token ids from the
device, looks up their bytes and applies `grading/reference.py`. Sampling is that of `llama_tiny` (0.3 M parameters
without embeddings), with fewer rows and tokens, and compared per token; a token of a longer text costs at least as
much. All run in turns, so that a busy machine slows all of them. Prints one JSON object of medians; memory is XLA's
analysis of the compiled program.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from premem_jax.data import tokenizer_files
from premem_jax.grading.answers import answer_bytes, grade, vocabulary
from premem_jax.grading.grader import by_rules
from premem_jax.grading.reference import find_answer, grade_bytes
from premem_jax.grading.verdict import Verdict
from premem_jax.models.architecture import preset
from premem_jax.models.decoder import build, init
from premem_jax.sampling.sampler import sample

ROWS, LENGTH = 1024, 512
SAMPLED_ROWS, SAMPLED_TOKENS = 128, 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rules", choices=["gsm8k", "math"], default="math")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    tokenizer = tokenizer_files.load(options.data / "tokenizers" / "tokenizer_llama3.tiktoken")
    token_bytes = tokenizer.token_bytes()
    tables = timed(lambda: jax.device_put(vocabulary(token_bytes, options.rules)))
    tokens_BT, answers = responses(options.data, options.rules, tokenizer)
    lengths = np.full(ROWS, LENGTH, np.int32)
    arrays = jax.device_put((tokens_BT, lengths, tables.value, answer_bytes(answers, options.rules)))
    compiled = timed(lambda: jax.jit(partial(grade, rules=options.rules)).lower(*arrays).compile())

    on_device = lambda: np.asarray(compiled.value(*arrays))
    on_host = lambda: grade_on_host(*arrays[:2], token_bytes, answers, options.rules)
    verdicts, undecided = by_rules(options.rules).resolve(on_device(), tokens_BT, lengths, tokenizer.spell, answers)
    if not np.array_equal(verdicts, on_host()):
        raise SystemExit("the two graders differ")
    device, host, sampling = medians(options.rounds, on_device, on_host, sampler(tokenizer.vocab_size))
    sampling *= ROWS * LENGTH / (SAMPLED_ROWS * SAMPLED_TOKENS)
    memory = compiled.value.memory_analysis()
    report = {
        "rules": options.rules,
        "device": jax.devices()[0].device_kind,
        "tokens": ROWS * LENGTH,
        "correct": int(np.sum(verdicts == Verdict.CORRECT)),
        "undecided": undecided,
        "device_ms": round(1e3 * device, 1),
        "host_ms": round(1e3 * host, 1),
        "host_over_device": round(host / device, 2),
        "sampling_ms": round(1e3 * sampling),
        "device_over_sampling": round(device / sampling, 5),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 1),
        "argument_mb": round(memory.argument_size_in_bytes / 1e6, 1),
        "tables_s": round(tables.seconds, 2),
        "compile_s": round(compiled.seconds, 2),
    }
    print(json.dumps(report, indent=1))


class timed:
    """The value of a call, and its seconds."""

    def __init__(self, call):
        began = time.perf_counter()
        self.value = call()
        self.seconds = time.perf_counter() - began


def medians(rounds: int, *calls) -> list[float]:
    """Median seconds of each call, run in turns."""
    seconds = [[timed(call).seconds for call in calls] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def grade_on_host(tokens_BT, length_B, token_bytes: list[bytes], answers, rules: str) -> np.ndarray:
    rows, lengths = np.array(tokens_BT).tolist(), np.array(length_B).tolist()
    texts = [b"".join(map(token_bytes.__getitem__, row[:n])) for row, n in zip(rows, lengths, strict=True)]
    return np.array([grade_bytes(*pair, rules) for pair in zip(texts, answers, strict=True)])


def sampler(vocab_size: int):
    """A call that samples SAMPLED_ROWS rows of SAMPLED_TOKENS tokens."""
    model = build(preset("llama_tiny", V=vocab_size))
    params = jax.jit(init, static_argnums=0)(model.config, jax.random.key(0))
    prompts, ids = np.zeros((SAMPLED_ROWS, 1), np.int32), np.arange(SAMPLED_ROWS, dtype=np.int32)
    settings = dict(samples=1, max_new_tokens=SAMPLED_TOKENS, temperature=0.8, top_p=1.0, eos_ids=(-1,))
    draw = lambda params, key: sample(model, params, prompts, ids * 0 + 1, ids, key, **settings).tokens
    compiled = jax.jit(draw).lower(params, jax.random.key(0)).compile()
    return lambda: np.asarray(compiled(params, jax.random.key(0)))


def responses(folder: Path, rules: str, tokenizer) -> tuple[np.ndarray, list[bytes | None]]:
    """Rows of token ids that end in a reference solution, and answers; every second answer is another row's."""
    field = {"math": "solution", "gsm8k": "answer"}[rules]
    lines = (folder / rules / "test.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    texts = [json.loads(line)[field] + "\n" for line in lines]
    before = [text.partition("####")[0] for text in texts]  # the answer of GSM8K is the first
    joined = [
        "".join(before[b - 20 : b]) + texts[b] if b >= 20 else "".join(before[:40]) + texts[b] for b in range(ROWS)
    ]
    tokens_BT = np.stack([ids[-LENGTH - 1 : -1] for _, ids in tokenizer.encode_pairs([("", text) for text in joined])])
    own = [find_answer(text.encode(), rules) for text in texts]
    return tokens_BT.astype(np.int32), [own[(b + b % 2) % ROWS] for b in range(ROWS)]


if __name__ == "__main__":
    main()
