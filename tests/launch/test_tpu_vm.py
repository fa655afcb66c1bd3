"""The commands for Cloud TPU VMs: what gcloud is given, and what a worker's shell makes of it."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import tpu_vm
from tests.launch.called import call

ROOT = Path(__file__).parents[2]
IMAGE = "REGISTRY/premem@sha256:" + "0" * 64
MINE = ["--name=mine", "--zone=ZONE"]
# Values that a shell takes apart where they are not quoted.
ARGUMENTS = [
    "--config=configs/plan.py:task=math",
    "--workdir=gs://BUCKET/mine",
    "--config.data.path=a b; $(x) 'c' \"d\"",
]


def launch(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
    if path is None:
        return call(tpu_vm, *arguments)
    command = [sys.executable, "-m", "launch.tpu_vm", *arguments]
    return subprocess.run(command, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, timeout=60)


def commands(*arguments: str) -> list[list[str]]:
    done = launch(*arguments[:1], "--dry_run", *MINE, *arguments[1:])
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_slices_are_queued_for():
    account = "--service_account=NAME@PROJECT.iam.gserviceaccount.com"
    [one] = commands("create", "--topology=v5e:4x4", account, "--spot")
    assert one[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
    assert set(one[6:]) == {
        "--zone=ZONE",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--service-account=NAME@PROJECT.iam.gserviceaccount.com",
        "--node-id=mine",
        "--spot",
    }
    [two] = commands("create", "--topology=v4:2x2x4", account, "--slices=2", "--reserved")
    assert {"--accelerator-type=v4-32", "--node-count=2", "--node-prefix=mine", "--reserved"} <= set(two)
    assert not any(flag.startswith("--node-id") for flag in two)


def test_every_worker_of_every_slice_runs_the_program_and_gets_its_arguments_whole(tmp_path):
    """Stand-ins: gcloud runs the command as ssh would, in a shell, and docker keeps what it is given."""
    scripts = {
        "gcloud": f"""
            [ "$1" = auth ] && {{ echo "$@" >> {tmp_path}/login; exit; }}
            echo "$5 $7" >> {tmp_path}/workers
            for last; do :; done
            exec /bin/sh -c "${{last#--command=}}"
        """,
        "sudo": 'exec "$@"',
        "docker": f'[ "$1" = run ] && printf "%s\\n" "$@" > {tmp_path}/run\necho "$1" >> {tmp_path}/steps',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = launch("run", *MINE, "--slices=2", f"--image={IMAGE}", "--", *ARGUMENTS, path=f"{tmp_path}:/bin:/usr/bin")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "workers").read_text() == "mine-0 --worker=all\nmine-1 --worker=all\n"
    assert (tmp_path / "login").read_text() == "auth configure-docker REGISTRY --quiet\n" * 2
    assert (tmp_path / "steps").read_text().split() == ["pull", "rm", "run"] * 2
    given = (tmp_path / "run").read_text().splitlines()
    image, dashes = given.index(IMAGE), given.index("--")
    assert {"--privileged", "--network=host", "--detach", "--name=mine", "--entrypoint=python"} <= set(given[:image])
    assert given[image + 1 : image + 3] == ["-m", "launch.supervise"]
    assert "--watch=gs://BUCKET/mine/checkpoints" in given[image:dashes]
    assert given[dashes + 1 :] == ["python", "-m", "premem_jax.main", *ARGUMENTS, "--distributed=on"]


def test_a_login_that_fails_starts_nothing(tmp_path):
    (tmp_path / "sudo").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/steps\n[ "$1" != gcloud ]\n')
    (tmp_path / "sudo").chmod(0o755)
    text = tpu_vm.start_command("mine", IMAGE, ARGUMENTS)
    done = subprocess.run(["/bin/sh", "-c", text], env={"PATH": f"{tmp_path}:/bin"}, timeout=60)
    assert done.returncode != 0 and "docker run" not in (tmp_path / "steps").read_text()


def test_the_workers_command_passes_shellcheck(tmp_path):
    script = tmp_path / "start.sh"
    script.write_text("#!/bin/sh\n" + tpu_vm.start_command("mine", IMAGE, ARGUMENTS) + "\n")
    found = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [found if found.exists() else shutil.which("shellcheck"), script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_other_steps():
    assert commands("delete") == [
        ["gcloud", "compute", "tpus", "queued-resources", "delete", "mine", "--zone=ZONE", "--force", "--quiet"]
    ]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    [logs] = commands("logs", "--slices=2")
    assert logs == [*ssh, "mine-0", "--zone=ZONE", "--worker=0", "--command=sudo docker logs --follow mine"]
    stops = commands("stop", "--slices=2")
    assert [stop[5] for stop in stops] == ["mine-0", "mine-1"]
    assert {(stop[7], stop[8]) for stop in stops} == {("--worker=all", "--command=sudo docker stop mine")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["create", "--topology=v5p:4x4x12", "--service_account=a@b"],
            "an accelerator type has a number of cores alone",
        ),
        (["create", "--topology=v5e:5x5", "--service_account=a@b"], "v5e has the shapes"),
        (["create", "--topology=h100:8", "--service_account=a@b"], "TPUs (v4, v5e, v5p, v6e), not GPUs"),
        (["create", "--topology=v5e:4x4"], "required: --service_account"),
        (["run", f"--image={IMAGE}", "--", "--config=c.py", "--workdir=runs/mine"], "--workdir=gs://BUCKET/FOLDER"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(arguments, message):
    done = launch(*arguments[:1], "--dry_run", *MINE, *arguments[1:])
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""
