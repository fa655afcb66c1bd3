"""Twenty updates of DPO against torch: the arithmetic of the paper written out there, and TRL's own trainer."""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers

from premem_jax.data.tokenizer_export import files
from premem_jax.models.decoder import build
from premem_jax.models.hf import to_hf_state
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.nll import log_likelihood
from premem_jax.running.programs import Clock
from premem_jax.sharding import put_batch
from premem_jax.training.objectives import DPO, Responses
from premem_jax.training.trainer import Trainer
from tests import tiny
from tests.training.responses import batch_of

STEPS, B, T, RATE, BETA = 20, 4, 12, 1e-3, 0.1
MICRO_BATCHES = 2
OPTIMIZER = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1e30)
COLUMNS = ("loss", "reward_chosen", "reward_rejected", "margin", "reward_accuracy")


@functools.cache
def pairs():
    """(prompt, chosen, rejected) token ids of each pair, in the order in which they are trained on."""
    rng = np.random.default_rng(0)
    draw = lambda low, high: rng.integers(1, tiny.CONFIG.V, rng.integers(low, high)).tolist()
    return [(draw(2, 6), draw(2, 7), draw(2, 7)) for _ in range(STEPS * B)]


def arrays(step):
    tokens, weights = np.zeros((B, 2, T), np.int32), np.zeros((B, 2, T), np.float32)
    for b, (prompt, *responses) in enumerate(pairs()[step * B : (step + 1) * B]):
        for r, response in enumerate(responses):
            end = len(prompt) + len(response)
            tokens[b, r, :end], weights[b, r, len(prompt) : end] = [*prompt, *response], 1
    return tokens, weights


@functools.cache
def ours():
    """(STEPS, 5) of `COLUMNS`."""
    model, mesh = build(tiny.CONFIG), tiny.one_device()
    trainer = Trainer(model, mesh, Clock(), OPTIMIZER, MICRO_BATCHES, Responses(DPO(BETA)))
    score = jax.jit(lambda tokens, weights: log_likelihood(model, tiny.parameters(), tokens, weights))
    state, rows = trainer.init_state(jax.device_put(tiny.parameters())), []
    for step in range(STEPS):
        tokens, weights = arrays(step)
        reference = np.stack([score(tokens[:, r], weights[:, r]) for r in (0, 1)], axis=1)
        batch = batch_of(tokens, weights, MICRO_BATCHES, reference=reference)
        state, values = trainer.program(state, put_batch(mesh, batch), np.float32(RATE))
        rows.append([float(values[name]) for name in COLUMNS])
    return np.array(rows)


def torch_model():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**to_hf_config(tiny.CONFIG)))
    state = {name: torch.tensor(x) for name, x in to_hf_state(tiny.parameters(), tiny.CONFIG).items()}
    model.load_state_dict(state, strict=False)
    return model.float().eval()


def test_torch_gives_the_same():
    model, reference = torch_model(), torch_model()
    optimizer, rows = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0), []

    def score(model, batch, r):
        tokens, weights = (torch.tensor(values[:, r]) for values in batch)
        logs = torch.log_softmax(model(tokens.long()).logits[:, :-1], dim=-1)
        own = torch.gather(logs, 2, tokens[:, 1:, None].long())[..., 0]
        return (own * weights[:, 1:]).sum(dim=1)

    for step in range(STEPS):
        batch = arrays(step)
        with torch.no_grad():
            was = [score(reference, batch, r) for r in (0, 1)]
        chosen, rejected = (BETA * (score(model, batch, r) - was[r]) for r in (0, 1))
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values = loss, chosen.mean(), rejected.mean(), (chosen - rejected).mean(), (chosen > rejected).float().mean()
        rows.append([value.item() for value in values])
    np.testing.assert_allclose(ours(), rows, atol=1e-4)
    assert abs(rows[-1][3]) > 0.05  # the weights have moved


@pytest.mark.slow
def test_trl_gives_the_same(tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")

    class InOrder(trl.DPOTrainer):
        """Takes token ids as they are, in their order."""

        def _prepare_dataset(self, dataset, *args):
            return dataset

        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = datasets.Dataset.from_list([dict(zip(keys, pair, strict=True)) for pair in pairs()])

    for name, body in files(tiny.tokenizer()).items():
        (tmp_path / name).write_bytes(body)
    settings = trl.DPOConfig(
        str(tmp_path / "out"),
        per_device_train_batch_size=B,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1e30,
        beta=BETA,
        logging_steps=1,
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    trainer = InOrder(torch_model(), torch_model(), args=settings, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
    theirs = [[row[name] for name in names] for row in trainer.state.log_history if "rewards/chosen" in row]
    np.testing.assert_allclose(ours(), theirs, atol=1e-4)
