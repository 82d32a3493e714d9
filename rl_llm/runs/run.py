"""A run in progress on the host: its folder, metrics, display, stop signal and resumable progress."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

import jax
from jax.profiler import annotate_function
from jax.sharding import Mesh

from rl_llm.config.source import NO_CODE, Code
from rl_llm.experiment import Experiment
from rl_llm.parallel import hosts
from rl_llm.problem import Problem
from rl_llm.rewards.worker import Grade
from rl_llm.runs.checkpoint import state_sha256
from rl_llm.runs.curves import Sampled
from rl_llm.runs.evidence import EXPERIMENT, LEDGER, RECORDS, SUMMARY, digest_key, file_sha256, summary_sha256
from rl_llm.runs.findings import Finding, find, find_all
from rl_llm.runs.folder import IDENTITY, RunFolder, RunFolderError, read_metrics
from rl_llm.runs.ledger import GENESIS, Ledger
from rl_llm.runs.preemption import Preempted, StopSignal
from rl_llm.runs.progress import Progress
from rl_llm.runs.record import changed_surroundings
from rl_llm.runs.state import restore_state, save_state
from rl_llm.runs.watcher import Watcher
from rl_llm.types import Metrics, TrainState

NOTHING_DONE = {"tokens": 0, "tokens_evaluated": 0, "flops": 0.0, "seconds": 0.0}
FAILURES_SHOWN = 10  # distinct messages of failed gradings; metrics.jsonl counts all
UNGRADED_KEPT = 64  # responses of a rollout in samples.jsonl that could not be graded
JsonValues = dict[str, Any]  # by name


@dataclass
class Run:
    """A run in progress, made by `open_run`. `step` counts warm-start and RL steps; `progress` (JSON) is saved too.

    `summary` is that of a run that had ended before it was opened: nothing is left to do.
    """

    experiment: Experiment
    seed: int
    folder: RunFolder
    display: Progress
    stop: StopSignal
    started: float
    watchers: Sequence[Watcher] = ()
    step: int = 0
    progress: dict[str, Any] = field(default_factory=lambda: dict(NOTHING_DONE))
    saved: int | None = None
    failures: set[str] = field(default_factory=set)
    summary: JsonValues | None = None

    def record(self, phase: str, values: JsonValues, metrics: Metrics, seconds: dict[str, float]) -> JsonValues:
        """Count one more step and write its line: `values`, results of `metrics`, totals, `seconds` (time/*)."""
        self.step += 1
        results = {name: float(metric.result()) for name, metric in jax.device_get(metrics).items()}
        self.progress["tokens"] += _generated(values)
        self.progress["flops"] += values.get("flops/generate", 0.0) + values.get("flops/update", 0.0)
        totals = {"tokens/total": self.progress["tokens"], "flops/total": self.progress["flops"]}
        line = {"step": self.step, "phase": phase, **values, **results, **totals, **seconds}
        self.folder.log(line)
        for watcher in self.watchers:
            watcher.wrote()
        if line.get("evaluation/accuracy", -1.0) > self.progress.get("best", {"accuracy": -1.0})["accuracy"]:
            self.progress["best"] = {"step": self.step, "accuracy": line["evaluation/accuracy"]}
        if "evaluation/accuracy" in line and self.folder.writes:
            self._report_findings(find(read_metrics(self.folder.path), sampled_in(self.experiment)))
        return line

    def watched(self, steps: Iterable[int]) -> Iterable[int]:
        """RL steps, counted from 0, as the watchers pass them on."""
        for watcher in self.watchers:
            steps = watcher.steps(steps)
        return steps

    def spends_budget(self, values: JsonValues | None = None) -> bool:
        """Whether the token budget is reached, counting the step with these values too."""
        budget = self.experiment.token_budget
        return budget is not None and self.progress["tokens"] + _generated(values or {}) >= budget

    def _report_findings(self, findings: Sequence[Finding]) -> None:
        """Report findings on the display and in the ledger, except those that the ledger has already."""
        entries = Ledger.verify(self.folder.path / LEDGER) if findings else []
        known = {entry["data"]["name"] for entry in entries if entry["event"] == "finding"}
        for finding in findings:
            if finding.name not in known:
                self.folder.ledger.append("finding", **asdict(finding))
                self.display.say(f"{finding.name} (RL step {finding.step}): {finding.text}")

    def record_ungraded(
        self, step: int, problems: Sequence[Problem], responses: Sequence[str], grades: Sequence[Grade]
    ) -> None:
        """Write ungraded responses to samples.jsonl, and new kinds of failures to the display and the ledger."""
        K = len(grades) // len(problems)  # row b answers problem b // K
        failed = [row for row, grade in enumerate(grades) if grade.status != "ok"]
        if not failed:
            return
        failed.sort(key=lambda row: not grades[row].tampered)  # these stop the run
        self.folder.samples(
            {
                **{"step": step, "when": "ungraded", "prompt": problems[row // K].prompt, "response": responses[row]},
                **{"answer": problems[row // K].answer, "status": grades[row].status, "message": grades[row].message},
            }
            for row in failed[:UNGRADED_KEPT]
        )
        for grade in (grades[row] for row in failed):
            failure = f"{grade.status}: {grade.message}"
            if failure not in self.failures and len(self.failures) < FAILURES_SHOWN:
                self.failures.add(failure)
                self.folder.ledger.append("grading_failed", step=step, failure=failure)
                self.display.say(f"a response of step {step} could not be graded, {failure}")

    @property
    def best_kept(self) -> int | None:
        """Step with the best validation accuracy so far if its checkpoint is to be kept."""
        kept = self.experiment.checkpointing.keep_best and "best" in self.progress
        return int(self.progress["best"]["step"]) if kept else None

    def checkpoint_if_due(self, state: TrainState) -> None:
        """Save between two steps if a checkpoint is due; if any process was told to stop, save and raise Preempted."""
        stop = max(hosts.gather(self.stop.received))
        if stop or self.step % self.experiment.checkpointing.every == 0 or self.step == self.best_kept:
            self.save(state)
        if stop:
            self.folder.ledger.append("preempted", step=self.step, files=self.folder.recorded.records())
            why = f"stopped by {Signals(stop).name} at step {self.step}"
            raise Preempted(f"{why}; the state is saved in {self.folder.path}", stop)

    @annotate_function  # names it in a trace
    def save(self, state: TrainState) -> None:
        """Checkpoint the state of this step, once."""
        if self.saved == self.step:
            return
        records = {"ledger": self.folder.ledger.head, **self.folder.recorded.records()}
        progress = {**self.progress, "seconds": self.seconds(), RECORDS: records}
        save_state(self.folder, self.step, state, progress, self.best_kept)
        self.saved = self.step

    def seconds(self) -> float:
        """Wall-clock seconds of this run, including those before a resume."""
        return float(self.progress["seconds"]) + time.monotonic() - self.started

    def finish(self, state: TrainState, train_problems: Sequence[Problem]) -> dict[str, Any]:
        """Write summary.json and the ledger's last event; returns the summary."""
        data_state = {"seed": self.seed, "step": self.step, "problems": [problem.id for problem in train_problems]}
        before, after = self.progress["before"], self.progress["after"]
        lines = read_metrics(self.folder.path) if self.folder.writes else []  # only the writer needs them
        findings = find_all(lines, sampled_in(self.experiment))
        self._report_findings(findings)
        best, phases = self.best_kept, ("generate", "grade", "update", "step")
        keeps_best = best is not None and hosts.on_writer(lambda: self.folder.checkpoints.holds(best))
        suites = {
            name: {"before": before["suites"][name], "after": found} for name, found in after.get("suites", {}).items()
        }
        summary = {
            "accuracy_before": before["accuracy"],
            "accuracy_after": after["accuracy"],
            "greedy_before": before["greedy"],
            "greedy_after": after["greedy"],
            "response_length_before": before["response_length"],
            "response_length_after": after["response_length"],
            **({"suites": suites} if suites else {}),
            "best": {**self.progress["best"], "kept": keeps_best} if "best" in self.progress else None,
            "skill": self.progress.get("skill"),
            "tokens_generated": self.progress["tokens"],
            "tokens_evaluated": self.progress["tokens_evaluated"],
            "flops": self.progress["flops"],
            "findings": [asdict(finding) for finding in findings],
            "updates_skipped": sum(line.get("update/skipped", 0) for line in lines),
            "wall_seconds": self.seconds(),
            "time": {name: sum(line.get(f"time/{name}", 0.0) for line in lines) for name in phases},
            "seed": self.seed,
            "steps": self.step,
            "state_sha256": state_sha256(state, data_state),
        }
        results = {name: summary[name] for name in ("accuracy_after", "state_sha256")}
        digests = {"files": self.folder.recorded.records(), digest_key(SUMMARY): summary_sha256(summary)}
        self.folder.ledger.append("finished", **results, **digests)
        summary["ledger_head"] = self.folder.ledger.head
        self.folder.write_summary(summary)
        return summary


def _generated(values: JsonValues) -> int:
    """Number of tokens that a step generated."""
    return int(values.get("tokens/generated", 0)) + int(values.get("tokens/greedy", 0))


def sampled_in(experiment: Experiment) -> Sampled:
    """Describe how an experiment's RL steps are sampled and rewarded, for the findings."""
    own = experiment.responses is None and (experiment.teacher is None or experiment.teacher.on_policy == 1)
    rewarded = experiment.algorithm.reads_reward
    keeps_best = experiment.checkpointing.keep_best
    return Sampled(experiment.prompts_per_step, experiment.responses_per_prompt, own, rewarded, keeps_best)


def open_folder(
    out: Path,
    record: dict[str, Any],
    resume: bool,
    keep: int,
    code: Code = NO_CODE,
    accept: bool = False,
    begun: str | None = None,
) -> RunFolder:
    """Open a new run folder, or with `resume` an existing one (a new one if there is none).

    `begun` is the fingerprint of the same run with fewer steps, if the folder may hold that. Raises RunFolderError if
    processes were given different runs, or if the code has changed and this is not accepted.
    """
    identities = hosts.gather([str(out), *(record[name] for name in (*IDENTITY, "code"))])
    if any(identity != identities[0] for identity in identities):
        raise RunFolderError(f"the processes have different commands or code: {identities}; give all of them the same")
    opened: list[RunFolder] = []

    def open_it() -> None:
        if resume and (out / "experiment.json").exists():
            opened.append(RunFolder.resume(out, record, keep, code, accept, begun))
        else:
            opened.append(RunFolder.create(out, record, keep, code))

    def follow() -> None:
        if not opened:
            opened.append(RunFolder.follow(out, keep))

    hosts.on_writer(open_it)
    hosts.together(follow)  # all have read the ledger before anything is written to it
    return opened[0]


@contextmanager
def open_run(
    experiment: Experiment, seed: int, folder: RunFolder, started: float, mesh: Mesh, watchers: Sequence[Watcher] = ()
) -> Iterator[tuple[Run, TrainState | None]]:
    """Open the run of a folder, with its newest good state if it has one.

    Restoring drops the lines of metrics.jsonl and samples.jsonl after that state; they will be written again.
    """
    with ExitStack() as stack:
        display = stack.enter_context(Progress(quiet=not folder.writes))
        resumed = folder.ledger.head != GENESIS
        restored = restore_state(experiment, folder.checkpoints, folder.frozen, mesh) if resumed else None
        if restored is None:
            folder.check_never_saved()
        step = restored.step if restored else 0
        for watcher in watchers:  # one may refuse, before anything is written
            watcher.open(folder, step, max(0, step - experiment.warm_steps), display.say)
        ended = restored is not None and "after" in restored.progress
        summary = hosts.on_writer(folder.summary_of_ended) if ended else None
        if resumed:
            rejected = restored.rejected if restored else []
            records = restored.progress.get(RECORDS, {}) if restored else {}
            event = {"step": step, "rejected": rejected} if summary is None else {}
            hosts.on_writer(lambda: folder.go_back(restored.step if restored else -1, records, **event))
            refused = "".join(f"\n  rejected checkpoint {reason}" for reason in rejected)
            if summary is None:
                display.say(f"resuming {folder.path} at step {step}{refused}")
            else:
                display.say(f"{folder.path} has ended at step {step}, so there is nothing to resume{refused}")
            for name, (then, now) in changed_surroundings(folder.path).items():
                display.say(f"  {name} is {now}, was {then}: bits may differ from those of an uninterrupted run")
        else:
            digest = {digest_key(EXPERIMENT): file_sha256(folder.path / EXPERIMENT)}
            folder.ledger.append("started", seed=seed, **digest)
        for note in folder.notes:
            display.say(note)
        for watcher in watchers:
            stack.callback(watcher.close)
        stop = stack.enter_context(StopSignal())
        run = Run(experiment, seed, folder, display, stop, started, watchers, step, summary=summary)
        if restored:
            run.progress, run.saved = {**restored.progress}, step
            run.progress.pop(RECORDS, None)
            if step < experiment.warm_steps + experiment.steps and not run.spends_budget():
                run.progress.pop("after", None)  # it had ended, and got more steps
        yield run, restored.state if restored else None
