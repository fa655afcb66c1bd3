"""The decoder against `transformers` on the CPU: logits, loss, gradients, greedy decoding and a training run, in fp32.

Weights and gradients go through `to_hf_state`. The shapes are random small ones of all families, with soft-caps,
windows and rotary scaling set so low that they matter at these lengths.
"""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers import MistralConfig, Qwen2Config, Qwen3Config, Trainer

from premem_jax.models.hf import from_hf_state, to_hf_state
from premem_jax.models.nll import token_nll
from premem_jax.sampling.sampler import sample
from premem_jax.training.losses import NEXT_TOKEN
from premem_jax.training.optimizer import adamw, learning_rate
from premem_jax.training.step import init_state, train_step
from tests.models.both import B, Pair, batch, theirs_on
from tests.models.published import gemma, later, llama

SCALING = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)

CASES = {
    "llama, one query per key": llama(1, 4),
    "llama, two, stretched positions": llama(2, 2, scaling=SCALING | dict(original_max_position_embeddings=16)),
    "llama, four, tied, wide heads": llama(3, 1, head_dim=20, tied=True),
    "gemma, one": gemma(4, 4, window=5),
    "gemma, two, narrow heads": gemma(5, 2, window=2, layers=2, head_dim=4),
    "gemma, four, three layers": gemma(6, 1, window=8, layers=3),
    "mistral, a window on all layers": later(MistralConfig, 7, 2, sliding_window=4),
    "qwen2, biases, a window on the last layer": later(
        Qwen2Config, 8, 2, use_sliding_window=True, sliding_window=4, max_window_layers=2
    ),
    "qwen2, tied": later(Qwen2Config, 9, 1, tie_word_embeddings=True),
    "qwen3, normalised heads": later(Qwen3Config, 10, 2, head_dim=12),
}


SLOW = {
    "llama, one query per key",
    "gemma, four, three layers",
    "mistral, a window on all layers",
    "qwen2, tied",
}


def cases(slow, names=CASES):
    return [pytest.param(CASES[name], id=name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


@pytest.fixture(scope="module", params=cases(SLOW))
def pair(request):
    return Pair(request.param)


def test_logits(pair):
    tokens_BT, real_BT, target_BT = batch(pair.config)
    with torch.no_grad():
        expected = theirs_on(pair, tokens_BT, real_BT, target_BT).logits.numpy()

    @jax.jit
    def logits(params):
        decoder = pair.model.bind(params)
        return decoder.logits(decoder(tokens_BT)[0])

    assert expected[real_BT].std() > 0.5
    np.testing.assert_allclose(np.asarray(logits(pair.params))[real_BT], expected[real_BT], rtol=0, atol=1e-4)


def test_loss_and_every_gradient(pair):
    tokens_BT, real_BT, target_BT = batch(pair.config, seed=1)

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        return (token_nll(pair.model, params, tokens_BT) * target_BT).sum() / target_BT.sum()

    loss, gradient = ours(pair.params)
    pair.theirs.zero_grad()
    out = theirs_on(pair, tokens_BT, real_BT, target_BT)
    out.loss.backward()
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-4)
    theirs = {name: p.grad.numpy() for name, p in pair.theirs.named_parameters()}
    for name, mine in to_hf_state(gradient, pair.config).items():
        largest = np.abs(theirs[name]).max()
        assert largest > 1e-5, name
        np.testing.assert_allclose(mine, theirs.pop(name), rtol=0, atol=1e-4 * largest, err_msg=name)
    assert not theirs


def test_weights_survive_the_way_there_and_back(pair):
    stored = {name: x.numpy() for name, x in pair.theirs.state_dict().items()}
    back = from_hf_state(stored, pair.config)
    assert jax.tree.structure(back) == jax.tree.structure(pair.params)
    jax.tree.map(np.testing.assert_array_equal, back, pair.params)
    half = from_hf_state(stored, pair.config, "bfloat16")
    for name, x in to_hf_state(half, pair.config).items():
        np.testing.assert_array_equal(x, stored[name].astype("bfloat16"), err_msg=name)


def test_greedy_decoding(pair):
    """Ragged prompts side by side in ours, one by one in theirs; prompts and responses outgrow the windows."""
    prompts_BP, lengths, new = batch(pair.config, seed=2)[0][:, :12], np.array([12, 3, 7, 1], np.int32), 14
    options = dict(samples=2, max_new_tokens=new, temperature=0.0, top_p=1.0, eos_ids=(-1,))
    drawn = jax.jit(partial(sample, pair.model, **options))(
        pair.params, prompts_BP, lengths, np.arange(B), jax.random.key(0)
    )
    for prompt, length, ours in zip(prompts_BP, lengths, np.asarray(drawn.tokens), strict=True):
        given = torch.tensor(prompt[None, :length], dtype=torch.long)
        whole = pair.theirs.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=new, use_cache=True
        )
        np.testing.assert_array_equal(ours, np.tile(whole[0, length:].numpy(), (2, 1)))
    assert len(np.unique(np.asarray(drawn.tokens))) > 3


TRAINED = (
    "llama, two, stretched positions",
    "gemma, one",
    "mistral, a window on all layers",
    "qwen2, biases, a window on the last layer",
    "qwen3, normalised heads",
)


@pytest.mark.parametrize("config", cases(TRAINED[2:], TRAINED))
def test_twenty_steps_of_adamw(config):
    """Warm-up, decay, clipping that bites, decoupled weight decay on matrices: the losses of torch's own parts."""
    pair, steps = Pair(config), 20
    options = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    rate = partial(learning_rate, peak=3e-3, warmup_steps=4, steps=steps)
    update = jax.jit(partial(train_step, pair.model, NEXT_TOKEN, adamw(**options), 1))
    state = init_state(pair.params, adamw(**options))

    theirs = dict(pair.theirs.named_parameters())
    named = Trainer.get_decay_parameter_names(None, pair.theirs)
    decayed, others = ([p for n, p in theirs.items() if (n in named) == on] for on in (True, False))
    assert all(p.ndim > 1 for p in decayed) and all(p.ndim == 1 for p in others)
    groups = [dict(params=decayed, weight_decay=0.1), dict(params=others)]
    torch_adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(torch_adamw, 4, steps)
    ours, expected, norms = [], [], []
    for i in range(steps):
        tokens_BT, real_BT, target_BT = batch(pair.config, seed=i % 3)
        arrays = dict(tokens=tokens_BT, weights=target_BT.astype(np.float32))
        state, values = update(state, arrays, np.float32(rate(i)))
        torch_adamw.zero_grad()
        loss = theirs_on(pair, tokens_BT, real_BT, target_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        torch_adamw.step()
        schedule.step()
        ours.append(float(values["loss"]))
        norms.append(float(values["grad_norm"]))
        expected.append(loss.item())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    assert expected[-1] < 0.97 * expected[0] and max(norms) > 1
