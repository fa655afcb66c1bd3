"""What XManager would be given, without it; and, where it is installed, what it makes of that."""

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import kubernetes_validate
import pytest

from launch import xm_launch
from tests.launch.called import call

ROOT = Path(__file__).parents[2]
IMAGE = "REGISTRY/premem@sha256:" + "0" * 64
PROGRAM = ["--config=configs/llama3_8b_gsm8k.py", "--workdir=gs://BUCKET/mine", "--config.data.path=a b; 'c'"]
CLOUD = [f"--image={IMAGE}", "--service_account=premem"]
needs_xmanager = pytest.mark.skipif(
    importlib.util.find_spec("xmanager") is None, reason="needs pip install -r launch/requirements.txt"
)


def launch(*arguments: str, **environment) -> subprocess.CompletedProcess:
    if not environment:
        return call(xm_launch, "--name=mine", *arguments)
    command = [sys.executable, "-m", "launch.xm_launch", "--name=mine", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("executor", ["vertex", "kubernetes"])
def test_a_job_in_the_cloud(executor):
    done = launch(
        "--dry_run", f"--executor={executor}", *CLOUD, "--resource=a100=8", "--resource=ram=64e9", "--", *PROGRAM
    )
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout) == {
        "title": "mine",
        "executor": executor,
        "resources": {"a100": 8, "ram": 64e9},
        "service_account": "premem",
        "image": IMAGE,
        "work_units": [PROGRAM],
    }


def test_a_job_here_runs_this_checkout_with_this_python():
    done = launch("--dry_run", "--executor=local", "--", "--help")
    job = json.loads(done.stdout)
    assert "image" not in job
    ran = subprocess.run([job["binary"], *job["work_units"][0]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "Learning dynamics of LLM finetuning" in ran.stdout


def test_a_study_has_a_work_unit_for_each_member():
    program = ["--config=tests/configs/tiny_sweep.py", "--workdir=gs://BUCKET/mine"]
    done = launch("--dry_run", "--executor=vertex", *CLOUD, "--members=fast,slow", "--", *program)
    units = json.loads(done.stdout)["work_units"]
    assert units == [[*program, f"--config.study.member={name}"] for name in ("fast", "slow")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor=vertex", "--", *PROGRAM], "error: --executor=vertex needs --image and --service_account"),
        (["--executor=kubernetes", *CLOUD, "--", PROGRAM[0]], "error: the program needs --workdir=gs://"),
        (["--executor=local", "--resource=a100", "--", *PROGRAM], "error: --resource=a100: write NAME=AMOUNT"),
        (["--executor=kubernetes", *CLOUD, "--resource=tpu_v5e=4", "--", *PROGRAM], "launch.gke and launch.tpu_vm do"),
        (["--executor=slurm", "--", *PROGRAM], "argument --executor: invalid choice: 'slurm'"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(arguments, message):
    done = launch("--dry_run", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""


@pytest.mark.skipif(importlib.util.find_spec("xmanager") is not None, reason="XManager is installed")
def test_without_xmanager_the_launcher_says_how_to_get_it():
    done = launch("--executor=local", "--", "--help")
    assert done.returncode == 2 and "pip install -r launch/requirements.txt" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@needs_xmanager
def test_xmanager_runs_the_program_here(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"output": "#### 4", "answer": "4"}\n{"output": "#### 5", "answer": "4"}\n')
    program = ["--config=configs/grade.py:task=gsm8k", f"--config.data.path={rows}", f"--workdir={tmp_path}/with space"]
    done = launch("--executor=local", "--", *program, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "with space" / "summary.json").read_text())["accuracy"] == 0.5


@needs_xmanager
def test_an_unknown_resource_is_named(tmp_path):
    done = launch("--executor=local", "--resource=abacus=1", "--", *PROGRAM, HOME=str(tmp_path))
    assert done.returncode == 2 and "error: --resource: Unknown ResourceType 'abacus'" in done.stderr


@needs_xmanager
def test_what_xmanager_sends_to_kubernetes(tmp_path):
    """A stand-in for the API server keeps what is posted."""
    posted = []

    class Server(http.server.BaseHTTPRequestHandler):
        def _reply(self, body: dict) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self):
            self._reply({"kind": "ServiceList", "apiVersion": "v1", "metadata": {}, "items": []})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posted.append(body)
            self._reply(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    done = launch(
        *("--executor=kubernetes", *CLOUD, "--resource=a100=8", "--", *PROGRAM),
        HOME=str(tmp_path),
        KUBECONFIG=str(tmp_path / "config"),
    )
    server.shutdown()
    assert done.returncode == 0, done.stderr
    _, job = posted  # a service before it
    kubernetes_validate.validate({"apiVersion": "batch/v1", "kind": "Job", **job}, "1.33", strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (container["image"], container["args"]) == (IMAGE, PROGRAM) and pod["serviceAccount"] == "premem"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
