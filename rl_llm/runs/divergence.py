"""The end of a run whose gradients are no longer finite: it learns nothing, however long it goes on."""

from collections.abc import Callable
from typing import Any

from rl_llm.runs.folder import METRICS, SAMPLES
from rl_llm.runs.run import Run
from rl_llm.types import TrainState

SKIPS_IN_A_ROW = 10  # steps with a skipped update, after which a run stops


class DivergedError(Exception):
    """Gradients were not finite, step after step. The message names the evidence and the way out."""


def stop_if_diverged(
    run: Run, state: TrainState, line: dict[str, Any], batch: Callable[..., list[dict[str, Any]]] = list, *rows: Any
) -> None:
    """Count steps in a row whose `line` of metrics.jsonl tells of a skipped update; stop the run at SKIPS_IN_A_ROW.

    Then the state is saved, `batch(*rows)` goes to samples.jsonl, and DivergedError is raised.
    """
    skipped = any(line.get(f"{trained}/skipped", 0) for trained in ("update", "critic"))
    run.progress["skips"] = run.progress.get("skips", 0) + 1 if skipped else 0
    if run.progress["skips"] < SKIPS_IN_A_ROW:
        return
    samples = batch(*rows)
    run.folder.samples(samples)
    run.save(state)
    run.folder.ledger.append("diverged", step=run.step)
    raise DivergedError(
        f"{run.folder.path} stopped at step {run.step}: gradients were not finite in {SKIPS_IN_A_ROW} steps in a row, "
        f"and such updates are skipped. {METRICS} has their norms{f', {SAMPLES} the last batch' if samples else ''}. "
        "Start a new run with a smaller learning rate, or with model.compute_dtype=float32"
    )
