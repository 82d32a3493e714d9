"""`rl-llm ablate`: members equal the runs of their own commands, whatever happens to their processes."""

import json
import os
import signal
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from program import Finished, finish, outcome, rl_llm, shared_folder, start, steps_done, wait_until, without_time

from rl_llm.cli import main
from rl_llm.commands import train
from rl_llm.commands.ablate import train_members
from rl_llm.runs.folder import read_metrics
from rl_llm.runs.ledger import Ledger
from rl_llm.studies.folder import Member
from rl_llm.studies.runner import StudySchedule
from rl_llm.studies.workers import Ended, Job, Workers, open_workers
from rl_llm.watching.trackers import WeightsAndBiases

MODULE = "tests/data/study.py"


def obey(commands: Sequence[list[str]], logs: Sequence[Path]) -> list[int]:
    """A job: print a line and end as its command says."""
    (how,) = commands[0]
    print("told to", how, flush=True)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "wait":
        signal.sigwait([signal.SIGTERM])
        return [143]
    return [int(how)]


def until_ended(workers: Workers[str], count: int) -> list[Ended[str]]:
    ended: list[Ended[str]] = []
    deadline = time.monotonic() + 60
    while len(ended) < count:
        assert time.monotonic() < deadline
        ended += workers.ended()
    return ended


@pytest.mark.slow
def test_workers_report_exit_codes_and_survive_a_killed_task(tmp_path: Path):
    with open_workers([None], tmp_path / "compiled") as workers:
        codes = {}
        for task, how in (("first", "0"), ("second", "die"), ("third", "7")):
            assert workers.idle
            workers.give(task, Job(obey, [[how]], [tmp_path / "logs" / f"{task}.log"]))
            assert workers.busy
            codes[task] = until_ended(workers, 1)[0].codes
    assert codes == {"first": [0], "second": [-signal.SIGKILL], "third": [7]}
    assert (tmp_path / "logs" / "third.log").read_text() == "told to 7\n"


def test_stopping_workers_signals_them_and_waits(tmp_path: Path):
    resource_tracker.ensure_running()  # its start unblocks the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # inherited: the job waits for it
    try:
        with open_workers([[min(os.sched_getaffinity(0))]], tmp_path) as workers:
            workers.give("only", Job(obey, [["wait"]], [tmp_path / "log"]))
            while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
                time.sleep(0.05)
            workers.stop(signal.SIGTERM)
            assert until_ended(workers, 1)[0].codes == [143]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.py"], ["no file nowhere.py"]),
        ([MODULE], ["no scale 'cpu'; it has smoke"]),
        ([MODULE, "--scale", "smoke", "--seeds", "0"], ["--seeds: must be a whole number of at least 1, not '0'"]),
        ([MODULE, "--scale", "smoke", "--budget-dollars", "3"], ["--dollars-per-hour P need each other"]),
        ([MODULE, "--scale", "smoke", "--budget-minutes", "0"], ["--budget-minutes 0 must be above 0"]),
        ([MODULE, "--scale", "smoke", "--budget-minutes", "nan"], ["--budget-minutes nan must be above 0"]),
        (["experiments/quickstart.py", "--budget-tokens", "9"], ["schedule='linear'", "token_budget=9"]),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(arguments: list[str], words: list[str], tmp_path: Path):
    code, _, stderr = rl_llm("ablate", *arguments, "--out", tmp_path / "study")
    assert code == 2
    assert all(word in stderr for word in words), stderr
    assert not (tmp_path / "study").exists()


def test_every_member_is_shown_in_the_trackers():
    plan = StudySchedule(Path(), "study.py:", [], train_members, [None], Path(), trackers=("wandb", "mlflow"))
    parser = ArgumentParser()
    train.add_arguments(parser)
    assert parser.parse_args(plan.command(Member("fast", 0, Path("run")))).track == ["wandb", "mlflow"]


def test_a_population_is_refused_for_a_tracker_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(WeightsAndBiases, "packages", ())
    study = ("ablate", MODULE, "--scale", "smoke", "--out", str(tmp_path / "study"))
    assert main([*study, "--track", "wandb", "--population", "2"]) == 2
    assert "--population 2 cannot act with --track wandb" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def arguments(folder: Path, shared: Path, *more: str, module: str | Path = MODULE) -> list[str | Path]:
    return ["ablate", module, "--scale", "smoke", "--out", folder, "--shared", shared, *more]


def ablate(folder: Path, *more: str) -> Finished:
    """A study with starts in the folder `shared` beside its own."""
    code, stdout, stderr = rl_llm(*arguments(folder, folder.parent / "shared", *more))
    assert code == 0, stderr
    return Finished(folder, stdout, stderr)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("study")
    shared_folder(folder)
    return ablate(folder / "study", "--seeds", "2")


@pytest.mark.slow
def test_a_member_equals_the_run_of_its_command_bit_for_bit(study: Finished, tmp_path: Path):
    warm = next((study.folder.parent / "shared" / "starts").glob("*-seed1"))
    spec = f"{MODULE}:smoke/fast"
    code, _, stderr = rl_llm("train", spec, "--seed", "1", "--out", tmp_path / "run", "--set", f"start={warm}")
    assert code == 0, stderr
    single, member = Finished(tmp_path / "run", "", ""), Finished(study.folder / "fast-seed1", "", "")
    assert without_time(single.metrics) == without_time(member.metrics)
    assert outcome(single.summary) == outcome(member.summary)


@pytest.mark.slow
def test_equal_arms_are_bitwise_equal_and_seeds_can_be_added(study: Finished):
    before = results(study.folder)
    assert before["verdicts"][1]["identical"]
    assert before["verdicts"][1]["outcome"] == "supported"
    again = ablate(study.folder, "--seeds", "3", "--resume")
    after = results(study.folder)
    for arm, states in before["states"].items():
        assert states.items() <= after["states"][arm].items()
    assert f"fast seed 2: started; log {study.folder / 'logs' / 'fast-seed2.log'}\n" in again.stderr
    assert "run folder" in (study.folder / "logs" / "fast-seed2.log").read_text()
    assert "seed 0" not in again.stderr
    events = [entry["event"] for entry in Ledger.verify(study.folder / "ledger.jsonl")]
    assert events.count("member") == 4 * 3


@pytest.mark.slow
def test_a_stopped_study_resumes_to_the_same_numbers(study: Finished, tmp_path: Path):
    """A terminal sends Ctrl-C to the workers and their graders as well; the members still save their states."""
    folder = tmp_path / "study"
    process = start(*arguments(folder, shared_folder(tmp_path), "--seeds", "2"))
    warm = tmp_path / "shared" / "starts"
    wait_until(process, lambda: any(steps_done(run) > 3 for run in warm.glob("*")) if warm.exists() else False)
    os.killpg(process.pid, signal.SIGINT)
    code, _, stderr = finish(process)
    assert code == 130, stderr
    assert "stopped by SIGINT with 0 of 8 members done; running members saved their state" in stderr
    assert "resume with the same command and --resume" in stderr
    ablate(folder, "--seeds", "2", "--resume")
    of = {arm: {seed: states[seed] for seed in ("0", "1")} for arm, states in results(study.folder)["states"].items()}
    assert results(folder)["states"] == of


@pytest.mark.slow
def test_a_failed_member_does_not_stop_the_others(tmp_path: Path):
    source = (Path(__file__).parents[1] / "data" / "study.py").read_text()
    broken = "replace(base, optimizer=AdamW(1e-4), task=replace(base.task, modulus=7))"
    (tmp_path / "broken.py").write_text(source.replace("replace(base, optimizer=AdamW(1e-4))", broken))
    module, shared = tmp_path / "broken.py", shared_folder(tmp_path)
    code, stdout, stderr = rl_llm(*arguments(tmp_path / "study", shared, "--seeds", "1", module=module))
    assert code == 1
    assert "slow seed 0 failed: exit code 2" in stderr
    assert (tmp_path / "study" / "fast-seed0" / "summary.json").exists()
    assert "undecided" in stdout


@pytest.mark.slow
def test_no_member_starts_that_would_exceed_the_budget(tmp_path: Path):
    budget = ("--seeds", "2", "--budget-minutes", "0.01")
    code, _, stderr = rl_llm(*arguments(tmp_path / "study", shared_folder(tmp_path), *budget))
    assert code == 0
    assert "members did not fit into the budget: raise it and use --resume" in stderr
    done = [path for path in tmp_path.glob("*/**/summary.json")]
    assert 0 < len(done) < 8
    assert read_metrics(done[0].parent)
