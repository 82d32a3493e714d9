"""`train --resume` with more steps than the run began with."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment


def fewer_steps(experiment: "Experiment", run_path: Path) -> str | None:
    """Fingerprint of the run in a folder if it is this experiment with fewer steps; None if it is not.

    Raises RunFolderError if a learning rate depends on the number of steps: the steps made had other rates.
    """
    from rl_llm.config import fingerprint
    from rl_llm.runs.folder import RunFolderError
    from rl_llm.runs.record import read_experiment_record

    try:
        record = read_experiment_record(run_path)
        steps, begun = record["experiment"]["steps"], record["fingerprint"]
        if not steps < experiment.steps or fingerprint(replace(experiment, steps=steps)) != begun:
            return None
    except (OSError, ValueError, TypeError, KeyError):  # no run, another one, or a damaged record: RunFolder says so
        return None
    critic = experiment.critic.optimizer if experiment.critic else None
    for name, optimizer in (("optimizer", experiment.optimizer), ("critic.optimizer", critic)):
        if optimizer is not None and optimizer.schedule != "constant":
            raise RunFolderError(
                f"{run_path} holds this experiment with steps={steps}. It cannot go on to steps={experiment.steps}: "
                f"{name}.schedule={optimizer.schedule!r} falls until the last step, so its learning rates would have "
                "been others. Only a 'constant' schedule can get more steps; choose another --out"
            )
    return str(begun)
