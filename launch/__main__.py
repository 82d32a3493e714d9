"""The command `python -m launch SCHEDULER EXPERIMENT ...`: prints the job; --submit also runs it."""

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

examples (they only print; add --submit to run):
  python -m launch queued-resources experiments/quickstart.py --accelerator v6e --topology 4x4 --spot \\
      --bucket gs://my-bucket/runs --project my-project --zone us-east5-b --setup '. launch/setup_host.sh'
  python -m launch gke experiments/recipes.py:DAPO --accelerator v5p --topology 2x2x4 --bucket gs://my-bucket/runs \\
      --project my-project --zone us-east5-a --cluster my-cluster --image us-docker.pkg.dev/my-project/rl/rl-llm:1 \\
      --name dapo-1 -- --seed 1 --set optimizer.learning_rate=2e-6
  python -m launch skypilot experiments/quickstart.py --accelerator h100 --topology 2x8 --spot \\
      --bucket gs://my-bucket/runs --setup 'JAX_EXTRA=cuda12 . launch/setup_host.sh'

Arguments after -- are passed on to `rl-llm train`.

Every process runs `rl-llm train EXPERIMENT ... --out FOLDER/NAME --resume`, at the start and after every interruption.
FOLDER is --bucket as the hosts see it, mounted at {MOUNT}: gs://my-bucket/runs is {MOUNT}/runs. Weights and data in the
bucket have such paths, too. A run that exits with 143 (preempted, state saved) restarts and resumes bit for bit; one
that exits with 1 (failed) or 2 (wrong usage) does not. Give every seed its own --name.

exit codes: 0 done (printed or submitted), 1 failed, 2 wrong usage, missing tools or credentials; queued-resources waits
for the run and returns its exit code"""


def main(arguments: list[str] | None = None) -> int:
    """Print the job and submit it if asked to; returns the exit code."""
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
    """One line with the hardware, the price of an hour and the run folder."""
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
        raise LaunchError(f"experiment {path!r} does not exist here: call from the root of the checkout")
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
        description="Launch one training run on rented accelerators through an existing scheduler.",
        usage="%(prog)s SCHEDULER EXPERIMENT[:NAME] --accelerator A --topology T --bucket B [...] [-- ARGUMENT ...]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scheduler", choices=RENDERERS, metavar="SCHEDULER", help=", ".join(RENDERERS))
    add("experiment", metavar="EXPERIMENT[:NAME]", help="as `rl-llm train` takes it")
    add("--accelerator", required=True, metavar="A", help="v4, v5e, v5p, v6e; a100, a100-80gb, h100, h200, b200")
    add("--topology", required=True, metavar="T", help="shape of the slice, 4x4 or 2x2x4; for GPUs NODESxGPUS, 2x8")
    add("--bucket", required=True, metavar="gs://B", help="parent of run folders (slurm: a folder that all nodes see)")
    add("--name", metavar="N", help="name of the job and its run folder (default: from the experiment)")
    add("--spot", action="store_true", help="preemptible capacity, for a fraction of the price")
    add("--image", metavar="I", help="container with rl-llm, and the experiment in its working directory")
    setup = "shell command that makes rl-llm available; may be repeated"
    add("--setup", action="append", default=[], metavar="C", help=setup)
    add("--project", metavar="P", help="Google Cloud project; Slurm account")
    add("--zone", metavar="Z", help="zone, or the region of a GKE cluster")
    add("--cluster", metavar="C", help="GKE cluster; Slurm partition")
    add("--hours", type=int, metavar="H", help="Slurm's time limit")
    add("--restarts", type=int, metavar="R", help="most restarts of a run (default: 100)")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--dry-run", action="store_true", help="only print the job (default)")
    when.add_argument("--submit", action="store_true", help="print the job and run it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
