"""Launching: checks of the spec, its hardware, and the rendering for each scheduler."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch import gcluster, gke, queued_resources, skypilot, slurm
from launch.hardware import LaunchError, TpuSlice, hardware_of
from launch.spec import LaunchSpec
from rl_llm.cli import FAILED, PREEMPTED, WRONG_USAGE

DATA = Path(__file__).parents[1] / "data" / "launch"
SPEC = LaunchSpec("experiments/quickstart.py", "v6e", "4x4", "gs://bucket/runs", "study", ("--seed", "1"))
ON_CLOUD = replace(SPEC, project="my-project", zone="us-east5-b")
ON_CLUSTER = replace(ON_CLOUD, image="us-docker.pkg.dev/p/r/rl-llm:1", cluster="my-cluster")
ON_MACHINES = replace(ON_CLOUD, setup=(". ./install.sh",))
ON_GPUS = replace(SPEC, accelerator="h100", topology="2x8", setup=(". .venv/bin/activate",))
COMMAND = "rl-llm train experiments/quickstart.py --seed 1 --out /bucket/runs/study --resume"


# Google Cloud's tables: chips, hosts, accelerator type, machine type.
@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "hosts", "accelerator_type", "machine_type"),
    [
        ("v6e", "1x1", 1, 1, "v6e-1", "ct6e-standard-1t"),
        ("v6e", "2x2", 4, 1, "v6e-4", "ct6e-standard-4t"),
        ("v6e", "2x4", 8, 1, "v6e-8", "ct6e-standard-8t"),
        ("v6e", "4x4", 16, 4, "v6e-16", "ct6e-standard-4t"),
        ("v6e", "16x16", 256, 64, "v6e-256", "ct6e-standard-4t"),
        ("v5e", "2x4", 8, 1, "v5litepod-8", "ct5lp-hightpu-8t"),
        ("v5e", "4x8", 32, 8, "v5litepod-32", "ct5lp-hightpu-4t"),
        ("v5p", "2x2x1", 4, 1, "v5p-8", "ct5p-hightpu-4t"),
        ("v5p", "2x2x4", 16, 4, "v5p-32", "ct5p-hightpu-4t"),
        ("v5p", "16x16x24", 6144, 1536, "v5p-12288", "ct5p-hightpu-4t"),
        ("v4", "2x2x2", 8, 2, "v4-16", "ct4p-hightpu-4t"),
        ("v4", "4x4x4", 64, 16, "v4-128", "ct4p-hightpu-4t"),
    ],
)
def test_a_slice_has_its_hosts_and_names(accelerator, topology, chips, hosts, accelerator_type, machine_type):
    tpus = hardware_of(accelerator, topology)
    assert isinstance(tpus, TpuSlice)
    assert (tpus.chips, tpus.hosts) == (chips, hosts)
    assert (tpus.accelerator_type, tpus.machine_type) == (accelerator_type, machine_type)
    assert tpus.chips_per_host * tpus.hosts == tpus.chips


@pytest.mark.parametrize(
    ("accelerator", "topology"),
    [
        ("v6e", "4x2"),  # sides must ascend
        ("v6e", "2x2x4"),  # the generation is flat
        ("v6e", "3x3"),
        ("v5p", "4x4"),
        ("v5p", "2x4x8"),  # beyond 32 chips sides are multiples of four
        ("v5p", "8x4x4"),
        ("v4", "16x16x20"),  # more chips than there are
        ("v4", "04x4x4"),
        ("h100", "8"),
        ("h100", "1x3"),
        ("v7", "4x4"),
        ("H100", "1x8"),
    ],
)
def test_an_unavailable_topology_is_refused(accelerator, topology):
    with pytest.raises(LaunchError, match=topology if accelerator not in ("v7", "H100") else "unknown"):
        replace(SPEC, accelerator=accelerator, topology=topology)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bucket": "bucket/runs"}, "gs://BUCKET"),
        ({"bucket": "s3://bucket"}, "gs://BUCKET"),
        ({"bucket": "gs://bucket/../etc"}, "gs://BUCKET"),
        ({"name": "Study_1"}, "Study_1"),
        ({"name": "1-study"}, "1-study"),
        ({"name": "s" * 41}, "41 characters"),
        ({"experiment": "quickstart"}, "PATH.py"),
        ({"experiment": "/x/quickstart.py"}, "checkout's root"),
        ({"arguments": ("--out=elsewhere",)}, "--out"),
        ({"arguments": ("--resume",)}, "--resume"),
        ({"zone": "Frankfurt"}, "us-east5-b"),
        ({"image": "my image"}, "my image"),
        ({"hours": 0}, "hours"),
        ({"restarts": -1}, "restarts"),
    ],
)
def test_an_impossible_spec_is_refused_on_creation(changes, words):
    with pytest.raises(LaunchError, match=words):
        replace(SPEC, **changes)


@pytest.mark.parametrize(
    ("render", "spec", "words"),
    [
        (gke.render, ON_CLOUD, "needs --image"),
        (gke.render, replace(ON_CLUSTER, setup=("x",)), "--setup has no effect"),
        (gke.render, replace(ON_CLUSTER, accelerator="h100", topology="1x8"), "for TPUs"),
        (gke.render, replace(ON_CLUSTER, bucket="/scratch"), "gs://BUCKET"),
        (gcluster.render, replace(ON_CLUSTER, restarts=3), "--restarts has no effect"),
        (gcluster.render, replace(ON_CLUSTER, bucket="/scratch"), "gs://BUCKET"),
        (gcluster.render, replace(ON_CLUSTER, name="a-name-that-is-longer-than-28"), "28"),
        (queued_resources.render, ON_CLOUD, "needs --setup"),
        (queued_resources.render, replace(ON_MACHINES, zone="us-east5"), "is a region"),
        (queued_resources.render, replace(ON_MACHINES, bucket="/scratch"), "gs://BUCKET"),
        (skypilot.render, SPEC, "one of --image and --setup"),
        (skypilot.render, replace(ON_GPUS, bucket="/scratch"), "gs://BUCKET"),
        (skypilot.render, replace(ON_GPUS, accelerator="v5p", topology="4x4x16"), "v5p-512, which comes in other"),
        (slurm.render, ON_GPUS, "needs --hours"),
        (slurm.render, replace(ON_GPUS, hours=1), "slurm mounts none"),
        (slurm.render, replace(ON_GPUS, hours=1, spot=True), "--spot has no effect"),
        (slurm.render, replace(ON_GPUS, hours=1, accelerator="v6e", topology="4x4"), "for GPUs"),
    ],
)
def test_missing_fields_and_fields_that_cannot_act_are_refused(render, spec, words):
    with pytest.raises(LaunchError, match=words):
        render(spec)


@pytest.mark.parametrize(
    ("bucket", "folder"),
    [("gs://bucket", "/bucket/study"), ("gs://bucket/a/b", "/bucket/a/b/study"), ("/scratch/me", "/scratch/me/study")],
)
def test_the_run_folder_is_a_path_on_the_hosts(bucket, folder):
    assert replace(SPEC, bucket=bucket).run_folder == folder


@pytest.mark.parametrize(
    "spec",
    [
        ON_CLUSTER,
        replace(ON_CLUSTER, spot=True, restarts=3),
        replace(ON_CLUSTER, topology="2x4"),
        replace(ON_CLUSTER, accelerator="v5p", topology="2x2x4"),
    ],
)
def test_the_jobset_is_valid_for_the_api(spec):
    resource = yaml.safe_load(gke.render(spec).file_text)
    jsonschema.validate(resource, json.loads((DATA / "jobset.schema.json").read_text()))
    assert resource == gke.jobset(spec)


@pytest.mark.parametrize("path", ["spec", "spec.failurePolicy", "spec.replicatedJobs.0.template.spec.template.spec"])
def test_the_schema_of_the_api_refuses_unknown_fields(path):
    resource = gke.jobset(ON_CLUSTER)
    place = resource
    for part in path.split("."):
        place = place[int(part)] if isinstance(place, list) else place[part]
    place["invented"] = 1
    with pytest.raises(jsonschema.ValidationError, match="invented"):
        jsonschema.validate(resource, json.loads((DATA / "jobset.schema.json").read_text()))


def test_a_jobset_has_one_pod_per_host_with_its_chips():
    job = gke.jobset(replace(ON_CLUSTER, spot=True))["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert shlex.join(pod["containers"][0]["command"]) == COMMAND
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }


def test_a_pod_mounts_the_bucket_without_a_metadata_cache():
    template = gke.jobset(ON_CLUSTER)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    (volume,) = template["spec"]["volumes"]
    assert template["spec"]["containers"][0]["volumeMounts"] == [{"name": volume["name"], "mountPath": "/bucket"}]
    attributes = volume["csi"]["volumeAttributes"]
    assert attributes["bucketName"] == "bucket"
    assert {"metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"} < set(
        attributes["mountOptions"].split(",")
    )
    assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"


@pytest.mark.parametrize(
    ("exit_code", "disrupted", "outcome"),
    [
        (PREEMPTED, False, "RestartJobSet"),
        (PREEMPTED, True, "RestartJobSet"),
        (FAILED, False, "FailJobSet"),
        (WRONG_USAGE, False, "FailJobSet"),
        (FAILED, True, "RestartJobSet"),  # any exit code of a process on a lost node
        (137, False, "RestartJobSet"),
        (134, False, "RestartJobSet"),
    ],
)
def test_a_jobset_is_restarted_or_stopped_by_the_exit_code(exit_code, disrupted, outcome):
    spec = gke.jobset(ON_CLUSTER)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]["name"]
    stops = {"containerName": container, "operator": "In", "values": [FAILED, WRONG_USAGE]}
    matching = [
        rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        if (disrupted and rule.get("onPodConditions") == [{"type": "DisruptionTarget", "status": "True"}])
        or (exit_code in stops["values"] and rule.get("onExitCodes") == stops)
    ]
    # Kubernetes applies the first match; without one a failed pod counts, and the limit of 0 allows none.
    assert job["backoffLimit"] == 0
    reason = "PodFailurePolicy" if matching[:1] == ["FailJob"] else "BackoffLimitExceeded"
    rules = spec["failurePolicy"]["rules"]
    assert [rule["action"] for rule in rules if reason in rule["onJobFailureReasons"]] == [outcome]


FLAGS = json.loads((DATA / "flags.json").read_text())


@pytest.mark.parametrize(
    "command",
    [
        *gke.render(ON_CLUSTER).commands,
        *gcluster.render(replace(ON_CLUSTER, spot=True)).commands,
        *queued_resources.gcloud_commands(replace(ON_MACHINES, spot=True)).values(),
        queued_resources.gcloud_commands(replace(ON_MACHINES, accelerator="v5p", topology="4x4x16"))["create"],
        *skypilot.render(ON_GPUS).commands,
    ],
    ids=lambda command: " ".join(command[:5]),
)
def test_commands_have_flags_that_their_tools_know(command):
    words = [word for word in command if not word.startswith("--")]
    name = next(name for name in FLAGS if command[: len(name.split())] == tuple(name.split()))
    given = [word.split("=")[0] for word in command if word.startswith("--")]
    assert set(FLAGS[name]["required"]) <= set(given) <= set(FLAGS[name]["flags"])
    assert len(given) == len(set(given))
    separate = 1 if name == "kubectl create" else 0  # --filename FILE
    assert len(words) - len(name.split()) - separate == FLAGS[name]["positional"]


def test_gcluster_replaces_its_shell_by_the_command():
    submit = gcluster.render(ON_CLUSTER).commands[0]
    command = next(word for word in submit if word.startswith("--command="))
    assert command.endswith(f"; exec {COMMAND}")
    assert "--mount=gs://bucket:/bucket:rw" in submit
    assert {"--restart-on-exit-codes=143", "--restarts=0", "--compute-type=v6e-16", "--topology=4x4"} <= set(submit)


@pytest.mark.parametrize(
    ("accelerator", "topology", "flags"),
    [
        ("v6e", "4x4", {"--accelerator-type=v6e-16"}),
        ("v6e", "16x16", {"--accelerator-type=v6e-256"}),
        ("v5p", "2x2x4", {"--accelerator-type=v5p-32"}),
        ("v5p", "4x4x8", {"--accelerator-type=v5p-256"}),
        ("v5p", "4x4x16", {"--type=v5p", "--topology=4x4x16"}),
        ("v5p", "4x8x8", {"--type=v5p", "--topology=4x8x8"}),
        ("v4", "8x8x16", {"--type=v4", "--topology=8x8x16"}),
    ],
)
def test_a_queued_resource_has_the_requested_shape(accelerator, topology, flags):
    """An accelerator type gives only the number of chips; only gcloud alpha accepts the shape of a v5p slice."""
    spec = replace(ON_MACHINES, accelerator=accelerator, topology=topology)
    create = queued_resources.gcloud_commands(spec)["create"]
    named = {word for word in create if word.startswith(("--accelerator-type", "--type", "--topology"))}
    assert named == flags
    assert (create[1] == "alpha") == ("--accelerator-type" not in str(flags))


def test_a_tpu_vm_mounts_the_bucket_before_setup():
    train = queued_resources.gcloud_commands(ON_MACHINES)["train"]
    remote = next(word for word in train if word.startswith("--command=")).split(" && ")
    assert remote[-3:-1] == ["sh launch/mount_bucket.sh bucket /bucket", ". ./install.sh"]
    assert remote[-1].endswith(COMMAND)


@pytest.mark.parametrize("spec", [ON_GPUS, replace(ON_MACHINES, project=None, spot=True)])
def test_a_skypilot_task_is_valid_for_its_reference(spec):
    task = yaml.safe_load(skypilot.render(spec).file_text)
    jsonschema.validate(task, json.loads((DATA / "skypilot.schema.json").read_text()))
    assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [PREEMPTED]}
    assert task["file_mounts"] == {"/bucket": {"source": "gs://bucket", "mode": "MOUNT"}}
    assert task["run"].splitlines()[-1] == f"exec {COMMAND}"


@pytest.mark.parametrize(("zone", "infra"), [("us-east5-b", "gcp/*/us-east5-b"), ("us-east5", "gcp/us-east5")])
def test_skypilot_gets_a_zone_or_a_region(zone, infra):
    assert skypilot.task(replace(ON_GPUS, zone=zone))["resources"]["infra"] == infra


def test_skypilot_copies_the_checkout_even_with_an_image():
    task = skypilot.task(replace(ON_GPUS, setup=(), image="us-docker.pkg.dev/p/r/rl-llm:1"))
    assert task["workdir"] == "."  # SkyPilot changes to ~/sky_workdir whatever the image's working directory is
    assert task["resources"]["image_id"] == "docker:us-docker.pkg.dev/p/r/rl-llm:1"


def test_gpu_hosts_under_skypilot_get_the_addresses_of_their_peers():
    task = skypilot.task(ON_GPUS)
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H100:8")
    for variable in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        assert f"export {variable}=" in task["run"]


def test_a_slice_is_one_node_to_skypilot():
    task = skypilot.task(replace(ON_MACHINES, accelerator="v5e"))
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (1, "tpu-v5litepod-16")
    assert "JAX_COORDINATOR_ADDRESS" not in task["run"]


def test_slurm_gets_one_process_per_gpu():
    job = slurm.render(replace(ON_GPUS, hours=3, bucket="/scratch/runs", cluster="long"))
    assert job.train.command[-3:] == ("--out", "/scratch/runs/study", "--resume")
    parameters = job.parameters
    assert [parameters[key] for key in ("nodes", "tasks_per_node", "gpus_per_node")] == [2, 8, 8]
    assert (parameters["timeout_min"], parameters["slurm_partition"]) == (180, "long")
