"""Cluster Toolkit: `gcluster job submit` writes its own JobSet and hands it to the cluster's Kueue queue.

Its restart rules are coarser than those of `gke`. A pod that exits with a code of --restart-on-exit-codes restarts
alone, without limit. Any other failure fails the Job, and --restarts restart the JobSet whatever the code was. It is 0
here so that 1 and 2 are final. Then a pod that is killed before it saves (137) ends the run, too: submit it again, or
use `gke`. Flags as of Cluster Toolkit 1.103.

Its --mount creates the same volume as `gke`, without mount options or limits: gcsfuse caches metadata by the machine
type's defaults, and its container keeps the driver's limits.
"""

from launch.gke import SIGNED_IN, SPOT_LABEL
from launch.rendering import Commands, shell_line
from launch.spec import GRACE_SECONDS, MOUNT, LaunchError, LaunchSpec, bucket_to_mount, check, tpu_slice
from rl_llm.cli import PREEMPTED

LONGEST_NAME = 28


def render(spec: LaunchSpec) -> Commands:
    """Render the one command. It needs a cluster made by Cluster Toolkit with a node pool of this topology."""
    check(spec, "gcluster", needs=("image", "project", "zone", "cluster"), takes=("spot",))
    if len(spec.name) > LONGEST_NAME:
        raise LaunchError(f"name {spec.name!r} has {len(spec.name)} characters; gcluster allows at most {LONGEST_NAME}")
    tpus = tpu_slice(spec, "gcluster")
    # gcluster runs the command in a shell; `exec` makes SIGTERM reach the training instead of that shell.
    command = f"export JAX_PLATFORMS={spec.platforms} PYTHONUNBUFFERED=1; exec {shell_line(spec.command)}"
    submit = (
        "gcluster",
        "job",
        "submit",
        f"--name={spec.name}",
        f"--project={spec.project}",
        f"--location={spec.zone}",
        f"--cluster={spec.cluster}",
        f"--compute-type={tpus.accelerator_type}",
        f"--topology={tpus.topology}",
        f"--image={spec.image}",
        f"--command={command}",
        f"--mount=gs://{bucket_to_mount(spec, 'gcluster')}:{MOUNT}:rw",  # SOURCE:FOLDER:MODE; read-only by default
        "--restarts=0",
        f"--restart-on-exit-codes={PREEMPTED}",
        f"--grace-period={GRACE_SECONDS}s",
        *((f"--node-constraint={SPOT_LABEL}=true",) if spec.spot else ()),
    )
    return Commands(
        commands=(submit,),
        tools=("gcluster", "gcloud", "kubectl"),
        install="it is in the release bundles of github.com/GoogleCloudPlatform/cluster-toolkit",
        login=SIGNED_IN,
        sign_in="run `gcloud auth login` and `gcloud auth application-default login`",
    )
