"""Runs the program by XManager, on this machine, on Vertex AI or on Kubernetes.

  python -m launch.xm_launch --name=mine --executor=local -- --config=configs/quickstart.py
  python -m launch.xm_launch --name=mine --executor=vertex --image=IMAGE@sha256:... --resource=a100=8 -- \\
      --config=configs/llama3_8b_gsm8k.py --workdir=gs://BUCKET/mine

A run is one process on one machine. --members=all, or some names, starts one work unit for each member of a study.
--resource takes XManager's names, such as cpu=8, ram=64e9 (bytes), l4_24th=1 or a100=8; on Vertex, XManager finds
machines only for these two kinds of GPU. It supports no TPU after v3; use launch.gke or launch.tpu_vm for those.
XManager has many requirements; install it in a separate environment (with -r requirements.txt, to run here):

  pip install -r launch/requirements.txt

--dry_run needs neither XManager nor an account, and prints the job as JSON.
"""

import argparse
import json
import sys

from launch import cli
from premem_jax.errors import UserError

EXECUTORS = ("local", "vertex", "kubernetes")


def main(argv: list[str]) -> None:
    args = _parse(argv)
    job = describe(args)
    if args.dry_run:
        print(json.dumps(job, indent=2))
    else:
        submit(job)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--name", required=True, type=cli.check_name, help="title of the experiment")
    parser.add_argument("--executor", required=True, choices=EXECUTORS, help="where it runs")
    parser.add_argument("--image", help="the container image, NAME@sha256:...; local: without one, this checkout runs")
    parser.add_argument("--resource", action="append", default=[], metavar="NAME=AMOUNT", help="what it needs; repeat")
    parser.add_argument("--service_account", help="the account it acts as: vertex its id, kubernetes its name there")
    cli.add_members(parser)
    parser.add_argument("--dry_run", action="store_true", help="print what XManager would be given, and send nothing")
    cli.add_rest(parser, "arguments of premem_jax.main; vertex and kubernetes: --workdir is a gs:// folder")
    return parser.parse_args(argv)


def describe(args: argparse.Namespace) -> dict:
    """The job as plain values.

    Raises:
      UserError: a cloud job without image or service account, a TPU, or an amount that is not a number.
    """
    cloud = args.executor != "local"
    if cloud and not (args.image and args.service_account):
        raise UserError(
            f"--executor={args.executor} needs --image and --service_account, which may write to the bucket"
        )
    resources = dict(map(_resource, args.resource))
    if any(name.lower().startswith("tpu") for name in resources):
        raise UserError("XManager asks for no TPU that this program runs on; launch.gke and launch.tpu_vm do")
    if args.image:
        cli.warn_about_tag(args.image)
    command = {"image": args.image} if args.image else {"binary": sys.executable}
    module = [] if args.image else ["-m", "premem_jax.main"]
    rest = cli.program_arguments(args.rest, several=False) if cloud else args.rest
    units = [*cli.members(args.members, rest).values()] if args.members else [rest]
    return {
        "title": args.name,
        "executor": args.executor,
        "resources": resources,
        "service_account": args.service_account,
        **command,
        "work_units": [[*module, *unit] for unit in units],
    }


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError as error:
        raise UserError(f"--resource={text}: write NAME=AMOUNT, such as a100=8 or ram=64e9") from error


def submit(job: dict) -> None:
    """Submits the job to XManager; waits for its end if it runs locally.

    Raises:
      UserError: XManager is not installed or does not know a resource.
    """
    try:
        from absl import app
        from xmanager import xm, xm_local
        from xmanager.xm_local import executables
    except ImportError as error:
        raise UserError(f"{error}; pip install -r launch/requirements.txt, or --dry_run") from error

    executor = {"local": xm_local.Local, "vertex": xm_local.Vertex, "kubernetes": xm_local.Kubernetes}[job["executor"]]
    try:
        requirements = xm.JobRequirements(**job["resources"])
    except KeyError as error:
        raise UserError(f"--resource: {error.args[0]}") from error

    def launch(_argv) -> None:
        with xm_local.create_experiment(experiment_title=job["title"]) as experiment:
            if job["executor"] != "local":
                # Not as a package, because XManager copies the image of a package to another registry.
                executable = executables.GoogleContainerRegistryImage(name=job["title"], image_path=job["image"])
            else:
                here = xm.Container(job["image"]) if "image" in job else xm.Binary(job["binary"])
                [executable] = experiment.package([xm.Packageable(here, executor.Spec())])
            for arguments in job["work_units"]:
                experiment.add(xm.Job(executable, executor(requirements), args=arguments))

    account = {"vertex": "--xm_gcp_service_account_name", "kubernetes": "--xm_k8s_service_account_name"}
    flags = [f"{account[job['executor']]}={job['service_account']}"] if job["executor"] in account else []
    app.run(launch, argv=[sys.argv[0], *flags])


if __name__ == "__main__":
    cli.run(main)
