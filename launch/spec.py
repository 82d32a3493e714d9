"""The launch spec: one typed value, checked on creation, for all renderers."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from launch.hardware import GpuNodes, LaunchError, TpuSlice, hardware_of
from rl_llm.cli import FAILED, WRONG_USAGE

STOPS = (FAILED, WRONG_USAGE)  # exit codes that a restart would only repeat
RESTARTS = 100  # most restarts of a run by default
GRACE_SECONDS = 300  # from SIGTERM to SIGKILL if configurable: time for a checkpoint

MOUNT = "/bucket"  # the bucket as a file system on every host: run folders need appends and renames

LONGEST_NAME = 40  # a pod's name adds up to 19 characters; Kubernetes allows 63
ADDED_BY_US = ("--out", "--resume")
OPTIONAL = ("image", "setup", "project", "zone", "cluster", "hours", "restarts", "spot")
PART = r"(?!\.\.?(/|$))[^/\s]+"  # of a path; ".." would leave the mount


@dataclass(frozen=True)
class LaunchSpec:
    """One training run on one slice of accelerators.

    experiment   a Python file for `rl-llm train`, with or without :NAME, relative to the checkout's root
    accelerator  "v6e", "v5e", "v5p", "v4", or a GPU: "h100"
    topology     "4x4"; for GPUs NODESxGPUS: "2x8"
    bucket       parent of run folders: gs://BUCKET[/FOLDER], mounted at MOUNT; under Slurm a folder that all nodes see
    name         name of the job and of its run folder: lower case, digits, hyphens
    arguments    passed on to `rl-llm train`
    spot         preemptible capacity, for a fraction of the price
    image        a container with rl-llm, and the experiment in its working directory; or
    setup        shell commands that make rl-llm available, run at the checkout's root on every host
    project, zone, cluster   of Google Cloud; under Slurm `project` is the account and `cluster` the partition
    hours        Slurm's time limit
    restarts     most restarts of a run
    """

    experiment: str
    accelerator: str
    topology: str
    bucket: str
    name: str
    arguments: tuple[str, ...] = ()
    spot: bool = False
    image: str | None = None
    setup: tuple[str, ...] = ()
    project: str | None = None
    zone: str | None = None
    cluster: str | None = None
    hours: int | None = None
    restarts: int | None = None

    def __post_init__(self) -> None:
        hardware_of(self.accelerator, self.topology)
        _match("experiment", self.experiment, r"[^\s:]+\.py(:\w+)?", "PATH.py or PATH.py:NAME")
        if PurePosixPath(self.experiment).is_absolute():
            raise LaunchError(
                f"experiment {self.experiment!r} is absolute; give one from the checkout's root, which all hosts have"
            )
        _match("name", self.name, r"[a-z]([-a-z0-9]*[a-z0-9])?", "a-z, 0-9 and hyphens, as Kubernetes requires")
        if len(self.name) > LONGEST_NAME:
            raise LaunchError(f"name {self.name!r} has {len(self.name)} characters; a pod's name allows {LONGEST_NAME}")
        _match(
            "bucket",
            self.bucket,
            rf"(gs://[a-z0-9][-_.a-z0-9]+|/{PART})(/{PART})*",
            "gs://BUCKET or gs://BUCKET/FOLDER",
        )
        for argument in self.arguments:
            if argument.split("=")[0] in ADDED_BY_US:
                raise LaunchError(
                    f"argument {argument!r}: the launcher itself adds {' and '.join(ADDED_BY_US)}; leave it out"
                )
        for field in ("image", "project", "zone", "cluster"):
            if getattr(self, field) is not None:
                _match(field, getattr(self, field), r"[^\s-]\S*", "one word")
        if self.zone is not None:
            _match("zone", self.zone, r"[a-z]+-[a-z]+\d+(-[a-z0-9]+)?", "such as us-east5-b")
        for field, least in (("hours", 1), ("restarts", 0)):
            if getattr(self, field) is not None and getattr(self, field) < least:
                raise LaunchError(f"{field} must be at least {least}, not {getattr(self, field)}")

    @property
    def run_folder(self) -> str:
        """The run folder as the hosts see it; the same after every restart."""
        _, in_bucket, path = self.bucket.partition("gs://")
        folder = PurePosixPath(MOUNT, *PurePosixPath(path).parts[1:]) if in_bucket else self.bucket
        return f"{folder}/{self.name}"

    @property
    def command(self) -> tuple[str, ...]:
        """The command of every process, at the start and after every interruption."""
        return ("rl-llm", "train", self.experiment, *self.arguments, "--out", self.run_folder, "--resume")

    @property
    def hardware(self) -> TpuSlice | GpuNodes:
        """The hardware for the accelerator and the topology."""
        return hardware_of(self.accelerator, self.topology)

    @property
    def platforms(self) -> str:
        """Value of JAX_PLATFORMS. It makes a host with a broken accelerator fail instead of training on its CPU."""
        return "tpu,cpu" if isinstance(self.hardware, TpuSlice) else "cuda,cpu"

    @property
    def in_one_zone(self) -> bool:
        """Whether `zone` is a zone and not a region."""
        return self.zone is not None and self.zone.count("-") == 2

    @property
    def restart_limit(self) -> int:
        """Most restarts of a run."""
        return RESTARTS if self.restarts is None else self.restarts


def check(spec: LaunchSpec, scheduler: str, needs: tuple[str, ...], takes: tuple[str, ...]) -> None:
    """Refuse a spec that lacks a field the scheduler needs, or sets a field that cannot act there."""
    for field in needs:
        if not getattr(spec, field):
            raise LaunchError(f"{scheduler} needs --{field}")
    for field in OPTIONAL:
        if getattr(spec, field) not in (None, (), False) and field not in (*needs, *takes):
            raise LaunchError(f"--{field} has no effect under {scheduler}: leave it out")


def tpu_slice(spec: LaunchSpec, scheduler: str) -> TpuSlice:
    """The TPU slice of a spec, for schedulers that have TPUs only."""
    if not isinstance(spec.hardware, TpuSlice):
        raise LaunchError(f"{scheduler} is for TPUs, not for {spec.accelerator}: use skypilot or slurm")
    return spec.hardware


def bucket_to_mount(spec: LaunchSpec, scheduler: str) -> str:
    """Name of the bucket to mount at MOUNT on every host before training starts."""
    if not spec.bucket.startswith("gs://"):
        raise LaunchError(f"bucket {spec.bucket!r}: under {scheduler} hosts share no folder; expected gs://BUCKET")
    return spec.bucket.removeprefix("gs://").split("/")[0]


def _match(field: str, value: str, pattern: str, form: str) -> None:
    if not re.fullmatch(pattern, value):
        raise LaunchError(f"{field} {value!r} must be {form}")
