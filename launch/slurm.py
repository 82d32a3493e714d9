"""Slurm through submitit: GPU nodes, one process per GPU, which is how JAX reads Slurm's variables.

Before the time limit Slurm sends SIGUSR2 to submitit, which asks `Train.checkpoint`: the training gets SIGTERM, saves
on all hosts, exits with 143, and the job is queued again. When Slurm preempts, it sends SIGTERM itself and queues the
job again if the partition says so. A training that exits with 1 or 2 fails the job.

Nodes are asked for whole. By itself Slurm gives a process one core and the memory that goes with it, but each process
of a run has graders beside it, processes of their own.
"""

import os
import pprint
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launch.hardware import GpuNodes, LaunchError
from launch.rendering import FOLDER
from launch.spec import GRACE_SECONDS, LaunchSpec, check
from rl_llm.cli import PREEMPTED

LOGS = f"{FOLDER}/slurm"  # submitit's scripts and the processes' output


class TrainingFailed(Exception):
    """The training ended with an exit code after which it is of no use to run it again."""


@dataclass
class Train:
    """What every process of the job calls: the training, as a process of its own. submitit pickles it by its name."""

    command: tuple[str, ...]
    _pid: int = field(default=0, init=False, repr=False)

    def __call__(self) -> int:
        """Train; returns 0, or 143 when the state was saved. Raises TrainingFailed for any other exit code."""
        # Slurm signals all processes of a job; SIGUSR2 is for submitit and would kill the training before it has saved.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        process = subprocess.Popen(self.command)
        signal.signal(signal.SIGUSR2, handler)
        self._pid = process.pid
        code = self._exit_code()
        process.wait()
        if code not in (0, PREEMPTED):
            raise TrainingFailed(f"{' '.join(self.command)} ended with exit code {code}")
        return code

    def checkpoint(self) -> Any:
        """Have the training save and end; returns what submitit is to queue again, None if there is no use in it."""
        import submitit

        os.kill(self._pid, signal.SIGTERM)
        if self._exit_code() not in (0, PREEMPTED):
            return None
        return submitit.helpers.DelayedSubmission(Train(self.command))

    def _exit_code(self) -> int:
        """The exit code as shells have it: killed by SIGTERM, before it could save anything, is 143 as well.

        Leaves the process uncollected: the signal handler that waits here has interrupted another who waits here.
        """
        ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # only with WNOHANG
        return ended.si_status + (0 if ended.si_code == os.CLD_EXITED else 128)


@dataclass(frozen=True)
class SlurmJob:
    """The job as submitit is told of it."""

    train: Train
    parameters: dict[str, Any]
    restarts: int

    def text(self) -> str:
        """The Python that submits the same."""
        return (
            "import submitit\n"
            "from launch.slurm import Train\n\n"
            f"executor = submitit.AutoExecutor({LOGS!r}, cluster='slurm', slurm_max_num_timeout={self.restarts})\n"
            f"executor.update_parameters(**{pprint.pformat(self.parameters, sort_dicts=False)})\n"
            f"executor.submit({self.train!r})"
        )

    def obstacle(self) -> str | None:
        """No submitit, or not a machine that Slurm takes jobs from."""
        if find_spec("submitit") is None:
            return "submitit is not installed: pip install -e '.[slurm]'"
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            return "sbatch and srun are not on PATH: submit from a login node of the cluster"
        return None

    def submit(self) -> int:
        """Queue it and say under which number."""
        print(f"job {self.queue('slurm').job_id}; output under {LOGS}/")
        return 0

    def queue(self, scheduler: str, folder: Path = Path(LOGS)) -> Any:
        """Queue it with one of submitit's executors: "slurm", or "local" to try it on this machine."""
        import submitit

        limits = {f"{scheduler}_max_num_timeout": self.restarts}
        executor = submitit.AutoExecutor(folder, cluster=scheduler, **limits)
        executor.update_parameters(**self.parameters)
        return executor.submit(self.train)


def render(spec: LaunchSpec) -> SlurmJob:
    """The job. The checkout and the folder that stands for the bucket must be where all nodes see them."""
    check(spec, "slurm", needs=("hours", "setup"), takes=("project", "cluster", "restarts"))
    hardware = spec.hardware
    if not isinstance(hardware, GpuNodes):
        raise LaunchError(f"slurm is for GPUs, not for {spec.accelerator}: take gke or queued-resources")
    if spec.bucket.startswith("gs://"):
        raise LaunchError(f"bucket {spec.bucket!r}: slurm mounts none, so write a folder that all nodes see")
    parameters = {
        "name": spec.name,
        "nodes": hardware.hosts,
        "tasks_per_node": hardware.gpus_per_host,
        "gpus_per_node": hardware.gpus_per_host,
        "slurm_exclusive": True,  # all cores
        "slurm_mem": "0",  # all memory: that is not what an exclusive node brings
        "slurm_srun_args": ["--cpu-bind=none"],  # to be shared by its processes, instead of one core each
        "timeout_min": 60 * (spec.hours or 0),
        "slurm_setup": ["set -e", *spec.setup, f"export JAX_PLATFORMS={spec.platforms} PYTHONUNBUFFERED=1"],
        "slurm_signal_delay_s": GRACE_SECONDS,
        **({"slurm_partition": spec.cluster} if spec.cluster else {}),
        **({"slurm_account": spec.project} if spec.project else {}),
    }
    return SlurmJob(Train(spec.command), parameters, spec.restart_limit)
