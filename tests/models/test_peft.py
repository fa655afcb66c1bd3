"""LoRA against `peft` in fp32: 20 steps of AdamW, and adapter folders in both directions."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.models import adapters
from premem_jax.models import peft as folders
from premem_jax.models.architecture import Lora
from premem_jax.models.decoder import build, init
from premem_jax.models.hf import to_hf_state
from premem_jax.models.hf_config import from_hf_config
from premem_jax.models.hf_files import Checkpoint
from premem_jax.training.losses import NEXT_TOKEN
from premem_jax.training.optimizer import adamw, learning_rate
from premem_jax.training.step import init_state, train_step, weights
from tests.models.both import Pair, batch, theirs_on
from tests.models.published import gemma, llama

LORA = Lora(rank=3, alpha=5.0, targets=("q", "v", "o", "gate", "down"))
CASES = [
    pytest.param(llama(2, 2), id="llama"),
    pytest.param(gemma(4, 4, window=5), id="gemma", marks=pytest.mark.slow),
]
STEPS = 20


def written(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def ours_as_files(state, config, base):
    return folders.files({path: np.asarray(x) for path, x in flatten_dict(state["params"]).items()}, config, base)


@dataclasses.dataclass
class Trained:
    losses: list
    expected: list  # losses of peft
    ours: dict  # the state after the last step
    config: object
    start: dict  # the state before
    base: object  # folder of the base model
    adapter: object  # folder that peft saved
    merged: dict  # the weights after merge_and_unload


@pytest.fixture(scope="module", params=CASES)
def trained(request, tmp_path_factory):
    """The same adapters on the same base, trained in both libraries: warm-up, clipping that bites, weight decay."""
    folder, pair = tmp_path_factory.mktemp("peft"), Pair(request.param)
    config = dataclasses.replace(pair.config, lora=LORA)
    fresh, _ = adapters.split(jax.jit(init, static_argnums=0)(config, jax.random.key(5)))
    rng = np.random.default_rng(5)  # adapters that begin with B = 0 would hide a swap of the two
    fresh = jax.tree.map(lambda x: np.where(x == 0, rng.normal(0, 0.05, x.shape), x).astype("f"), fresh)
    model, params = build(config), adapters.join(fresh, pair.params)
    options = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    update = jax.jit(partial(train_step, model, NEXT_TOKEN, adamw(**options), 2))
    rate = partial(learning_rate, peak=1e-2, warmup_steps=4, steps=STEPS)
    start = state = init_state(params, adamw(**options))

    pair.theirs.save_pretrained(folder / "base", max_shard_size="20KB")
    begun = written(folder / "begun", ours_as_files(state, config, None))
    pair.theirs = theirs = peft.PeftModel.from_pretrained(pair.theirs, begun, is_trainable=True)
    learned = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 4, STEPS)
    losses, expected = [], []
    for i in range(STEPS):
        tokens_BT, real_BT, target_BT = batch(config, seed=i % 3)
        arrays = dict(tokens=tokens_BT, weights=target_BT.astype(np.float32))
        state, values = update(state, arrays, np.float32(rate(i)))
        optimizer.zero_grad()
        loss = theirs_on(pair, tokens_BT, real_BT, target_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(values["loss"]))
        expected.append(loss.item())
    theirs.peft_config["default"].base_model_name_or_path = str(folder / "base")
    theirs.save_pretrained(folder / "adapter")
    merged = {name: x.numpy() for name, x in theirs.merge_and_unload().state_dict().items()}
    return Trained(losses, expected, state, config, start, folder / "base", folder / "adapter", merged)


def test_twenty_steps_of_adamw(trained):
    np.testing.assert_allclose(trained.losses, trained.expected, rtol=0, atol=1e-4)
    assert trained.expected[-1] < 0.98 * trained.expected[0]
    mine = ours_as_files(trained.ours, trained.config, None)
    theirs, before = load_file(trained.adapter / folders.WEIGHTS), ours_as_files(trained.start, trained.config, None)
    written(folder := trained.adapter.parent / "mine", mine), written(first := trained.adapter.parent / "first", before)
    mine, before = load_file(folder / folders.WEIGHTS), load_file(first / folders.WEIGHTS)
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        np.testing.assert_allclose(mine[name], expected, rtol=0, atol=1e-4, err_msg=name)
        assert np.abs(expected - before[name]).max() > 1e-2, name


def test_what_is_frozen_stays_and_merged_weights_are_those_of_peft(trained):
    jax.tree.map(np.testing.assert_array_equal, trained.ours["frozen"], trained.start["frozen"])
    ours = to_hf_state(adapters.merged(LORA, weights(trained.ours)), trained.config)
    for name, x in ours.items():
        np.testing.assert_allclose(x, trained.merged[name], rtol=0, atol=1e-4, err_msg=name)
    moved = [
        name
        for name, x in to_hf_state(adapters.merged(LORA, weights(trained.start)), trained.config).items()
        if np.abs(x - ours[name]).max() > 1e-3
    ]
    assert len(moved) == trained.config.L * len(LORA.targets)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 4)])
def test_an_adapter_folder_is_its_base_with_the_adapter_merged(trained, shape):
    checkpoint = Checkpoint(trained.adapter)
    assert checkpoint.folder == trained.base and dataclasses.replace(checkpoint.config, lora=LORA) == trained.config
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)), jax.devices()[: int(np.prod(shape))])
    for name, x in to_hf_state(checkpoint.load(mesh), trained.config).items():
        np.testing.assert_allclose(x, trained.merged[name], rtol=0, atol=1e-6, err_msg=name)
    half = to_hf_state(checkpoint.load(mesh, "bfloat16"), trained.config)
    for name, x in half.items():
        np.testing.assert_allclose(x.astype("f"), trained.merged[name], rtol=2**-8, atol=1e-6, err_msg=name)


REFUSED = {
    "another method": (dict(peft_type="IA3"), "peft_type='IA3' is not supported"),
    "its own magnitudes": (dict(use_dora=True), "use_dora=True is not supported"),
    "whole modules": (dict(modules_to_save=["lm_head"]), "modules_to_save=['lm_head'] is not supported"),
    "ranks by layer": (dict(rank_pattern={"q_proj": 2}), "rank_pattern={'q_proj': 2} is not supported"),
    "biases": (dict(bias="all"), "bias='all' is not supported"),
    "a base that it changes": (dict(init_lora_weights="pissa"), "init_lora_weights='pissa' changes the base"),
    "a setting of a later release": (dict(new_thing=3), "new_thing=3 is not supported"),
    "a rank that is not that of its arrays": (dict(r=4), "has shape (3, "),
    "no rank": (dict(r=True), "r=True must be a whole number"),
    "no alpha": (dict(lora_alpha=-1), "lora_alpha=-1 must be a positive number"),
    "a base elsewhere": (dict(base_model_name_or_path="meta-llama/Llama-3.2-1B"), "is no folder here; fetch the base"),
    "an adapter on an adapter": (dict(base_model_name_or_path="AN ADAPTER"), "is an adapter itself"),
}


@pytest.fixture
def adapter(tmp_path):
    """An adapter folder as we write it, and the shape of its base, which is a folder without weights."""
    config = dataclasses.replace(from_hf_config(llama(2, 2).to_dict()), lora=LORA)
    fresh, _ = adapters.split(jax.eval_shape(partial(init, config), jax.random.key(0)))
    (tmp_path / "base").mkdir()
    state = {"params": jax.tree.map(lambda x: np.ones(x.shape, "f"), fresh)}
    folder = written(tmp_path / "adapter", ours_as_files(state, config, str(tmp_path / "base")))
    folders.Adapter(folder).check(config)
    return folder, config


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_that_is_not_followed_is_refused_by_name(adapter, change, says):
    folder, config = adapter
    if change.get("base_model_name_or_path") == "AN ADAPTER":
        other = written(folder.parent / "other", {folders.CONFIG: b"{}"})
        change = dict(base_model_name_or_path=str(other))
    said = json.loads((folder / folders.CONFIG).read_bytes()) | change
    (folder / folders.CONFIG).write_text(json.dumps(said))
    with pytest.raises(UserError) as error:
        folders.Adapter(folder).check(config)
    assert says in str(error.value) and str(folder) in str(error.value)


def test_half_an_adapter_is_refused(adapter):
    folder, _ = adapter
    (folder / folders.WEIGHTS).rename(folder / folders.PICKLED)
    with pytest.raises(UserError, match=r"without adapter_model\.safetensors \(adapter_model\.bin is a pickle"):
        Checkpoint(folder)


def test_arrays_that_belong_nowhere_are_refused(adapter):
    folder, config = adapter
    arrays = load_file(folder / folders.WEIGHTS)
    name = next(name for name in arrays if "lora_A" in name)
    for stored, says in [
        ({n: x for n, x in arrays.items() if n != name}, f"without {name.removeprefix(folders.PREFIX)}"),
        (arrays | {"base_model.model.lm_head.lora_A.weight": arrays[name]}, "lm_head.lora_A.weight is of no matrix"),
        ({}, "is empty"),
    ]:
        save_file(stored, folder / folders.WEIGHTS)
        with pytest.raises(UserError, match=says):
            folders.Adapter(folder).check(config)
