"""Runs the program on TPU slices of a GKE cluster, as a JobSet.

  python -m launch.gke --name=mine --image=IMAGE@sha256:... --topology=v5e:4x4 --slices=2 --service_account=premem -- \\
      --config=configs/llama3_8b_gsm8k.py --workdir=gs://BUCKET/mine

Arguments after -- go to premem_jax.main. --dry_run prints the manifest, for kubectl apply -f -. The cluster needs
JobSet v0.10.1 or later, a node pool per slice, and a Kubernetes service account that may write to the bucket; see
docs/pods.md. A preempted run restarts as often as needed, a failed one --max_restarts times, and one with a mistake in
its command line or config never.

--members=all, or some names, starts one JobSet for each member of a study; they share the workdir.
"""

import sys

import yaml

from launch import cli
from launch.slices import Slices, slices
from premem_jax.errors import UserError


def main(argv: list[str]) -> None:
    parser = cli.parser(__doc__)
    cli.add_rest(parser, "arguments of premem_jax.main; --workdir is a gs:// folder")
    parser.add_argument("--name", required=True, type=cli.check_name, help="name of the JobSet")
    parser.add_argument("--image", required=True, help="the container image, NAME@sha256:...")
    parser.add_argument("--topology", required=True, help="CHIP:SHAPE of a slice, as configs/plan.py takes it")
    parser.add_argument("--slices", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--service_account", required=True, help="Kubernetes service account of the pods")
    parser.add_argument("--namespace", default="default", help="of the JobSet and its service account")
    capacity = parser.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="on spot nodes, which may be taken away at any time")
    capacity.add_argument("--reservation", help="name of the reservation that the nodes come from")
    parser.add_argument("--queue", help="Kueue's local queue, where the cluster has Kueue (xpk: multislice-queue)")
    parser.add_argument("--max_restarts", type=int, default=10, help="after faults (default: 10)")
    parser.add_argument("--grace", type=int, default=600, help="seconds to save in, from SIGTERM on (default: 600)")
    cli.add_members(parser)
    parser.add_argument("--dry_run", action="store_true", help="print the manifest, and send nothing")
    args = parser.parse_args(argv)
    cli.warn_about_tag(args.image)
    found = slices(args.topology, args.slices)
    arguments = cli.program_arguments(args.rest, several=found.hosts * args.slices > 1)
    launches = {args.name: arguments}
    if args.members:
        launches = {f"{args.name}-{place}": mine for place, mine in cli.members(args.members, arguments).items()}
        if len(long := max(launches, key=len)) > 40:
            raise UserError(f"--name={args.name}: {long} is longer than 40 characters; take a shorter name")
    manifests = [
        jobset(
            name=name,
            namespace=args.namespace,
            image=args.image,
            arguments=mine,
            slices=found,
            service_account=args.service_account,
            capacity=_capacity(args.spot, args.reservation),
            queue=args.queue,
            max_restarts=args.max_restarts,
            grace=args.grace,
        )
        for name, mine in launches.items()
    ]
    text = yaml.safe_dump_all(manifests, sort_keys=False, width=120)
    cli.send([["kubectl", "apply", "-f", "-"]], args.dry_run, stdin=text)
    for name, mine in launches.items():
        member = f"{mine[-1].removeprefix('--config.study.member=')}: " if args.members else ""
        print(
            f"{member}kubectl logs -n {args.namespace} -f job/{name}-slice-0 shows what it says, and "
            f"kubectl delete jobset -n {args.namespace} {name} ends it",
            file=sys.stderr,
        )


def _capacity(spot: bool, reservation: str | None) -> dict[str, str]:
    """Labels that select the nodes."""
    if spot:
        return {"cloud.google.com/gke-spot": "true"}
    return {"cloud.google.com/reservation-name": reservation} if reservation else {}


def jobset(
    *,
    name: str,
    namespace: str,
    image: str,
    arguments: list[str],
    slices: Slices,
    service_account: str,
    capacity: dict[str, str],
    queue: str | None,
    max_restarts: int,
    grace: int,
) -> dict:
    """The manifest: one job per slice, one pod per host; all restart when one pod fails.

    Kubernetes reports one reason for every such failure, so JobSet matches on the message, which names the exit code.

    Sources: cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice; jobset.sigs.k8s.io, KEP 262 (messages).

    Raises:
      UserError: several slices with one host each, which GKE does not connect.
    """
    if slices.topology.slices > 1 and slices.hosts == 1:
        raise UserError(f"--slices={slices.topology.slices}: GKE joins slices of several hosts only; take a larger one")
    chips = slices.chips_per_host
    pod = {
        "restartPolicy": "Never",
        "shareProcessNamespace": True,  # process 1, which the kernel shields from SIGTERM, is then not the program
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,  # the bucket is reached by workload identity, the cluster not at all
        "terminationGracePeriodSeconds": grace,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": slices.generation.accelerator,
            "cloud.google.com/gke-tpu-topology": slices.shape,
            **capacity,
        },
        # GKE taints TPU and spot nodes; a reservation has no taint.
        "tolerations": [
            {"key": key, "operator": "Exists", "effect": "NoSchedule"}
            for key in ("google.com/tpu", *(key for key in capacity if key.endswith("spot")))
        ],
        "containers": [
            {
                "name": "main",
                "image": image,
                "args": arguments,
                "resources": {kind: {"google.com/tpu": chips} for kind in ("requests", "limits")},
                "securityContext": {"allowPrivilegeEscalation": False},
            }
        ],
    }
    job = {
        "parallelism": slices.hosts,
        "completions": slices.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod that fails is the end of the job; what follows is for JobSet to say
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "main",
                        "operator": "In",
                        "values": [cli.CANNOT_MEND, cli.PREEMPTED],
                    },
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
            **({"labels": {"kueue.x-k8s.io/queue-name": queue}} if queue else {}),
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": max_restarts,
                "rules": [
                    _rule("mistake", "FailJobSet", f"failed with exit code {cli.CANNOT_MEND} matching"),
                    _rule(
                        "preempted",
                        "RestartJobSetAndIgnoreMaxRestarts",
                        f"failed with exit code {cli.PREEMPTED} matching",
                        "has condition DisruptionTarget matching",
                    ),
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": slices.topology.slices, "template": {"spec": job}}],
        },
    }


def _rule(name: str, action: str, *messages: str) -> dict:
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": list(messages),
    }


if __name__ == "__main__":
    cli.run(main)
