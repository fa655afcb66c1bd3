"""Runs the program on Cloud TPU VMs, without a cluster.

  python -m launch.tpu_vm create --name=mine --zone=ZONE --topology=v5e:4x4 --service_account=ACCOUNT
  python -m launch.tpu_vm run --name=mine --zone=ZONE --image=IMAGE@sha256:... -- \\
      --config=configs/llama3_8b_gsm8k.py --workdir=gs://BUCKET/mine
  python -m launch.tpu_vm delete --name=mine --zone=ZONE

create requests the slices; run starts the image on all their workers, under launch.supervise, and returns; logs follows
worker 0 of the first slice; stop lets the program save and end; delete returns the TPUs. With several slices, give
--slices to each. --dry_run prints the gcloud commands, which use gcloud's login and project. After a preemption:
delete, create, run; the run continues from its last checkpoint.
"""

import argparse
import shlex
import sys

from launch import cli
from launch.slices import slices

TPUS = ["gcloud", "compute", "tpus"]
GRACE = 600  # seconds to save in, where the machine lasts that long
BACKOFF = 40  # seconds before a restart, longer than the heartbeat timeout: the other workers notice the failure first


def main(argv: list[str]) -> None:
    args = _parse(argv)
    zone, dry_run = f"--zone={args.zone}", args.dry_run
    if args.step == "create":
        cli.send([create(args)], dry_run)
        print(f"{shlex.join([*TPUS, 'queued-resources', 'list', zone])} shows when it is ACTIVE", file=sys.stderr)
    elif args.step == "run":
        cli.warn_about_tag(args.image)
        command = start_command(args.name, args.image, cli.program_arguments(args.rest, several=True))
        cli.send([ssh(node, args.zone, "all", command) for node in _nodes(args)], dry_run)
    elif args.step == "logs":
        cli.send([ssh(_nodes(args)[0], args.zone, "0", f"sudo docker logs --follow {args.name}")], dry_run)
    elif args.step == "stop":
        command = f"sudo docker stop {args.name}"
        cli.send([ssh(node, args.zone, "all", command) for node in _nodes(args)], dry_run)
    else:
        cli.send([[*TPUS, "queued-resources", "delete", args.name, zone, "--force", "--quiet"]], dry_run)


def _parse(argv: list[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", required=True, type=cli.check_name, help="of the queued resource")
    common.add_argument("--zone", required=True, help="where its TPUs are")
    common.add_argument("--slices", type=int, default=1, help="how many (default: 1)")
    common.add_argument("--dry_run", action="store_true", help="print the commands, and send nothing")
    parser = cli.parser(__doc__)
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    made = steps.add_parser("create", parents=[common], help="queue for slices")
    made.add_argument("--topology", required=True, help="CHIP:SHAPE of a slice, as configs/plan.py takes it")
    made.add_argument("--service_account", required=True, help="e-mail address of the account the workers act as")
    capacity = made.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="TPUs that may be taken away at any time")
    capacity.add_argument("--reserved", action="store_true", help="TPUs of the project's reservation")
    made = steps.add_parser("run", parents=[common], help="start the program on all workers")
    made.add_argument("--image", required=True, help="the container image, NAME@sha256:...")
    cli.add_rest(made, "arguments of premem_jax.main; --workdir is a gs:// folder")
    steps.add_parser("logs", parents=[common], help="follow worker 0 of the first slice")
    steps.add_parser("stop", parents=[common], help="let the program save and end")
    steps.add_parser("delete", parents=[common], help="give the TPUs back")
    return parser.parse_args(argv)


def _nodes(args: argparse.Namespace) -> list[str]:
    """Names of the TPUs, one per slice, as the queued resource gives them."""
    return [args.name] if args.slices == 1 else [f"{args.name}-{number}" for number in range(args.slices)]


def create(args: argparse.Namespace) -> list[str]:
    """The command that requests slices.

    Raises:
      UserError: an unknown slice, or one that the Cloud TPU API does not offer.
    """
    found = slices(args.topology, args.slices)
    one = [f"--node-id={args.name}"]
    many = [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
    return [
        *TPUS,
        "queued-resources",
        "create",
        args.name,
        f"--zone={args.zone}",
        f"--accelerator-type={found.accelerator_type}",
        f"--runtime-version={found.generation.runtime}",
        f"--service-account={args.service_account}",
        *(one if args.slices == 1 else many),
        *(f"--{capacity}" for capacity in ("spot", "reserved") if getattr(args, capacity)),
    ]


def ssh(node: str, zone: str, worker: str, command: str) -> list[str]:
    """The command that runs a shell command on a worker, or on `all`."""
    return [*TPUS, "tpu-vm", "ssh", node, f"--zone={zone}", f"--worker={worker}", f"--command={command}"]


def start_command(name: str, image: str, arguments: list[str]) -> str:
    """The shell command of a worker: runs the program in a container with access to TPU chips and network.

    It is not a system service: nothing restarts by itself after the program's end or a reboot.
    """
    workdir = next(a for a in reversed(arguments) if a.startswith("--workdir=")).partition("=")[2]
    container = ["--privileged", "--network=host", "--entrypoint=python", f"--stop-timeout={GRACE}"]
    supervise = ["-m", "launch.supervise", f"--grace={GRACE}", f"--backoff={BACKOFF}", f"--watch={workdir}/checkpoints"]
    program = ["python", "-m", "premem_jax.main", *arguments]
    commands = [
        ["sudo", "gcloud", "auth", "configure-docker", image.partition("/")[0], "--quiet"],
        ["sudo", "docker", "pull", image],
        ["sudo", "docker", "rm", "--force", name],  # an earlier one
        ["sudo", "docker", "run", "--detach", f"--name={name}", *container, image, *supervise, "--", *program],
    ]
    login, pull, remove, run = map(shlex.join, commands)
    return f"{login} && {pull} && {{ {remove} 2>/dev/null; {run}; }}"


if __name__ == "__main__":
    cli.run(main)
