"""The manifests against the schemas of Kubernetes and JobSet, and what they ask of a cluster."""

import contextlib
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from launch import gke
from launch.slices import GENERATIONS, slices
from premem_jax.errors import UserError
from tests.launch.called import call

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "jobset.json").read_text())
IMAGE = "REGISTRY/premem@sha256:" + "0" * 64
PROGRAM = [
    "--config=configs/llama3_8b_gsm8k.py",
    "--workdir=gs://BUCKET/runs/mine",
    "--config.train.steps='a b: \"c\"'",
]
MINE = ["--name=mine", f"--image={IMAGE}", "--service_account=premem"]


def launch(*arguments: str) -> subprocess.CompletedProcess:
    return call(gke, *arguments)


def manifest(*options: str) -> dict:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        gke.main(["--dry_run", *MINE, *options, "--", *PROGRAM])
    return yaml.safe_load(out.getvalue())


def validate(jobset: dict) -> dict:
    """Checks a JobSet against both schemas; returns the pod that its one replicated job starts."""
    jsonschema.validate(jobset, SCHEMA)
    [job] = jobset["spec"]["replicatedJobs"]
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"], **job["template"]}
    kubernetes_validate.validate(made, "1.33", strict=True)
    return job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("capacity", [[], ["--spot"], ["--reservation=RESERVED"]])
@pytest.mark.parametrize("topology", ["v5e:4x4", "v6e:16x16", "v5p:2x2x2", "v4:4x4x8"])
@pytest.mark.parametrize("count", [1, 2])
def test_every_slice_gets_a_job_and_every_host_a_pod_with_its_chips(topology, count, capacity):
    jobset = manifest(f"--topology={topology}", f"--slices={count}", *capacity)
    pod = validate(jobset)
    [job] = jobset["spec"]["replicatedJobs"]
    spec, [container] = job["template"]["spec"], pod["containers"]
    assert job["replicas"] == count and spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
    chips = {kind: container["resources"][kind]["google.com/tpu"] for kind in ("requests", "limits")}
    assert chips["requests"] == chips["limits"]
    shape = topology.split(":")[1]
    assert spec["parallelism"] * chips["limits"] == math.prod(map(int, shape.split("x")))
    assert container["image"] == IMAGE and container["args"] == [*PROGRAM, "--distributed=on"]
    accelerator = GENERATIONS[topology.split(":")[0]].accelerator
    tpu = {"cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": shape}
    extra = {"--spot": {"cloud.google.com/gke-spot": "true"}}
    extra["--reservation=RESERVED"] = {"cloud.google.com/reservation-name": "RESERVED"}
    assert pod["nodeSelector"] == tpu | extra.get("".join(capacity), {})
    tolerated = {toleration["key"] for toleration in pod["tolerations"]}
    assert tolerated == {"google.com/tpu"} | ({"cloud.google.com/gke-spot"} if capacity == ["--spot"] else set())
    assert pod["serviceAccountName"] == "premem" and pod["automountServiceAccountToken"] is False


def test_what_a_failed_pod_leads_to():
    """The messages are those that KEP 262 of JobSet quotes from the Job controller."""
    policy = manifest("--topology=v5e:4x4", "--max_restarts=3")["spec"]["failurePolicy"]

    def action(reason: str, message: str) -> str:
        for rule in policy["rules"]:
            patterns = rule["onJobFailureMessagePatterns"]
            if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]
        return "RestartJobSet"  # JobSet's default, which counts

    rule = "matching FailJob rule at index"
    exited = f"Container main for pod default/mine-slice-0-1-x2x75 failed with exit code {{}} {rule} 0"
    disrupted = f"Pod default/mine-slice-0-2-abcde has condition DisruptionTarget {rule} 1"
    assert action("PodFailurePolicy", exited.format(2)) == "FailJobSet"
    assert action("PodFailurePolicy", exited.format(75)) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("PodFailurePolicy", disrupted) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("BackoffLimitExceeded", "Job has reached the specified backoff limit") == "RestartJobSet"
    assert policy["maxRestarts"] == 3


def test_the_pod_policy_names_the_exit_codes_that_jobset_tells_apart():
    [job] = manifest("--topology=v5e:4x4")["spec"]["replicatedJobs"]
    codes, disruption = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"] == {"containerName": "main", "operator": "In", "values": [2, 75]}
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_a_queue_and_a_namespace_are_named():
    jobset = manifest("--topology=v6e:1x1", "--queue=multislice-queue", "--namespace=research", "--grace=30")
    pod = validate(jobset)
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "multislice-queue"}
    assert jobset["metadata"]["namespace"] == "research" and pod["terminationGracePeriodSeconds"] == 30
    assert pod["containers"][0]["args"] == PROGRAM  # one process: nobody else to find
    assert "labels" not in manifest("--topology=v6e:1x1")["metadata"]


STUDY = ["--config=tests/configs/tiny_sweep.py", "--config.train.epochs=2", "--workdir=gs://BUCKET/mine"]


@pytest.mark.parametrize("members", ["all", "wild,slow"])
def test_a_study_has_a_jobset_for_each_member(members):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        gke.main(["--dry_run", *MINE, "--topology=v5e:4x4", f"--members={members}", "--", *STUDY])
    names = ["slow", "fast", "wild"]  # of the config, in its order
    for jobset, name in zip(
        yaml.safe_load_all(out.getvalue()), names if members == "all" else members.split(","), strict=True
    ):
        [container] = validate(jobset)["containers"]
        assert jobset["metadata"]["name"] == f"mine-{names.index(name)}"
        assert container["args"] == [*STUDY, "--distributed=on", f"--config.study.member={name}"]


@pytest.mark.parametrize(
    ("program", "members", "message"),
    [
        (STUDY, "slwo", "--members: 'slwo' is no member .*slow, fast, wild"),
        (PROGRAM[:2], "all", "--members is for a study"),
        (["--config=missing.py", STUDY[-1]], "all", "missing.py"),
    ],
)
def test_members_that_cannot_be_read(program, members, message):
    with pytest.raises(UserError, match=message):
        gke.main(["--dry_run", *MINE, "--topology=v5e:4x4", f"--members={members}", "--", *program])


def test_the_schemas_refuse_what_the_server_would():
    jobset = manifest("--topology=v5e:4x4")
    jobset["spec"]["failurePolicy"]["rules"][0]["action"] = "GiveUp"
    with pytest.raises(jsonschema.ValidationError, match="GiveUp"):
        validate(jobset)
    jobset = manifest("--topology=v5e:4x4")
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        validate(jobset)


@pytest.mark.parametrize(
    ("options", "program", "message"),
    [
        (["--topology=v5e:3x3"], PROGRAM, "--topology=v5e:3x3: v5e has the shapes 1x1, 2x2, 2x4"),
        (["--topology=v5p:4x4"], PROGRAM, "--topology=v5p:4x4: v5p has the shapes 2x2x1"),
        (["--topology=h100:8"], PROGRAM, "launchers start TPUs (v4, v5e, v5p, v6e), not GPUs"),
        (["--topology=v5e:2x2", "--slices=2"], PROGRAM, "--slices=2: GKE joins slices of several hosts only"),
        (["--topology=v5e:4x4", "--slices=0"], PROGRAM, "slices=0: there is at least one"),
        (["--topology=v5e:4x4"], PROGRAM[:1], "the program needs --workdir=gs://BUCKET/FOLDER"),
        (["--topology=v5e:4x4"], [PROGRAM[0], "--workdir=runs/mine"], "needs --workdir=gs://BUCKET/FOLDER"),
        (["--topology=v5e:4x4"], PROGRAM[1:], "no --config=FILE among the arguments"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(options, program, message):
    done = launch("--dry_run", *MINE, *options, "--", *program)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr


@pytest.mark.parametrize("name", ["Mine", "my_run", "1st", "a" * 41, "run-"])
def test_a_name_that_the_cluster_would_refuse(name):
    done = launch("--dry_run", *MINE[1:], f"--name={name}", "--topology=v5e:4x4", "--", *PROGRAM)
    assert done.returncode == 2 and "argument --name" in done.stderr and done.stdout == ""


def test_an_image_by_its_tag_is_warned_of():
    by_tag = launch("--dry_run", *MINE, "--image=REGISTRY/premem:latest", "--topology=v5e:4x4", "--", *PROGRAM)
    by_digest = launch("--dry_run", *MINE, "--topology=v5e:4x4", "--", *PROGRAM)
    assert by_tag.returncode == 0 and "warning: --image=REGISTRY/premem:latest has no digest" in by_tag.stderr
    assert by_digest.returncode == 0 and "warning" not in by_digest.stderr


def test_it_is_sent_as_the_dry_run_shows_it(tmp_path):
    """A stand-in for kubectl keeps what it is given; without one the launcher says what is missing."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/manifest\n')
    kubectl.chmod(0o755)
    command = [sys.executable, "-m", "launch.gke", *MINE, "--topology=v5e:4x4", "--", *PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": f"{tmp_path}:/bin:/usr/bin"}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "arguments").read_text() == "apply -f -\n"
    dry = launch("--dry_run", *MINE, "--topology=v5e:4x4", "--", *PROGRAM)
    assert (tmp_path / "manifest").read_text() == dry.stdout
    kubectl.unlink()
    done = subprocess.run(command, cwd=ROOT, env={"PATH": f"{tmp_path}"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "error: kubectl is not installed; --dry_run prints" in done.stderr


def test_accelerator_types_count_cores_of_old_chips_and_chips_of_new_ones():
    """The pairs are those of the pages that `launch/slices.py` names."""
    pairs = {"v4:2x2x1": "v4-8", "v4:4x4x4": "v4-128", "v5p:2x4x4": "v5p-64", "v5e:4x4": "v5litepod-16"}
    pairs |= {"v5e:1x1": "v5litepod-1", "v6e:2x4": "v6e-8", "v5p:16x16x16": "v5p-8192"}
    assert {name: slices(name, 1).accelerator_type for name in pairs} == pairs
    with pytest.raises(UserError, match="--topology=v5p:4x4x12: an accelerator type has a number of cores alone"):
        _ = slices("v5p:4x4x12", 1).accelerator_type
    assert [slices(n, 1).machine_type for n in ("v5e:2x4", "v6e:1x1")] == ["ct5lp-hightpu-4t", "ct6e-standard-1t"]
