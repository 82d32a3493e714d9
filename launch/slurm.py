"""Slurm through submitit: GPU nodes with one process per GPU, as JAX expects from Slurm's variables.

Before the time limit Slurm sends SIGUSR2 to submitit, which calls `Train.checkpoint`. The training gets SIGTERM, saves
on all hosts and exits with 143, and the job is queued again. On preemption Slurm itself sends SIGTERM and requeues the
job if the partition is configured for it. A training that exits with 1 or 2 fails the job.

Jobs request whole nodes. By default Slurm gives each process one core and its share of memory, but every process of a
run also has grader processes.
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
    """The training ended with an exit code that a restart would only repeat."""


@dataclass
class Train:
    """Callable of every process of the job: runs the training as a subprocess. submitit pickles it by name."""

    command: tuple[str, ...]
    _pid: int = field(default=0, init=False, repr=False)

    def __call__(self) -> int:
        """Train; returns 0, or 143 if the state was saved. Raises TrainingFailed for any other exit code."""
        # Slurm signals all processes of a job. SIGUSR2 is for submitit; it would kill the training before it saves.
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
        """Make the training save and end; returns the job for submitit to queue again, or None if it failed."""
        import submitit

        os.kill(self._pid, signal.SIGTERM)
        if self._exit_code() not in (0, PREEMPTED):
            return None
        return submitit.helpers.DelayedSubmission(Train(self.command))

    def _exit_code(self) -> int:
        """The exit code as in a shell: 143 also if SIGTERM killed the training before it could save.

        The process is left unreaped, because the signal handler that calls this interrupts another call of it.
        """
        ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # only with WNOHANG
        return ended.si_status + (0 if ended.si_code == os.CLD_EXITED else 128)


@dataclass(frozen=True)
class SlurmJob:
    """The job with its submitit parameters."""

    train: Train
    parameters: dict[str, Any]
    restarts: int

    def text(self) -> str:
        """The Python code that submits the same job."""
        return (
            "import submitit\n"
            "from launch.slurm import Train\n\n"
            f"executor = submitit.AutoExecutor({LOGS!r}, cluster='slurm', slurm_max_num_timeout={self.restarts})\n"
            f"executor.update_parameters(**{pprint.pformat(self.parameters, sort_dicts=False)})\n"
            f"executor.submit({self.train!r})"
        )

    def obstacle(self) -> str | None:
        """A missing submitit, or a machine that cannot submit to Slurm."""
        if find_spec("submitit") is None:
            return "submitit is not installed: pip install -e '.[slurm]'"
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            return "sbatch and srun are not on PATH: submit from a login node of the cluster"
        return None

    def submit(self) -> int:
        """Queue the job and print its number."""
        print(f"job {self.queue('slurm').job_id}; output under {LOGS}/")
        return 0

    def queue(self, scheduler: str, folder: Path = Path(LOGS)) -> Any:
        """Queue the job with an executor of submitit: "slurm", or "local" for a test on this machine."""
        import submitit

        limits = {f"{scheduler}_max_num_timeout": self.restarts}
        executor = submitit.AutoExecutor(folder, cluster=scheduler, **limits)
        executor.update_parameters(**self.parameters)
        return executor.submit(self.train)


def render(spec: LaunchSpec) -> SlurmJob:
    """Render the job. All nodes must see the checkout and the folder given as --bucket."""
    check(spec, "slurm", needs=("hours", "setup"), takes=("project", "cluster", "restarts"))
    hardware = spec.hardware
    if not isinstance(hardware, GpuNodes):
        raise LaunchError(f"slurm is for GPUs, not for {spec.accelerator}: use gke or queued-resources")
    if spec.bucket.startswith("gs://"):
        raise LaunchError(f"bucket {spec.bucket!r}: slurm mounts none; give a folder that all nodes see")
    parameters = {
        "name": spec.name,
        "nodes": hardware.hosts,
        "tasks_per_node": hardware.gpus_per_host,
        "gpus_per_node": hardware.gpus_per_host,
        "slurm_exclusive": True,  # all cores
        "slurm_mem": "0",  # all memory, which --exclusive does not include
        "slurm_srun_args": ["--cpu-bind=none"],  # processes share the cores instead of one each
        "timeout_min": 60 * (spec.hours or 0),
        "slurm_setup": ["set -e", *spec.setup, f"export JAX_PLATFORMS={spec.platforms} PYTHONUNBUFFERED=1"],
        "slurm_signal_delay_s": GRACE_SECONDS,
        **({"slurm_partition": spec.cluster} if spec.cluster else {}),
        **({"slurm_account": spec.project} if spec.project else {}),
    }
    return SlurmJob(Train(spec.command), parameters, spec.restart_limit)
