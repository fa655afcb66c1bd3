"""Common inputs of all contenders: shapes of models, lengths of GSM8K, and tokens. Imports only NumPy."""

import json
from pathlib import Path

import numpy as np

SIZES = {
    "1m": dict(V=2048, D=128, L=4, N=4, K=2, H=32, F=256),
    "20m": dict(V=8192, D=384, L=8, N=6, K=2, H=64, F=1024),
    "120m": dict(V=32_000, D=768, L=12, N=12, K=4, H=64, F=2048),
}
# Of Qwen2.5, with biases.
SIZES |= {f"{name}-qwen": SIZES[name] | dict(biases=("q", "k", "v"), norm_eps=1e-6) for name in SIZES}

# Tokens of prompt and solution of 64 training examples of GSM8K in Llama 3's tokenizer: all 7,473 are sorted by their
# sum, and one is taken from the middle of each of 64 equal parts.
LENGTHS = (
    *((34, 42), (42, 40), (46, 41), (46, 44), (46, 47), (40, 56), (44, 55), (38, 64), (48, 56), (47, 59), (39, 69)),
    *((46, 65), (38, 75), (48, 67), (50, 67), (57, 62), (56, 65), (45, 78), (61, 64), (55, 72), (54, 75), (64, 67)),
    *((52, 81), (70, 65), (67, 70), (62, 77), (43, 98), (66, 77), (72, 73), (54, 93), (44, 105), (71, 81), (55, 99)),
    *((58, 98), (58, 100), (63, 97), (63, 100), (50, 116), (64, 104), (81, 90), (92, 81), (78, 98), (98, 81)),
    *((61, 121), (75, 110), (82, 106), (75, 116), (58, 136), (66, 132), (72, 129), (70, 135), (70, 138), (91, 122)),
    *((93, 125), (90, 133), (103, 126), (66, 169), (68, 175), (74, 176), (118, 141), (120, 150), (76, 209)),
    *((126, 175), (71, 274)),
)

TRAIN_ROWS, TRAIN_LENGTH, UPDATES = 32, 256, 2  # of a batch; updates per turn
PROMPTS, SAMPLES, NEW_TOKENS = 32, 4, 128
PACKED_TOKENS = (160, 176, 192)  # for each example of a batch whose examples share rows
SCORED = 64
SCORE_BATCH = 16
OPTIMIZER = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
LEARNING_RATE = 1e-4
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = dict(rank=8, alpha=16.0, targets=PROJECTIONS)
TEMPERATURE, TOP_P = 0.8, 0.95


class Workload:
    """The random tokens of one model's benchmark, in the folder of the model."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.dtype = json.loads((folder / "workload.json").read_text())["dtype"]
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        random = np.random.default_rng(0)
        draw = lambda count: random.integers(3, vocabulary, count).astype(np.int32)  # 0 pads, 1 and 2 are markers
        self.examples = [(draw(prompt), draw(target)) for prompt, target in LENGTHS]
        self._order = random.permutation(len(LENGTHS))

    def picked(self, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Prompt and target of the examples of update `step`."""
        first = step * TRAIN_ROWS % len(self.examples)
        return [self.examples[i] for i in self._order[first : first + TRAIN_ROWS]]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch `step` of the training, right-padded: `tokens` and `weights`, both (TRAIN_ROWS, TRAIN_LENGTH)."""
        return self.padded(self.picked(step), TRAIN_LENGTH)

    def uncut(self, step: int) -> dict[str, np.ndarray]:
        """The same, padded to the longest example, as the collators of `transformers` do."""
        return self.padded(self.picked(step), max(sum(map(len, example)) for example in self.picked(step)))

    @property
    def prompts(self) -> list[np.ndarray]:
        """Every second prompt."""
        return [prompt for prompt, _ in self.examples[:: len(self.examples) // PROMPTS]]

    def padded(self, examples, length: int) -> dict[str, np.ndarray]:
        """Right-padded `tokens` and the `weights` of their targets, cut at `length`."""
        tokens, weights = np.zeros((len(examples), length), np.int32), np.zeros((len(examples), length), np.float32)
        for b, (prompt, target) in enumerate(examples):
            row = np.concatenate([prompt, target])[:length]
            tokens[b, : len(row)] = row
            weights[b, len(prompt) : len(row)] = 1
        return dict(tokens=tokens, weights=weights)
