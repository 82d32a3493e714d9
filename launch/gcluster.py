"""Cluster Toolkit: `gcluster job submit`, which writes a JobSet of its own and hands it to the cluster's Kueue queue.

Its restart rules are coarser than those of `gke`. A pod that exits with a code of --restart-on-exit-codes is started
again on its own and counts against nothing; any other failure fails the Job, and the JobSet is started again while
--restarts are left, whatever the code was. So that 1 and 2 stop, there are none; a pod that is killed before it could
save (137) then stops the run as well: submit it again, or take `gke`. Flags as of Cluster Toolkit 1.103.

Its --mount makes the volume that `gke` describes, but takes neither mount options nor limits: gcsfuse then remembers
what it has seen of a file as long as the machine type's defaults say, and its container keeps the driver's limits.
"""

from launch.gke import SIGNED_IN, SPOT_LABEL
from launch.rendering import Commands, shell_line
from launch.spec import GRACE_SECONDS, MOUNT, LaunchError, LaunchSpec, bucket_to_mount, check, tpu_slice
from rl_llm.cli import PREEMPTED

LONGEST_NAME = 28


def render(spec: LaunchSpec) -> Commands:
    """The one command. It needs a cluster that Cluster Toolkit made, with a node pool of this topology."""
    check(spec, "gcluster", needs=("image", "project", "zone", "cluster"), takes=("spot",))
    if len(spec.name) > LONGEST_NAME:
        raise LaunchError(f"name {spec.name!r} has {len(spec.name)} characters; gcluster takes {LONGEST_NAME}")
    tpus = tpu_slice(spec, "gcluster")
    # gcluster runs the command in a shell; with exec SIGTERM reaches the training instead of that shell.
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
        f"--mount=gs://{bucket_to_mount(spec, 'gcluster')}:{MOUNT}:rw",  # SOURCE:FOLDER:MODE, and read-only without one
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
