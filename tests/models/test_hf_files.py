"""Hugging Face folders that `transformers` wrote, read onto meshes; folders written here, read by `transformers`."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from premem_jax import sharding
from premem_jax.errors import UserError
from premem_jax.models import hf, hf_files
from premem_jax.models.decoder import build
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.hf_files import Checkpoint, save
from tests import tiny
from tests.models import counted
from tests.models.published import gemma, later, llama
from tests.processes import ENVIRONMENT, QUICK

FAMILIES = {
    "llama": llama(1, 2, head_dim=20),
    "gemma": gemma(4, 2, window=5),
    "qwen2": later(transformers.Qwen2Config, 1, 2),
}


def mesh_of(data=1, fsdp=1, tensor=1):
    return sharding.make_mesh(dict(data=data, fsdp=fsdp, tensor=tensor), devices=jax.devices()[: data * fsdp * tensor])


@pytest.fixture(scope="module", params=["llama", "gemma", pytest.param("qwen2", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    """A folder with several shards in fp32, as transformers writes it."""
    path = tmp_path_factory.mktemp("theirs") / "model"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[request.param])
    for name, weight in model.named_parameters():  # norms and biases are constants at first
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(weight)
    model.save_pretrained(path, max_shard_size="20KB")
    return path


def state_of(path, dtype=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=dtype or "auto")
    return model.eval(), {name: x.float().numpy() for name, x in model.state_dict().items()}


# ---- Import ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mesh", "dtype"),
    [
        (dict(), "float32"),
        (dict(data=2, fsdp=2, tensor=2), "float32"),
        (dict(data=4, tensor=2), "bfloat16"),
    ],
)
def test_a_folder_is_read_onto_any_mesh(folder, mesh, dtype):
    """The arrays are those of the state that torch reads, in the layout of the table of rules."""
    checkpoint = Checkpoint(folder)
    assert len(checkpoint.files) > 3
    params = checkpoint.load(mesh_of(**mesh), dtype)
    expected = hf.from_hf_state(drop_tied(state_of(folder)[1], checkpoint.config), checkpoint.config, dtype)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(lambda mine, theirs: np.testing.assert_array_equal(np.asarray(mine), theirs), params, expected)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jax.numpy.dtype(dtype)}
    wanted = sharding.shardings(mesh_of(**mesh), params)
    jax.tree.map(lambda x, where: x.sharding.is_equivalent_to(where, x.ndim) or pytest.fail(str(where)), params, wanted)


def drop_tied(state, config):
    return {name: x for name, x in state.items() if not (config.tied_embedding and name == "lm_head.weight")}


def test_each_part_is_read_once_and_alone(folder, monkeypatch):
    """Over 4 x 2 devices, all parts together are the checkpoint; a replica over `data` reads nothing more."""
    checkpoint = Checkpoint(folder)
    sizes = {name: x.nbytes for file in checkpoint.files for name, x in load_file(file).items()}
    monkeypatch.setattr(hf_files, "safe_open", counted.CountedFile)
    for mesh in (dict(fsdp=4, tensor=2), dict(data=4, fsdp=2)):
        counted.READ.clear()
        params = checkpoint.load(mesh_of(**mesh))
        assert sizes == counted.READ
    matrix = params["layers"]["mlp"]["down"]
    assert matrix.sharding.shard_shape(matrix.shape) != matrix.shape


def test_a_large_tensor_is_read_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(hf_files, "PIECE_BYTES", 600)
    whole = hf.from_hf_state(drop_tied(state_of(folder)[1], Checkpoint(folder).config), Checkpoint(folder).config)
    for mesh in (dict(), dict(fsdp=2, tensor=4)):
        params = Checkpoint(folder).load(mesh_of(**mesh))
        jax.tree.map(lambda mine, theirs: np.testing.assert_array_equal(np.asarray(mine), theirs), params, whole)


# ---- What is refused, before anything is loaded ----------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path):
    """A small folder in two shards, written here, which a test may spoil."""
    write(tmp_path / "model", shard_bytes=40_000)
    return tmp_path / "model"


def write(path, config=tiny.CONFIG, **options):
    params = jax.device_put(tiny.parameters(config), sharding.replicated(mesh_of()))
    save(path, params, config, mesh_of(), description=to_hf_config(config), **dict(files={}) | options)


def refused(path) -> str:
    with pytest.raises(UserError) as error:
        Checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def shards(path):
    return sorted(path.glob("*.safetensors"))


@pytest.mark.parametrize("keep", [0, 7, 300, -1, -4])
def test_a_truncated_shard_is_named(ours, keep):
    file = shards(ours)[1]
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    message = refused(ours)
    assert file.name in message and "not a whole safetensors file" in message


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data + b"\0\0",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b'"shape"', b'"shapf"', 1),
        lambda data: data.replace(b'"F32"', b'"F64"', 1),
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ],
)
def test_a_corrupt_shard_is_named(ours, spoil):
    file = shards(ours)[0]
    file.write_bytes(spoil(file.read_bytes()))
    assert file.name in refused(ours)


def test_missing_and_strange_files_are_named(ours):
    assert len(shards(ours)) == 2
    moved = shards(ours)[1].rename(ours / "aside")
    message = refused(ours)
    assert moved.name == "aside" and "model-00002-of-00002.safetensors" in message and "1 of 2 shards" in message
    (ours / "aside").rename(ours / "model-00002-of-00002.safetensors")
    index = ours / hf_files.INDEX
    text = index.read_text()
    index.write_text(text.replace("model-00001-of", "../model-00001-of"))
    assert "'../model-00001-of-00002.safetensors' is not the name of a file" in refused(ours)
    index.write_text(text[:40])
    assert hf_files.INDEX in refused(ours) and "not whole JSON" in refused(ours)
    index.write_text("{}")
    assert "weight_map" in refused(ours)
    index.unlink()
    assert "2 safetensors files, but no model.safetensors.index.json" in refused(ours)
    for file in shards(ours):
        file.unlink()
    assert "no model.safetensors" in refused(ours)
    (ours / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "pytorch_model.bin is a pickle" in refused(ours)


def test_a_folder_without_a_config_is_refused(ours):
    (ours / "config.json").unlink()
    assert "config.json: cannot be read (No such file" in refused(ours)
    (ours / "config.json").write_text("[]")
    assert "no object" in refused(ours)
    assert "does not exist" in refused(ours / "nowhere")
    assert "is a file; give the folder" in refused(shards(ours)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(model_type="phi3"), ["'phi3' is not supported"]),
        (dict(model_type="qwen2"), ["misses model.layers.0.self_attn.k_proj.bias"]),
        (dict(num_hidden_layers=3), ["misses model.layers.2", "and 6 more"]),
        (dict(num_hidden_layers=1), ["has unknown model.layers.1"]),
        (dict(vocab_size=41), ["model.embed_tokens.weight has shape (40, 32)", "(41, 32)"]),
        (dict(num_key_value_heads=4), ["k_proj.weight has shape (16, 32)"]),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_named(ours, change, words):
    description = json.loads((ours / "config.json").read_text()) | change
    (ours / "config.json").write_text(json.dumps(description))
    message = refused(ours)
    assert [word for word in [str(ours), *words] if word not in message] == [], message


def test_a_tensor_in_two_shards_and_one_of_another_dtype_are_refused(ours):
    first, second = shards(ours)
    state = load_file(first)
    name = next(iter(state))
    save_file(load_file(second) | {name: state[name]}, second)
    assert f"{name} is in {first.name} and again in {second.name}" in refused(ours)
    save_file({key: x for key, x in load_file(second).items() if key != name}, second)
    save_file(state | {name: state[name].astype(np.int8)}, first)
    assert f"{name} is stored as I8" in refused(ours)


def folder_of_transformers(path, **changes):
    """A Llama with a head of its own, and its config as a dict to change."""
    torch.manual_seed(1)
    transformers.AutoModelForCausalLM.from_config(llama(1, 2)).save_pretrained(path)
    return json.loads((path / "config.json").read_text()) | changes


def test_a_head_beside_a_tied_embedding_must_be_the_embedding(tmp_path):
    """Equal, it is the tied model of transformers; another is refused, as releases of transformers differ."""
    description = folder_of_transformers(tmp_path, tie_word_embeddings=True)
    (tmp_path / "config.json").write_text(json.dumps(description))
    assert "tie_word_embeddings=true, and the stored lm_head.weight is not the embedding" in refused(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    embedding = state["model.embed_tokens.weight"]
    late = embedding.copy()
    late[-1, -1] += 1
    for head in late, embedding.astype(np.float16), embedding[:-1]:
        save_file(state | {"lm_head.weight": head}, tmp_path / "model.safetensors")
        assert "not the embedding" in refused(tmp_path)
    save_file(state | {"lm_head.weight": embedding}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    checkpoint, (model, _) = Checkpoint(tmp_path), state_of(tmp_path)
    assert checkpoint.config.tied_embedding and "head" not in checkpoint.load(mesh_of())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_beside_its_base_is_refused(ours, name):
    (ours / name).write_bytes(b"{}")
    assert "has an adapter without adapter_" in refused(ours) and name not in refused(ours)


def test_weights_that_are_there_twice_are_refused(ours):
    shard = shards(ours)[0]
    (ours / "model.safetensors").write_bytes(shard.read_bytes())
    assert "there is model.safetensors, and a model.safetensors.index.json of other files" in refused(ours)
    (ours / "model.safetensors").unlink()
    index = json.loads((ours / hf_files.INDEX).read_text())
    index["weight_map"]["model.embed_tokens.weight"] = shards(ours)[1].name
    (ours / hf_files.INDEX).write_text(json.dumps(index))
    assert f"model.embed_tokens.weight is in {shard.name}, and {hf_files.INDEX} says" in refused(ours)


def test_every_stop_marker_that_the_folder_names_is_known(ours):
    description = json.loads((ours / "config.json").read_text())
    says = lambda name, value: (ours / name).write_text(json.dumps(description | {"eos_token_id": value}))
    for own, generation, expected in [
        (3, [5, 3], (3, 5)),
        ([7, 2], 9, (2, 7, 9)),
        (None, [4], (4,)),
        ([], None, ()),
        (0, 39, (0, 39)),
    ]:
        says("config.json", own)
        says("generation_config.json", generation)
        assert Checkpoint(ours).eos_ids == expected
    for bad in ("3", -1, 40, [1, 40], True, 1.0, [None], {"a": 1}):
        says("generation_config.json", bad)
        assert "generation_config.json: eos_token_id=" in refused(ours)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(["config.json", hf_files.INDEX, "shard"]), place=st.floats(0, 1), bit=st.integers(0, 8))
def test_damage_is_a_refusal_or_what_a_strict_reader_reads(tmp_path_factory, name, place, bit):
    """Every file of a folder, cut off at `place` (bit 8), or with one bit there turned."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    if not path.exists():
        write(path, shard_bytes=40_000)
    file = shards(path)[0] if name == "shard" else path / name
    whole = file.read_bytes()
    reach = min(len(whole), 2500) if name == "shard" else len(whole)  # the header of a shard is what can break
    at = min(int(place * reach), reach - 1)
    damaged = bytearray(whole[:at] if bit == 8 else whole)
    if bit < 8:
        damaged[at] ^= 1 << bit
    file.write_bytes(damaged)
    try:
        checkpoint = Checkpoint(path)
        try:
            config = transformers.AutoConfig.from_pretrained(path)
        except Exception:  # of something that has no meaning here, such as the dtype in which it would load
            return
        assert config.hidden_size == checkpoint.config.D and checkpoint.config.norm_eps == config.rms_norm_eps
        for stored in checkpoint.files:
            load_file(stored)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        file.write_bytes(whole)


# ---- Export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "shard_bytes"), [("float32", 10**9), ("bfloat16", 20_000)])
def test_there_and_back_is_exact_and_transformers_reads_it(folder, dtype, shard_bytes, tmp_path):
    """transformers -> mesh -> folder -> transformers, from 8 devices: the same bits, in the dtype asked for."""
    checkpoint, mesh = Checkpoint(folder), mesh_of(fsdp=4, tensor=2)
    out = tmp_path / "out"
    options = dict(description=to_hf_config(checkpoint.config), files={"note.txt": b"x"}, dtype=dtype)
    save(out, checkpoint.load(mesh, dtype), checkpoint.config, mesh, shard_bytes=shard_bytes, **options)
    assert (out / hf_files.INDEX).exists() == (shard_bytes < 10**9) and len(shards(out)) > (shard_bytes < 10**9)
    assert (out / "note.txt").read_bytes() == b"x" and [p.name for p in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
    model, state = state_of(out)
    assert str(model.dtype) == f"torch.{dtype}"
    expected = state_of(folder, getattr(torch, dtype))[1]
    assert state.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(state[name], x, err_msg=name)


def test_logits_of_an_exported_model_are_ours(folder, tmp_path):
    checkpoint, mesh = Checkpoint(folder), mesh_of()
    params = jax.tree.map(lambda x: 1.1 * x, checkpoint.load(mesh))  # as if it had been trained
    save(tmp_path / "out", params, checkpoint.config, mesh, description=to_hf_config(checkpoint.config), files={})
    tokens = np.random.default_rng(0).integers(0, checkpoint.config.V, (2, 13)).astype(np.int32)

    @jax.jit
    def logits(params):
        decoder = build(checkpoint.config).bind(params)
        return decoder.logits(decoder(tokens)[0])

    with torch.no_grad():
        theirs = state_of(tmp_path / "out")[0](torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    assert theirs.std() > 0.01
    np.testing.assert_allclose(logits(params), theirs, rtol=0, atol=1e-4)


def test_an_export_is_whole_or_not_there(tmp_path, monkeypatch):
    """A failure leaves nothing; what a kill left is cleared away; a folder that is there is not touched."""
    write_shard, calls = hf_files._write_shard, []

    def fails_late(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write_shard(*arguments)

    monkeypatch.setattr(hf_files, "_write_shard", fails_late)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "out", shard_bytes=40_000)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "model-00007-of-00009.safetensors").write_text("left by a kill")
    write(tmp_path / "out", shard_bytes=40_000)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model-00007-of-00009.safetensors" not in names
    assert names == {"config.json", hf_files.INDEX, *(path.name for path in shards(tmp_path / "out"))}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "out")
    with pytest.raises(UserError, match="'float3'"):
        write(tmp_path / "other", dtype="float3")


# ---- Two processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_of_two_processes_reads_its_own_half(tmp_path):
    """And the first of them writes the whole, bit for bit."""
    write(tmp_path / "model", shard_bytes=40_000)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = ENVIRONMENT | {
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.getcwd(),
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    command = [sys.executable, "-m", "tests.models.counted", str(tmp_path / "model"), str(port)]
    processes = [subprocess.Popen([*command, str(number)], **pipes) for number in range(2)]
    done = [process.communicate(timeout=120) for process in processes]
    for out, stderr in done:
        read, held, whole = json.loads(out.splitlines()[-1]) if out else pytest.fail(stderr)
        assert read == held < 0.55 * whole
    again, first = (
        {name: x for file in shards(tmp_path / name) for name, x in load_file(file).items()}
        for name in ("again", "model")
    )
    assert again.keys() == first.keys()
    assert [name for name in first if again[name].tobytes() != first[name].tobytes()] == []
