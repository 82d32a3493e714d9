"""Runs a study: gives its members to workers, seed by seed, until all have ended or a budget is spent.

A worker runs one member at a time, or several as one population (`rl_llm.parallel.population`).
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from signal import Signals
from statistics import mean

from rl_llm.config.source import NO_CODE, Code
from rl_llm.runs.code import ACCEPT
from rl_llm.runs.ledger import Ledger
from rl_llm.runs.preemption import Preempted, StopSignal
from rl_llm.runs.progress import Progress
from rl_llm.studies.folder import LOGS, Member, changed_code
from rl_llm.studies.workers import Ended, Job, Workers, open_workers

MAX_STARTS = 2  # of a member whose worker was killed
Group = tuple[Member, ...]  # one member, or the members of a population


@dataclass(frozen=True)
class StudySchedule:
    """The members to run, and how to run them.

    prefix: comes before a member's name in the spec of its experiment. train: takes the arguments of several
    `rl-llm train` commands and their log files, returns exit codes. cores: those of each worker. compiled: the
    persistent cache folder. overrides: applied to every arm. seconds: the time budget. population: how many members may
    run as one, if their experiments have equal `structures`. code: of the study. accept: members may go on with code
    that has changed since they began. trackers: of every member.
    """

    out: Path
    prefix: str
    members: Sequence[Member]
    train: Callable[[Sequence[list[str]], Sequence[Path]], list[int]]
    cores: Sequence[Sequence[int] | None]
    compiled: Path
    overrides: Sequence[str] = ()
    seconds: float | None = None
    population: int = 1
    structures: Mapping[str, Hashable] = field(default_factory=dict)
    code: Code = NO_CODE
    accept: bool = False
    trackers: Sequence[str] = ()

    def job(self, group: Group) -> Job:
        """The job that runs a group."""
        logs = [self.out / LOGS / f"{member.folder.name}.log" for member in group]
        return Job(self.train, [self.command(member) for member in group], logs)

    def command(self, member: Member) -> list[str]:
        """The arguments of `rl-llm train` that run a member."""
        arguments = [f"{self.prefix}{member.name}", "--seed", str(member.seed), "--out", str(member.folder), "--resume"]
        overrides = [*(self.overrides if member.is_arm else ()), *([f"start={member.start}"] if member.start else [])]
        arguments += [ACCEPT] if self.accept else []
        arguments += [part for tracker in self.trackers for part in ("--track", tracker)]
        return arguments + [part for override in overrides for part in ("--set", override)]

    def first_group(self, ready: Sequence[Member]) -> Group:
        """The first ready member and those that may run with it as one population.

        Populations are divided evenly, because two of the same size share one program.
        """
        alike = [one for one in ready if self.structures.get(one.name) == self.structures.get(ready[0].name)]
        populations = ceil(len(alike) / self.population)
        return tuple(alike[: ceil(len(alike) / populations)])


@dataclass
class IncompleteMembers:
    """Members that failed, with the reason, and members that the budget left out."""

    failed: dict[Member, str] = field(default_factory=dict)
    left_out: list[Member] = field(default_factory=list)


@dataclass
class _Queue:
    """A schedule in progress: waiting members, starts of each member, and seconds per finished job."""

    schedule: StudySchedule
    waiting: list[Member]
    starts: dict[Member, int] = field(default_factory=dict)
    durations: list[float] = field(default_factory=list)
    incomplete: IncompleteMembers = field(default_factory=IncompleteMembers)

    def give(self, workers: Workers[Group], spent: float, display: Progress) -> None:
        """Give ready members to idle workers, but none that would end beyond the budget."""
        broken = {member.folder for member in self.incomplete.failed}
        for member in [member for member in self.waiting if member.start in broken]:
            self.waiting.remove(member)
            self.incomplete.failed[member] = f"its start {member.start} failed"
        budget, expected = self.schedule.seconds, mean(self.durations) if self.durations else 0.0
        if budget is not None and spent + expected > budget:
            self.incomplete.left_out += self.waiting
            self.waiting.clear()
        while workers.idle and (ready := [member for member in self.waiting if member.ready]):
            group = self.schedule.first_group(ready)
            for member in group:
                self.waiting.remove(member)
                self.starts[member] = self.starts.get(member, 0) + 1
            job = self.schedule.job(group)
            workers.give(group, job)
            for member, log in zip(group, job.logs, strict=True):
                display.say(f"{member}: started; log {log}")

    def take(self, ended: Ended[Group], ledger: Ledger, display: Progress) -> int:
        """Report and record a finished job; returns how many members are over. A killed worker's members wait again."""
        again = []
        for member, code in zip(ended.item, ended.codes, strict=True):
            if code < 0 and self.starts[member] < MAX_STARTS:
                again.append(member)
                display.say(f"{member}: its process was killed (signal {-code}); resuming it")
            elif code == 0 and member.done and (changes := changed_code(member, self.schedule.code)):
                why = f"{', '.join(changes)} changed during the study; delete {member.folder}, then use --resume"
                self.fail(member, code, why, ledger, display)
            elif code == 0 and member.done:
                display.say(f"{member}: {_record_done(member, ledger)}, {ended.seconds:.0f} s")
            else:
                why = f"exit code {code}; see the end of {LOGS}/{member.folder.name}.log"
                self.fail(member, code, why, ledger, display)
        self.waiting[:0] = again
        self.durations += [] if again else [ended.seconds]
        return len(ended.item) - len(again)

    def fail(self, member: Member, code: int, why: str, ledger: Ledger, display: Progress) -> None:
        """Report and record a member that failed."""
        self.incomplete.failed[member] = why
        ledger.append("member_failed", name=member.name, seed=member.seed, code=code)
        display.say(f"{member} failed: {why}")


def run_study(schedule: StudySchedule, ledger: Ledger) -> IncompleteMembers:
    """Run all members that are not done; a failure stops only the members that start from it.

    Raises Preempted after a SIGTERM or Ctrl-C, once the running members have saved their state, and FolderLostError if
    the study's folder was moved or deleted.
    """
    queue = _Queue(schedule, [member for member in schedule.members if not member.done])
    done, spent = len(schedule.members) - len(queue.waiting), 0.0
    with (
        Progress() as display,
        StopSignal() as stop,
        display.phase("members", len(schedule.members), done) as phase,
        open_workers(schedule.cores[: max(1, len(queue.waiting))], schedule.compiled) as workers,
    ):
        begin = time.monotonic()
        while (queue.waiting or workers.busy) and not stop.received:
            spent = time.monotonic() - begin
            ledger.check()  # members would make a folder again that was moved or deleted
            queue.give(workers, spent, display)
            for ended in workers.ended():
                done += queue.take(ended, ledger, display)
                phase.update(done, seconds=ended.seconds)
    if stop.received:
        ledger.append("preempted", done=done)
        why = f"stopped by {Signals(stop.received).name} with {done} of {len(schedule.members)} members done"
        raise Preempted(f"{why}; running members saved their state", stop.received)
    done, left_out = sum(member.done for member in schedule.members), len(queue.incomplete.left_out)
    ledger.append("carried_out", done=done, seconds=spent, left_out=left_out)
    return queue.incomplete


def _record_done(member: Member, ledger: Ledger) -> str:
    """Enter a finished member and the head of its own ledger in the ledger; returns its result in words."""
    summary = member.summary
    anchor = {"ledger_head": summary["ledger_head"]} if "ledger_head" in summary else {}
    ledger.append("member", name=member.name, seed=member.seed, state_sha256=summary["state_sha256"], **anchor)
    return f"{summary['accuracy_before']:.1%} -> {summary['accuracy_after']:.1%}" if member.is_arm else "ready"
