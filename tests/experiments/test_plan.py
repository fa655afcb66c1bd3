"""Plans compiled for TPUs that are not here."""

import json

import jax
import pytest

from configs import llama3_8b_gsm8k, llama3_8b_math
from premem_jax import sharding
from premem_jax.running.topology import CHIPS, devices, topology
from tests.processes import finish, mistake

pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[plan]'")


def plan(tmp_path, options, *overrides):
    done = finish(f"--workdir={tmp_path}", *overrides, config=f"configs/plan.py:{options}", seconds=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((tmp_path / "summary.json").read_text()), done.stdout


SMALL = ("--config.train.batch=16", "--config.train.micro_batches=2", "--config.data.buckets=(128,)")
SMALL += ("--config.train.packed_tokens=(64,)",)
for split in "train", "test":  # small programs compile in less time
    SMALL += (f"--config.evals.{split}_likelihood.batch=16", f"--config.evals.{split}_likelihood.packed_tokens=(64,)")
    SMALL += (f"--config.evals.{split}_accuracy.max_new_tokens=64",)


def test_a_small_model_fits_and_the_plan_is_kept(tmp_path):
    summary, out = plan(tmp_path, "model=llama_small,topology=v5e:2x2", *SMALL)
    assert summary["fits"] and summary["nearest"] == {} and summary["chips"] == 4 and "Everything fits." in out
    for name in "train", "score", "sample":
        program = summary["programs"][name]
        assert 0 < program["argument_bytes_per_chip"] < program["peak_hbm_bytes_per_chip"] < 2**30
        assert program["model_flops"] > 0 and program["compile_seconds"] > 0 and program["roofline_seconds"] > 0
        assert summary["chip_hours_at_roofline"][name] > 0
    train, test = (summary["programs"]["sample"]["batch_seconds"][f"{split}_accuracy"] for split in ("train", "test"))
    assert test < train  # only training examples have a pass over references
    hours = 6 * (117 * train + 21 * test) * 4 / 3600  # 7,473 and 1,319 examples, 64 at a time, after each of 6 epochs
    assert summary["chip_hours_at_roofline"]["sample"] == pytest.approx(hours)
    files = sorted((tmp_path / "programs").iterdir())
    kept = [path.stat().st_mtime_ns for path in files]
    again, _ = plan(tmp_path, "model=llama_small,topology=v5e:2x2", *SMALL)
    of_this_launch = ("host_memory_peak_gb", "sha256")
    assert again | {key: summary[key] for key in of_this_launch} == summary
    assert kept == [path.stat().st_mtime_ns for path in files]


@pytest.mark.parametrize(
    "options, words",
    [
        ("topology=v5e-16", ["topology='v5e-16'", "v5e:4x4"]),
        ("topology=v9:2x2", ["topology='v9:2x2'", "v5p"]),
        ("topology=v5e:3x5", ["topology='v5e:3x5'", "shape"]),
        ("slices=0", ["slices=0"]),
        ("model=llama4", ["llama4"]),
        ("task=gsm9k", ["gsm9k", "gsm8k"]),
        ("slices=2", ["data=1 must be a multiple of the 2 slices"]),
        ("task=math", ["train.batch", "8 parts"]),
    ],
)
def test_a_wrong_option_is_named(tmp_path, options, words):
    overrides = {"slices=2": ["--config.mesh.data=1"], "task=math": ["--config.train.batch=20"]}.get(options, [])
    message = mistake(finish(f"--workdir={tmp_path / 'new'}", *overrides, config=f"configs/plan.py:{options}"))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    "kind, shape, chips", [("v5e", "2x4", 8), ("v6e", "2x4", 8), ("v5p", "2x2x2", 8), ("v4", "2x2x1", 4)]
)
def test_every_chip_has_a_compiler(kind, shape, chips):
    place = topology(f"{kind}:{shape}")
    assert place.chips == len(devices(place)) == chips and place.chip == CHIPS[kind]


def test_slices_of_real_topologies_lie_along_data():
    found = devices(topology("v5e:2x2", slices=2))
    mesh = sharding.make_mesh(dict(data=2, fsdp=-1, tensor=2), found)
    assert mesh.shape == dict(data=2, fsdp=2, tensor=2)
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize("study, sizes", [(llama3_8b_gsm8k, (1, 16, 1)), (llama3_8b_math, (1, 8, 2))])
def test_the_meshes_of_the_studies_lie_on_a_torus(study, sizes):
    """Also where an axis of the mesh takes a part of one of the torus."""
    mesh = sharding.make_mesh(study.get_config().mesh, devices(topology("v5e:4x4")))
    assert mesh.devices.shape == sizes and len(set(mesh.devices.flat)) == 16


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama3_8b", "gemma2_9b"])
def test_the_full_models_fit_sixteen_small_chips(tmp_path, model):
    summary, _ = plan(tmp_path, f"model={model},topology=v5e:4x4,search=false")
    assert summary["fits"] and summary["chips"] == 16
    assert summary["programs"]["train"]["argument_bytes_per_chip"] > 0.7 * 12 * 8e9 / 16


@pytest.mark.slow
def test_what_does_not_fit_gets_the_nearest_that_does(tmp_path):
    """A billion parameters on four chips, with everything kept for the backward pass of 64 long sequences each."""
    overrides = ["--config.model.remat=none", "--config.train.micro_batches=1", "--config.train.batch=256"]
    overrides += ["--config.train.packed_tokens=()"]
    summary, out = plan(tmp_path, "model=llama3_2_1b,topology=v5e:2x2", *overrides)
    assert not summary["fits"] and not summary["programs"]["train"]["fits"]
    nearest = summary["nearest"]["train"]
    assert nearest["peak_hbm_bytes_per_chip"] < summary["hbm_bytes_per_chip"]
    assert nearest["change"]["model.remat"] in ("dots", "full") and "--config.model.remat=" in out
