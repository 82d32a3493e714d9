"""A study is carried out: its members are given to workers, seed by seed, until all have ended or a budget is spent.

A worker gets one member at a time, or as many as are to be one population (`rl_llm.population`).
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import mean

from rl_llm.runs.ledger import Ledger
from rl_llm.runs.preemption import Preempted, StopSignal
from rl_llm.runs.progress import Progress
from rl_llm.studies.folder import LOGS, Member
from rl_llm.studies.workers import Job, Workers, open_workers

TIMES = 2  # that a member whose worker was killed is begun
Cores = Sequence[Sequence[int] | None]
Group = tuple[Member, ...]  # one member, or those of a population


@dataclass(frozen=True)
class Plan:
    """What is to be run, and how: `train` takes the arguments of some `rl-llm train`s and the logs that they print to,
    and gives their exit codes; `cores` are those of each worker, `compiled` the folder of the persistent cache,
    `seconds` what may be spent. `prefix` and the name of a member are the spec of its experiment, `overrides` are made
    to every arm. Up to `population` members run as one, those whose experiments have the same one of the `structures`.
    """

    out: Path
    prefix: str
    members: Sequence[Member]
    train: Callable[[Sequence[list[str]], Sequence[Path]], list[int]]
    cores: Cores
    compiled: Path
    overrides: Sequence[str] = ()
    seconds: float | None = None
    population: int = 1
    structures: Mapping[str, Hashable] = field(default_factory=dict)

    def job(self, group: Group) -> Job:
        """What runs some members."""
        return Job(self.train, [self.command(member) for member in group], [self.log(member) for member in group])

    def log(self, member: Member) -> Path:
        """What a member prints."""
        return self.out / LOGS / f"{member.folder.name}.log"

    def command(self, member: Member) -> list[str]:
        """The arguments that run a member: the very ones that a user could give."""
        arguments = [f"{self.prefix}{member.name}", "--seed", str(member.seed), "--out", str(member.folder), "--resume"]
        overrides = [*(self.overrides if member.of_arm else ()), *([f"start={member.start}"] if member.start else [])]
        return arguments + [part for override in overrides for part in ("--set", override)]

    def first_group(self, ready: Sequence[Member]) -> Group:
        """The first of the members that could begin, with those that may run as one population with it. They are
        divided evenly: two populations of the same size are one program.
        """
        alike = [one for one in ready if self.structures.get(one.name) == self.structures.get(ready[0].name)]
        populations = ceil(len(alike) / self.population)
        return tuple(alike[: ceil(len(alike) / populations)])


@dataclass
class Outcome:
    """How it went: members that failed, with why; those that a budget left out."""

    failed: dict[Member, str] = field(default_factory=dict)
    left_out: list[Member] = field(default_factory=list)


def carry_out(plan: Plan, ledger: Ledger) -> Outcome:
    """Run all members that are not done. What fails is left, with all that begins with it; the rest goes on.

    Raises Preempted after a SIGTERM: what was running has saved its state.
    """
    waiting = [member for member in plan.members if not member.done]
    outcome, begun, took = Outcome(), dict[Member, int](), list[float]()
    done, spent = len(plan.members) - len(waiting), 0.0
    with (
        Progress() as display,
        StopSignal() as stop,
        display.phase("members", len(plan.members), done) as phase,
        open_workers(plan.cores[: max(1, len(waiting))], plan.compiled) as workers,
    ):
        begin = time.monotonic()
        while (waiting or workers.busy) and not stop.requested:
            spent = time.monotonic() - begin
            _give(plan, workers, waiting, begun, outcome, spent, took)
            for ended in workers.ended():
                again = [member for member, code in zip(ended.task, ended.codes, strict=True) if code < 0]
                again = [member for member in again if begun[member] < TIMES]
                waiting[:0] = again
                for member in again:
                    display.say(f"{member}: its process was killed (signal {-ended.codes[0]}); it goes on from there")
                for member, code in zip(ended.task, ended.codes, strict=True):
                    if member not in again:
                        _note(member, code, ended.seconds, outcome, ledger, display)
                done += len(ended.task) - len(again)
                took += [] if again else [ended.seconds]
                phase.update(done, seconds=ended.seconds)
    if stop.requested:
        ledger.append("preempted", done=done)
        raise Preempted(
            f"stopped by SIGTERM with {done} of {len(plan.members)} members done; what was running is saved"
        )
    ledger.append("carried_out", done=sum(member.done for member in plan.members), seconds=spent)
    return outcome


def _give(
    plan: Plan,
    workers: Workers[Group],
    waiting: list[Member],
    begun: dict[Member, int],
    outcome: Outcome,
    spent: float,
    took: Sequence[float],
) -> None:
    """Members to idle workers, the first ones whose start is there. With a budget none that would end beyond it."""
    broken = {member.folder for member in outcome.failed}
    for member in [member for member in waiting if member.start in broken]:
        waiting.remove(member)
        outcome.failed[member] = f"its start {member.start} failed"
    if plan.seconds is not None and spent + (mean(took) if took else 0.0) > plan.seconds:
        outcome.left_out += waiting
        waiting.clear()
    while workers.idle and (ready := [member for member in waiting if member.ready]):
        group = plan.first_group(ready)
        for member in group:
            waiting.remove(member)
            begun[member] = begun.get(member, 0) + 1
        workers.give(group, plan.job(group))


def _note(member: Member, code: int, seconds: float, outcome: Outcome, ledger: Ledger, display: Progress) -> None:
    """Say and write down how a member ended."""
    if code == 0 and member.done:
        summary, _ = member.read()
        ledger.append("member", name=member.name, seed=member.seed, state_sha256=summary["state_sha256"])
        after = f"{summary['accuracy_before']:.1%} -> {summary['accuracy_after']:.1%}" if member.of_arm else "ready"
        display.say(f"{member}: {after}, {seconds:.0f} s")
        return
    outcome.failed[member] = f"exit code {code}; its last words are in {LOGS}/{member.folder.name}.log"
    ledger.append("member_failed", name=member.name, seed=member.seed, code=code)
    display.say(f"{member} failed: {outcome.failed[member]}")
