"""SkyPilot: a managed job on TPUs or GPUs. It finds capacity, and starts the job again where it was preempted.

A job whose machines are gone is recovered without further ado; `recover_on_exit_codes` adds the exit that saved first,
and `max_restarts_on_errors: 0` makes every other exit code final.

The checkout is copied to the machines and is the working directory there, with an image too (SkyPilot leaves the
image's own); the image then brings rl-llm and what it needs.

It mounts the bucket with a gcsfuse of its own choice, which remembers for five seconds what it has seen of a file.
"""

from typing import Any

from launch.hardware import GpuNodes
from launch.rendering import FOLDER, Commands, as_yaml, shell_line
from launch.spec import MOUNT, LaunchError, LaunchSpec, bucket_to_mount, check, tpu_slice
from rl_llm.cli import PREEMPTED

COORDINATOR_PORT = 8476
# A TPU host learns from its machine who the others are; GPU hosts are told.
PEERS = (
    f'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{COORDINATOR_PORT}"',
    'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"',
    'export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"',
)


def render(spec: LaunchSpec) -> Commands:
    """The task file and the command that makes a managed job of it."""
    check(spec, "skypilot", needs=(), takes=("image", "setup", "zone", "spot"))
    if (spec.image is None) == (not spec.setup):
        raise LaunchError("skypilot needs one of --image and --setup, to have rl-llm on its machines")
    file = f"{FOLDER}/{spec.name}.sky.yaml"
    return Commands(
        commands=(("sky", "jobs", "launch", "--yes", "--detach-run", f"--name={spec.name}", file),),
        file=file,
        file_text=as_yaml(task(spec)),
        tools=("sky",),
        install="`pip install 'skypilot[gcp]'` into an environment of its own, then `sky check gcp`",
    )


def task(spec: LaunchSpec) -> dict[str, Any]:
    """The task."""
    hardware = spec.hardware
    peers = PEERS if isinstance(hardware, GpuNodes) and hardware.hosts > 1 else ()
    return {
        "name": spec.name,
        "workdir": ".",
        # The hosts of a TPU slice are one node to SkyPilot, which runs the commands on all of them.
        "num_nodes": hardware.hosts if isinstance(hardware, GpuNodes) else 1,
        "resources": {
            **_machines(spec),
            **({"infra": f"gcp/*/{spec.zone}" if spec.in_one_zone else f"gcp/{spec.zone}"} if spec.zone else {}),
            "use_spot": spec.spot,
            **({"image_id": f"docker:{spec.image}"} if spec.image else {}),
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [PREEMPTED]},
        },
        "file_mounts": {MOUNT: {"source": f"gs://{bucket_to_mount(spec, 'skypilot')}", "mode": "MOUNT"}},
        "envs": {"JAX_PLATFORMS": spec.platforms, "PYTHONUNBUFFERED": "1"},
        "run": "\n".join(("set -e", *spec.setup, *peers, f"exec {shell_line(spec.command)}", "")),
    }


def _machines(spec: LaunchSpec) -> dict[str, Any]:
    if isinstance(spec.hardware, GpuNodes):
        return {"accelerators": f"{spec.hardware.model}:{spec.hardware.gpus_per_host}"}
    tpus = tpu_slice(spec, "skypilot")
    if not tpus.named_by_type:
        raise LaunchError(
            f"topology {tpus.topology!r}: skypilot asks for {tpus.accelerator_type}, which comes in other shapes, too: "
            "take gke, gcluster or queued-resources"
        )
    return {
        "accelerators": f"tpu-{tpus.accelerator_type}",
        "accelerator_args": {"runtime_version": tpus.generation.runtime},
    }
