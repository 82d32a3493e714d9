"""GKE: a JobSet of one indexed Job with one pod per host of the slice. JAX finds its peers by GKE's variables.

Exits and their consequences (APIs: jobset.x-k8s.io/v1alpha2, batch/v1):

* The node is lost (the pod gets the condition DisruptionTarget): the pod counts as failed whatever its exit code.
  `backoffLimit: 0` fails the Job, and the JobSet restarts all pods, because they can only continue together.
* 143, or killed from outside (137: out of memory; 134: JAX exits because a peer was lost): the same. All restarts count
  towards `maxRestarts`.
* 1 and 2 in an undisturbed pod: the Job fails with the reason PodFailurePolicy, and the JobSet fails with it.

The bucket is a volume of the Cloud Storage FUSE CSI driver, which runs a sidecar container. It ends after the training
(GKE 1.29 and newer), so the last checkpoint is in the bucket before the pod ends.
"""

from typing import Any

from launch.rendering import FOLDER, Commands, as_yaml
from launch.spec import GRACE_SECONDS, MOUNT, STOPS, LaunchSpec, bucket_to_mount, check, tpu_slice

CONTAINER = "train"
SPOT_LABEL = "cloud.google.com/gke-spot"
ONE_SLICE_PER_JOB = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
VOLUME = "bucket"
# Checkpoints of some gigabytes would hit the limits of the driver's container; "0" lifts them (Standard clusters).
LIMITS = ("cpu-limit", "memory-limit", "ephemeral-storage-limit")
GCSFUSE = {"gke-gcsfuse/volumes": "true", **{f"gke-gcsfuse/{limit}": "0" for limit in LIMITS}}
# Hosts share the run folder, so none may cache the metadata of a file or its absence.
MOUNT_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
SIGNED_IN = ("gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)")


def render(spec: LaunchSpec) -> Commands:
    """Render the JobSet and the commands that submit it."""
    check(spec, "gke", needs=("image", "project", "zone", "cluster"), takes=("spot", "restarts"))
    file = f"{FOLDER}/{spec.name}.jobset.yaml"
    credentials = ("gcloud", "container", "clusters", "get-credentials", spec.cluster or "")
    return Commands(
        commands=(
            (*credentials, f"--location={spec.zone}", f"--project={spec.project}"),
            ("kubectl", "create", "--filename", file),
        ),
        file=file,
        file_text=as_yaml(jobset(spec)),
        tools=("gcloud", "kubectl"),
        install="install the Google Cloud CLI, then `gcloud components install kubectl gke-gcloud-auth-plugin`",
        login=SIGNED_IN,
        sign_in="run `gcloud auth login`",
    )


def jobset(spec: LaunchSpec) -> dict[str, Any]:
    """The JobSet resource. JobSet also creates the headless service of the same name that gives pods host names."""
    hosts = tpu_slice(spec, "gke").hosts
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        # Otherwise the pods of one job could land on two slices: two node pools of the same topology.
        "metadata": {"name": spec.name, **({"annotations": ONE_SLICE_PER_JOB} if hosts > 1 else {})},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": spec.restart_limit,
                "restartStrategy": "BlockingRecreate",  # the slice is free when all old pods are gone
                "rules": [
                    {"name": "stop", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                    {"name": "resume", "action": "RestartJobSet", "onJobFailureReasons": ["BackoffLimitExceeded"]},
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": _job(spec, hosts)}}],
        },
    }


def _job(spec: LaunchSpec, hosts: int) -> dict[str, Any]:
    return {
        "completionMode": "Indexed",  # JOB_COMPLETION_INDEX numbers the hosts
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(STOPS)},
                },
            ]
        },
        "template": {"metadata": {"annotations": GCSFUSE}, "spec": _pod(spec)},
    }


def _pod(spec: LaunchSpec) -> dict[str, Any]:
    tpus = tpu_slice(spec, "gke")
    attributes = {"bucketName": bucket_to_mount(spec, "gke"), "mountOptions": MOUNT_OPTIONS}
    spot = [{"key": SPOT_LABEL, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,  # a spot node grants at most 30 of them
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": tpus.generation.node_label,
            "cloud.google.com/gke-tpu-topology": tpus.topology,
            **({SPOT_LABEL: "true"} if spec.spot else {}),
        },
        **({"tolerations": spot} if spec.spot else {}),
        "containers": [
            {
                "name": CONTAINER,
                "image": spec.image,
                "command": list(spec.command),  # no shell, which would swallow SIGTERM
                "env": [
                    {"name": "JAX_PLATFORMS", "value": spec.platforms},
                    {"name": "PYTHONUNBUFFERED", "value": "1"},
                ],
                "resources": {kind: {"google.com/tpu": tpus.chips_per_host} for kind in ("requests", "limits")},
                "volumeMounts": [{"name": VOLUME, "mountPath": MOUNT}],
            }
        ],
        "volumes": [{"name": VOLUME, "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}],
    }
