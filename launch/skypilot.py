"""SkyPilot: a managed job on TPUs or GPUs. SkyPilot finds capacity and recovers the job after preemption.

It recovers a job that lost its machines by default. `recover_on_exit_codes` adds the exit code of a saved run, and
`max_restarts_on_errors: 0` makes every other exit code final.

The checkout is copied to the machines and is the working directory there, even with an image, whose own working
directory SkyPilot ignores. The image then provides rl-llm and its dependencies.

SkyPilot mounts the bucket with its own gcsfuse, which caches metadata for five seconds.
"""

from typing import Any

from launch.hardware import GpuNodes
from launch.rendering import FOLDER, Commands, as_yaml, shell_line
from launch.spec import MOUNT, LaunchError, LaunchSpec, bucket_to_mount, check, tpu_slice
from rl_llm.cli import PREEMPTED

COORDINATOR_PORT = 8476
# TPU hosts find their peers through machine metadata; GPU hosts need these variables.
PEERS = (
    f'export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{COORDINATOR_PORT}"',
    'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"',
    'export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"',
)


def render(spec: LaunchSpec) -> Commands:
    """Render the task file and the command that submits it as a managed job."""
    check(spec, "skypilot", needs=(), takes=("image", "setup", "zone", "spot"))
    if (spec.image is None) == (not spec.setup):
        raise LaunchError("skypilot needs one of --image and --setup to install rl-llm on its machines")
    file = f"{FOLDER}/{spec.name}.sky.yaml"
    return Commands(
        commands=(("sky", "jobs", "launch", "--yes", "--detach-run", f"--name={spec.name}", file),),
        file=file,
        file_text=as_yaml(task(spec)),
        tools=("sky",),
        install="`pip install 'skypilot[gcp]'` into an environment of its own, then `sky check gcp`",
    )


def task(spec: LaunchSpec) -> dict[str, Any]:
    """The SkyPilot task."""
    hardware = spec.hardware
    peers = PEERS if isinstance(hardware, GpuNodes) and hardware.hosts > 1 else ()
    return {
        "name": spec.name,
        "workdir": ".",
        # SkyPilot treats a TPU slice as one node and runs the commands on all of its hosts.
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
            f"topology {tpus.topology!r}: skypilot requests {tpus.accelerator_type}, which comes in other shapes: use "
            "gke, gcluster or queued-resources"
        )
    return {
        "accelerators": f"tpu-{tpus.accelerator_type}",
        "accelerator_args": {"runtime_version": tpus.generation.runtime},
    }
