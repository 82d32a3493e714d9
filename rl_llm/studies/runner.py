"""A study is carried out: its members are given to workers, seed by seed, until all have ended or a budget is spent.

A worker gets one member at a time, or as many as are to be one population (`rl_llm.parallel.population`).
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
from rl_llm.studies.workers import Ended, Job, Workers, open_workers

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


@dataclass
class Course:
    """A plan on its way: the members that wait, how often each was begun, and the seconds that tasks took."""

    plan: Plan
    waiting: list[Member]
    begun: dict[Member, int] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)

    def give(self, workers: Workers[Group], spent: float) -> None:
        """Members to idle workers, the first ones whose start is there. With a budget none that would end beyond it."""
        broken = {member.folder for member in self.outcome.failed}
        for member in [member for member in self.waiting if member.start in broken]:
            self.waiting.remove(member)
            self.outcome.failed[member] = f"its start {member.start} failed"
        if self.plan.seconds is not None and spent + (mean(self.took) if self.took else 0.0) > self.plan.seconds:
            self.outcome.left_out += self.waiting
            self.waiting.clear()
        while workers.idle and (ready := [member for member in self.waiting if member.ready]):
            group = self.plan.first_group(ready)
            for member in group:
                self.waiting.remove(member)
                self.begun[member] = self.begun.get(member, 0) + 1
            workers.give(group, self.plan.job(group))

    def take(self, ended: Ended[Group], ledger: Ledger, display: Progress) -> int:
        """A task back, and say and write down how it ended; returns how many members are over. Those whose worker was
        killed wait again.
        """
        again = []
        for member, code in zip(ended.task, ended.codes, strict=True):
            if code < 0 and self.begun[member] < TIMES:
                again.append(member)
                display.say(f"{member}: its process was killed (signal {-code}); it goes on from there")
            elif code == 0 and member.done:
                display.say(f"{member}: {_result(member, ledger)}, {ended.seconds:.0f} s")
            else:
                self.outcome.failed[member] = f"exit code {code}; its last words are in {LOGS}/{member.folder.name}.log"
                ledger.append("member_failed", name=member.name, seed=member.seed, code=code)
                display.say(f"{member} failed: {self.outcome.failed[member]}")
        self.waiting[:0] = again
        self.took += [] if again else [ended.seconds]
        return len(ended.task) - len(again)


def carry_out(plan: Plan, ledger: Ledger) -> Outcome:
    """Run all members that are not done. What fails is left, with all that begins with it; the rest goes on.

    Raises Preempted after a SIGTERM: what was running has saved its state.
    """
    course = Course(plan, [member for member in plan.members if not member.done])
    done, spent = len(plan.members) - len(course.waiting), 0.0
    with (
        Progress() as display,
        StopSignal() as stop,
        display.phase("members", len(plan.members), done) as phase,
        open_workers(plan.cores[: max(1, len(course.waiting))], plan.compiled) as workers,
    ):
        begin = time.monotonic()
        while (course.waiting or workers.busy) and not stop.requested:
            spent = time.monotonic() - begin
            course.give(workers, spent)
            for ended in workers.ended():
                done += course.take(ended, ledger, display)
                phase.update(done, seconds=ended.seconds)
    if stop.requested:
        ledger.append("preempted", done=done)
        raise Preempted(
            f"stopped by SIGTERM with {done} of {len(plan.members)} members done; what was running is saved"
        )
    done, left_out = sum(member.done for member in plan.members), len(course.outcome.left_out)
    ledger.append("carried_out", done=done, seconds=spent, left_out=left_out)
    return course.outcome


def _result(member: Member, ledger: Ledger) -> str:
    """Write down a member that is done; returns what came of it."""
    summary = member.summary
    ledger.append("member", name=member.name, seed=member.seed, state_sha256=summary["state_sha256"])
    return f"{summary['accuracy_before']:.1%} -> {summary['accuracy_after']:.1%}" if member.of_arm else "ready"
