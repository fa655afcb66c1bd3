"""What grading costs on the device and on the host: 1,024 responses of 512 tokens, a vocabulary of 128,256.

    python -m benchmarks.score_answers --data=FOLDER [--rules=math] [--rounds=15]

FOLDER holds `tokenizers/tokenizer_llama3.tiktoken`, `math/test.jsonl`, `gsm8k/test.jsonl`. The host grader copies ids
from the device, looks up their bytes and applies `scoring/reference.py`; both are run in turns, so that a busy machine
slows both. Prints one JSON object; memory is XLA's own analysis of the compiled program.
"""

import argparse
import base64
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from premem_jax.scoring.answers import answer_bytes, grade, resolve, vocabulary
from premem_jax.scoring.reference import find_answer, grade_bytes
from premem_jax.scoring.verdict import Verdict

ROWS, LENGTH, SPECIAL = 1024, 512, 256


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rules", choices=["gsm8k", "math"], default="math")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    token_bytes = read_vocabulary(options.data / "tokenizers/tokenizer_llama3.tiktoken")
    began = time.perf_counter()
    tables = jax.device_put(vocabulary(token_bytes, options.rules))
    table_seconds = time.perf_counter() - began
    tokens_BT, length_B, answers = read_responses(options.data, options.rules, token_bytes)
    packed = jax.device_put(answer_bytes(answers, options.rules))

    began = time.perf_counter()
    arguments = (jax.device_put(tokens_BT), jax.device_put(length_B), tables, packed)
    compiled = jax.jit(grade, static_argnames="rules").lower(*arguments, rules=options.rules).compile()
    compile_seconds = time.perf_counter() - began

    def on_device():
        return np.asarray(compiled(*arguments))

    def on_host():
        rows, lengths = np.array(arguments[0]).tolist(), np.array(arguments[1]).tolist()
        texts = [b"".join(map(token_bytes.__getitem__, row[:n])) for row, n in zip(rows, lengths, strict=True)]
        return np.array([grade_bytes(*pair, options.rules) for pair in zip(texts, answers, strict=True)])

    verdicts, undecided = resolve(on_device(), *arguments[:2], token_bytes, answers, options.rules)
    if not np.array_equal(verdicts, on_host()):
        raise SystemExit("the two graders differ")
    seconds = {on_device: [], on_host: []}
    for _ in range(options.rounds):
        for function, times in seconds.items():
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    device, host = (statistics.median(times) for times in seconds.values())
    memory = compiled.memory_analysis()
    report = {
        "rules": options.rules,
        "device": jax.devices()[0].device_kind,
        "tokens": int(length_B.sum()),
        "correct": int(np.sum(verdicts == Verdict.CORRECT)),
        "undecided": undecided,
        "device_ms": round(1e3 * device, 2),
        "host_ms": round(1e3 * host, 2),
        "host_over_device": round(host / device, 2),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 1),
        "argument_mb": round(memory.argument_size_in_bytes / 1e6, 1),
        "tables_s": round(table_seconds, 2),
        "compile_s": round(compile_seconds, 2),
    }
    print(json.dumps(report, indent=1))


def read_vocabulary(path: Path) -> list[bytes]:
    """Bytes of the tokens of a tiktoken file, in the order of their ranks; special tokens behind them have none."""
    ranked = [line.split() for line in path.read_bytes().splitlines()]
    if [int(rank) for _, rank in ranked] != list(range(len(ranked))):
        raise SystemExit(f"{path}: ranks are not 0, 1, 2, ...")
    return [base64.b64decode(token) for token, _ in ranked] + [b""] * SPECIAL


def read_responses(folder: Path, rules: str, token_bytes: list[bytes]):
    """Full rows of ids that end in a reference solution, and answers, of which every second is another example's."""
    name, field = {"math": ("math", "solution"), "gsm8k": ("gsm8k", "answer")}[rules]
    lines = (folder / name / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)[field].encode() for line in lines[: ROWS + 1]]
    ids = {token: i for i, token in enumerate(token_bytes) if token}
    pieces = [segment(text, ids) for text in texts]
    filling = [segment(text.partition(b"####")[0], ids) for text in texts]  # so that the answer of GSM8K is the first
    tokens_BT = np.zeros((ROWS, LENGTH), np.int32)
    for b in range(ROWS):
        row = pieces[b]
        while len(row) < LENGTH:
            row = filling[(b + len(row)) % ROWS] + row
        tokens_BT[b] = row[-LENGTH:]
        texts[b] = b"".join(token_bytes[i] for i in row[-LENGTH:])
    answers = [find_answer(texts[(b + b % 2) % ROWS], rules) for b in range(ROWS)]
    return tokens_BT, np.full(ROWS, LENGTH, np.int32), answers


def segment(text: bytes, ids: dict[bytes, int]) -> list[int]:
    """The text as tokens, each the longest that fits; near enough to a real tokenizer's for a measurement."""
    row, at = [], 0
    while at < len(text):
        size = next(n for n in range(min(24, len(text) - at), 0, -1) if text[at : at + n] in ids)
        row.append(ids[text[at : at + size]])
        at += size
    return row


if __name__ == "__main__":
    main()
