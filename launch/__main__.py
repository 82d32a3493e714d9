"""The command: `python -m launch SCHEDULER EXPERIMENT ...` prints what would run; with --submit it runs."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from launch import gcluster, gke, queued_resources, skypilot, slurm
from launch.hardware import LaunchError, TpuSlice
from launch.prices import CHIPS
from launch.rendering import Rendering
from launch.spec import MOUNT, LaunchSpec
from rl_llm.cli import DONE, WRONG_USAGE

RENDERERS: dict[str, Callable[[LaunchSpec], Rendering]] = {
    "gke": gke.render,
    "gcluster": gcluster.render,
    "queued-resources": queued_resources.render,
    "skypilot": skypilot.render,
    "slurm": slurm.render,
}

EPILOG = f"""schedulers:
  queued-resources   TPU VMs without a cluster, for one researcher: --setup --project --zone
  gke                a JobSet on a GKE cluster: --image --project --zone --cluster
  gcluster           the same through Cluster Toolkit and its Kueue queues
  skypilot           TPUs or GPUs wherever there is capacity, on spot machines too: --image or --setup
  slurm              GPUs of a Slurm cluster: --hours --setup, --cluster PARTITION, --project ACCOUNT

examples (all of them only print; add --submit):
  python -m launch queued-resources experiments/quickstart.py --accelerator v6e --topology 4x4 --spot \\
      --bucket gs://my-bucket/runs --project my-project --zone us-east5-b --setup '. launch/setup_host.sh'
  python -m launch gke experiments/recipes.py:DAPO --accelerator v5p --topology 2x2x4 --bucket gs://my-bucket/runs \\
      --project my-project --zone us-east5-a --cluster my-cluster --image us-docker.pkg.dev/my-project/rl/rl-llm:1 \\
      --name dapo-1 -- --seed 1 --set optimizer.learning_rate=2e-6
  python -m launch skypilot experiments/quickstart.py --accelerator h100 --topology 2x8 --spot \\
      --bucket gs://my-bucket/runs --setup 'JAX_EXTRA=cuda12 . launch/setup_host.sh'

What stands after -- is passed on to `rl-llm train`.

Every process runs `rl-llm train EXPERIMENT ... --out FOLDER/NAME --resume`, at the start and after every interruption.
FOLDER is --bucket as the hosts see it, mounted at {MOUNT}: gs://my-bucket/runs is {MOUNT}/runs. So are weights, data.
What follows its exit code: 143, preempted and saved: started again, goes on bit for bit. 1, failed, or 2, wrong usage:
stopped. Give every seed a --name of its own.

exit codes: 0 done (printed or submitted), 1 failed, 2 wrong usage or nothing to submit with; a training that is waited
for (queued-resources) passes its own on"""


def main(arguments: list[str] | None = None) -> int:
    """Print what would run, and run it if asked to; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parsed = _parser().parse_args(arguments[:end])
    try:
        spec = _spec(parsed, tuple(arguments[end + 1 :]))
        rendering = RENDERERS[parsed.scheduler](spec)
    except LaunchError as error:
        print(f"launch: {error}", file=sys.stderr)
        return WRONG_USAGE
    print(rendering.text(), flush=True)
    print(f"\n{summary(spec)}", file=sys.stderr)
    if not parsed.submit:
        print("Nothing was submitted: add --submit.", file=sys.stderr)
        return DONE
    if obstacle := rendering.obstacle():
        print(f"launch: nothing was submitted: {obstacle}", file=sys.stderr)
        return WRONG_USAGE
    return rendering.submit()


def summary(spec: LaunchSpec) -> str:
    """One line for people: what is asked for and what an hour of it costs."""
    hardware = spec.hardware
    kind = f" ({hardware.accelerator_type})" if isinstance(hardware, TpuSlice) else ""
    line = f"{hardware.chips} {spec.accelerator} on {hardware.hosts} host{'s' * (hardware.hosts > 1)}{kind}"
    where = f"Run folder: {spec.bucket}/{spec.name}"
    if spec.accelerator not in CHIPS:
        return f"{line}; no price known. {where}"
    chip = CHIPS[spec.accelerator]
    dollars = chip.dollars(hardware.chips, spec.spot)
    return f"{line}, about {dollars:.2f} dollars an hour{' on spot' * spec.spot}. {where}"


def _spec(parsed: argparse.Namespace, passed_on: tuple[str, ...]) -> LaunchSpec:
    path, _, name = parsed.experiment.partition(":")
    if not Path(path).is_file():
        raise LaunchError(f"experiment {path!r} is not here: call from the checkout's root")
    derived = re.sub(r"[^a-z0-9]+", "-", f"{Path(path).stem} {name}".lower()).strip("-")
    return LaunchSpec(
        experiment=parsed.experiment,
        accelerator=parsed.accelerator,
        topology=parsed.topology,
        bucket=parsed.bucket.rstrip("/"),
        name=parsed.name or derived,
        arguments=passed_on,
        spot=parsed.spot,
        image=parsed.image,
        setup=tuple(parsed.setup),
        project=parsed.project,
        zone=parsed.zone,
        cluster=parsed.cluster,
        hours=parsed.hours,
        restarts=parsed.restarts,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Run one training on rented accelerators, through a scheduler that exists.",
        usage="%(prog)s SCHEDULER EXPERIMENT[:NAME] --accelerator A --topology T --bucket B [...] [-- ARGUMENT ...]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scheduler", choices=RENDERERS, metavar="SCHEDULER", help=", ".join(RENDERERS))
    add("experiment", metavar="EXPERIMENT[:NAME]", help="as `rl-llm train` takes it")
    add("--accelerator", required=True, metavar="A", help="v4, v5e, v5p, v6e; a100, a100-80gb, h100, h200, b200")
    add("--topology", required=True, metavar="T", help="of the slice, 4x4 or 2x2x4; of GPUs NODESxGPUS, 2x8")
    add("--bucket", required=True, metavar="gs://B", help="where run folders are (slurm: a folder all nodes see)")
    add("--name", metavar="N", help="of the job and its run folder (default: after the experiment)")
    add("--spot", action="store_true", help="capacity that may be taken away, for a fraction of the price")
    add("--image", metavar="I", help="container that has rl-llm and, in its working directory, the experiment")
    add(
        "--setup",
        action="append",
        default=[],
        metavar="C",
        help="shell command that makes rl-llm available; repeatable",
    )
    add("--project", metavar="P", help="Google Cloud project; Slurm account")
    add("--zone", metavar="Z", help="zone, or the region of a GKE cluster")
    add("--cluster", metavar="C", help="GKE cluster; Slurm partition")
    add("--hours", type=int, metavar="H", help="Slurm's time limit")
    add("--restarts", type=int, metavar="R", help="how often a run may be started again (default: 100)")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--dry-run", action="store_true", help="only print what would run: the default")
    when.add_argument("--submit", action="store_true", help="print it and run it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
