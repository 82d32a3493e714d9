"""Studies: their parts and refusals, their metrics, and the record of the paper's studies."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from program import EXPERIMENT

from experiments.initialization_map import draw
from experiments.paper.data_difficulty_and_bias import Skewed, skewed
from experiments.paper.initialization_and_learning_rate import STUDY
from experiments.paper.t8_overlong_filtering import RepeatRatio
from experiments.quickstart import TASK
from experiments.studies import HEAD, RECORD, STUDIES, agreement, costs, found, record, recorded, table
from rl_llm.algorithms import REINFORCE
from rl_llm.config import ExperimentError, load_experiment, to_json
from rl_llm.learner.optimizer import AdamW
from rl_llm.model import Initialization
from rl_llm.studies import AtTokens, Drop, Final, Hypothesis, Last, Speed, Study
from rl_llm.studies.folder import StudyFolderError, members, open_study, reopen_study
from rl_llm.studies.hypothesis import judge
from rl_llm.studies.metric import Metric, run_outcome
from rl_llm.studies.study import SCALES, load_study, only_warm_start

ROOT = Path(__file__).parents[2]
MODULE = "tests/data/study.py"
COLD = replace(EXPERIMENT, warm_start=None)
HYPOTHESIS = Hypothesis("One is more than two", "one", "two", Final(), "greater", 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "needs an arm and a seed"),
        ({"seeds": 0}, "needs an arm and a seed"),
        ({"arms": {"a/b": COLD}}, "'a/b' cannot name a folder"),
        ({"starts": {"warm": COLD}}, "starts['warm'] has no warm_start"),
        ({"starts": {"warm": EXPERIMENT}}, "no arm uses starts 'warm'"),
        ({"starts": {"one": EXPERIMENT}}, "'one' is the name of an arm and of a start"),
        (
            {"hypotheses": (replace(HYPOTHESIS, control="three"),)},
            "names an unknown arm 'three'; the arms are one, two",
        ),
    ],
)
def test_an_inconsistent_study_is_refused(changes: dict[str, Any], message: str):
    study = Study("A study", {"one": COLD, "two": COLD}, (HYPOTHESIS,))
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(study, **changes)


@pytest.mark.parametrize(
    ("source", "scale", "message"),
    [
        ("", "cpu", "has neither a STUDY (studies by scale) nor an ABLATION"),
        ("STUDY = {'cpu': 3}", "cpu", "STUDY['cpu'] is 3, not a Study"),
        ("STUDY = {'cpu': 3}", "smoke", "has no scale 'smoke'; it has cpu"),
        ("STUDY = 3", "cpu", "STUDY is of type int; expected studies by scale, {'cpu': Study(...)}"),
        ("ABLATION = {'one': 3}", "paper", "has only an ABLATION, which has one scale"),
    ],
)
def test_a_file_without_the_study_is_refused(tmp_path: Path, source: str, scale: str, message: str):
    path = tmp_path / "no_study.py"
    path.write_text(source)
    with pytest.raises(ExperimentError, match=re.escape(message)):
        load_study(str(path), scale)


def test_a_module_with_an_ablation_is_a_study_of_its_arms():
    study, prefix = load_study("experiments/quickstart.py", "cpu")
    assert (set(study.arms), study.hypotheses, prefix) == (
        {"lite_ppo", "rejection_sampling"},
        (),
        "experiments/quickstart.py:",
    )


def test_the_digest_of_a_study_covers_everything_but_seeds():
    study, _ = load_study(MODULE, "smoke")
    names = {
        replace(study, **changes).registered()["sha256"]
        for changes in (
            {},
            {"title": "Another"},
            {"hypotheses": study.hypotheses[:1]},
            {"hypotheses": (replace(study.hypotheses[0], smallest=0.5), *study.hypotheses[1:])},
            {"arms": {**study.arms, "twin": study.arms["slow"]}},
            {"starts": {"warm": replace(study.starts["warm"], train_problems=41)}},
        )
    }
    assert len(names) == 6
    assert replace(study, seeds=9).registered() == study.registered()


def test_members_are_loaded_by_the_names_in_their_commands():
    study, prefix = load_study(MODULE, "smoke")
    assert load_experiment(f"{prefix}slow")[1] == study.arms["slow"]
    assert load_experiment(f"{prefix}warm")[1] == only_warm_start(study.starts["warm"])


def test_a_start_keeps_its_initialization_and_drops_rl():
    """Everything that makes its policy is kept, so starts that differ in it stay different."""
    drawn = replace(EXPERIMENT, initialization=Initialization(scale=2.0))
    one, other = only_warm_start(EXPERIMENT), only_warm_start(drawn)
    assert other == replace(one, initialization=drawn.initialization)
    assert (one.warm_start, one.model, one.steps) == (EXPERIMENT.warm_start, EXPERIMENT.model, 1)
    rl = {"steps": 5, "algorithm": REINFORCE, "updates_per_rollout": 1, "staleness": 1, "optimizer": AdamW(1e-3)}
    assert only_warm_start(replace(EXPERIMENT, token_budget=900, **rl)) == one


def test_members_come_seed_by_seed_after_their_starts(tmp_path: Path):
    study, _ = load_study(MODULE, "smoke")
    found = members(study, tmp_path, 2)
    assert [(member.name, member.seed) for member in found] == [
        (name, seed) for seed in (0, 1) for name in ("warm", "slow", "fast", "twin")
    ]
    assert {member.start for member in found if member.is_arm and member.seed == 1} == {found[4].folder}
    elsewhere = members(study, tmp_path, 1, tmp_path / "shared")
    assert elsewhere[0].folder.parent == tmp_path / "shared" / "starts"
    assert elsewhere[0].folder.name == found[0].folder.name


def test_a_folder_holds_one_study(tmp_path: Path):
    study, _ = load_study(MODULE, "smoke")
    open_study(tmp_path / "study", study, MODULE, "smoke", 2, False)
    with pytest.raises(StudyFolderError, match="already holds a study; continue it with --resume"):
        open_study(tmp_path / "study", study, MODULE, "smoke", 2, False)
    open_study(tmp_path / "study", study, MODULE, "smoke", 3, True)
    with pytest.raises(StudyFolderError, match="its registered title differs"):
        open_study(tmp_path / "study", replace(study, title="Another"), MODULE, "smoke", 2, True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StudyFolderError, match="is not empty and holds no study"):
        open_study(tmp_path / "other", study, MODULE, "smoke", 2, True)


def test_a_registration_cannot_be_rewritten(tmp_path: Path):
    """Neither some words beside the old digest, nor everything for another module: the ledger has the digest."""
    study, _ = load_study(MODULE, "smoke")
    open_study(tmp_path, study, MODULE, "smoke", 2, False)
    path = tmp_path / "study.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "title": "Another"}))
    with pytest.raises(StudyFolderError, match=r"has changed since the study was registered \(title\)"):
        reopen_study(tmp_path)
    turned = replace(study, hypotheses=(replace(study.hypotheses[0], direction="greater"), *study.hypotheses[1:]))
    module = tmp_path / "turned.py"
    module.write_text("from tests.data.study import *\nfrom dataclasses import replace\none = STUDY['smoke']\n")
    with module.open("a") as code:
        code.write("first, *others = one.hypotheses\n")
        code.write("STUDY = {'smoke': replace(one, hypotheses=(replace(first, direction='greater'), *others))}\n")
    path.write_text(json.dumps({**stored, **turned.registered(), "spec": str(module)}))
    with pytest.raises(StudyFolderError, match=r"registered another study .*; restore study\.json"):
        reopen_study(tmp_path)
    with pytest.raises(StudyFolderError, match="registered another study"):
        open_study(tmp_path, turned, str(module), "smoke", 2, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "ledger.jsonl").unlink(), r"ledger\.jsonl has no registration; .* --resume"),
        (lambda out: (out / "study.json").write_text("{"), r"study\.json is not JSON"),
    ],
)
def test_a_damaged_study_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str):
    study, _ = load_study(MODULE, "smoke")
    open_study(tmp_path, study, MODULE, "smoke", 2, False)
    damage(tmp_path)
    with pytest.raises(StudyFolderError, match=message):
        reopen_study(tmp_path)


def test_a_budget_applies_to_every_arm():
    study = Study("A study", {"one": replace(COLD, optimizer=AdamW(1e-2))})
    assert study.with_budget(500).arms["one"].token_budget == 500
    with pytest.raises(ValueError, match="schedule='linear'"):
        Study("A study", {"one": COLD}).with_budget(500)


LINES = [
    {"phase": "warm_start", "tokens/total": 0, "evaluation/accuracy": 0.9},
    {"phase": "rl", "tokens/total": 100, "evaluation/accuracy": 0.2, "policy/entropy": 1.0},
    {"phase": "rl", "tokens/total": 200, "policy/entropy": 0.5},
    {"phase": "rl", "tokens/total": 300, "evaluation/accuracy": 0.6, "policy/entropy": 0.3},
    {"phase": "rl", "tokens/total": 500, "evaluation/accuracy": 0.4, "policy/entropy": 0.1},
]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Final(), 0.7),
        (Final("response_length_after"), None),
        (AtTokens(200), 0.4),
        (AtTokens(501), None),
        (AtTokens(99), None),
        (Last("policy/entropy", 0.5), 0.2),
        (Last("policy/entropy"), 0.1),
        (Last("critic/error"), None),
        (Speed(), (0.15 * 100 + 0.4 * 200 + 0.5 * 200) / 500),
        (Speed("critic/error"), None),
        (Speed(before="length_before"), None),
        (Speed(before="half"), (0.35 * 100 + 0.4 * 200 + 0.5 * 200) / 500),
        (Drop(), 0.2),
        (Drop("critic/error"), None),
    ],
)
def test_a_metric_reads_one_number_of_a_run(metric: Metric, expected: float | None):
    found = metric({"accuracy_before": 0.1, "accuracy_after": 0.7, "half": 0.5}, LINES)
    assert found is None if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize(("budget", "area"), [(400, 15 + 80 + 55), (800, 15 + 80 + 100 + 0.4 * 300)])
def test_speed_is_a_mean_over_the_whole_budget(budget: int, area: float):
    assert Speed()({"accuracy_before": 0.1, "token_budget": budget}, LINES) == pytest.approx(area / budget)


@pytest.mark.parametrize(
    ("before", "best", "after", "expected"),
    [
        (0.4, 0.95, 0.9, "learned"),
        (0.4, 0.85, 0.7, "learned"),
        (0.4, 0.95, 0.7, "collapsed"),
        (0.4, None, 0.7, "learned"),
        (0.4, 0.45, 0.44, "stalled"),
        (0.4, 0.45, 0.31, "stalled"),
        (0.4, 0.45, 0.29, "collapsed"),
        (0.4, 0.95, math.nan, "collapsed"),
    ],
)
def test_run_outcomes(before: float, best: float | None, after: float, expected: str):
    lines = [] if best is None else [{"phase": "rl", "tokens/total": 9, "evaluation/accuracy": best}]
    assert run_outcome({"accuracy_before": before, "accuracy_after": after}, lines) == expected


def test_the_repeat_ratio_is_among_truncated_responses():
    ratio = RepeatRatio()
    steps = [{"response/truncated": 0.2, "response/looping": 0.1}, {"response/truncated": 0.3, "response/looping": 0.3}]
    assert ratio({}, steps) == pytest.approx(0.8)
    assert ratio({}, [{"response/truncated": 0.0, "response/looping": 0.0}]) is None


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "experiments/paper").glob("*.py")))
def test_every_study_of_the_paper_is_valid_at_all_scales(name: str):
    path = f"experiments/paper/{name}.py"
    if name == "scales":
        return
    for scale in SCALES:
        study, _ = load_study(path, scale)
        assert study.hypotheses
        assert study.seeds >= 5
        assert len({arm.token_budget for arm in study.arms.values()}) == 1
        assert None not in {arm.token_budget for arm in study.arms.values()}


def finished(out: Path, values: dict[str, dict[int, float]]) -> None:
    """Write the folder of the first study: one run, and verdicts on two hypotheses."""
    twins = Hypothesis("The same twice", "two", "three", Final(), "none", 0.1)
    verdicts = judge(
        (HYPOTHESIS, twins),
        {Final(): {**values, "three": values["two"]}},
        dict.fromkeys(("two", "three"), dict.fromkeys(range(3), "cafe")),
    )
    for run in (out / f"{STUDIES[0]}-cpu" / "one-seed0", out / "shared" / "starts" / "weak-123-seed0"):
        run.mkdir(parents=True, exist_ok=True)
        (run / "summary.json").write_text(json.dumps({"wall_seconds": 900.0, "tokens_generated": 1_250_000}))
    (out / f"{STUDIES[0]}-cpu" / "results.json").write_text(json.dumps({"verdicts": to_json(verdicts)}))


VALUES = {"one": {0: 0.9, 1: 0.8, 2: 0.91}, "two": {0: 0.5, 1: 0.41, 2: 0.5}}


def test_the_table_of_all_studies_has_a_line_for_each_hypothesis(tmp_path: Path):
    finished(tmp_path, VALUES)
    lines = table(found(tmp_path, "cpu"), costs(tmp_path, "cpu")).splitlines()
    assert lines[2].startswith(f"| `{STUDIES[0]}` | One is more than two (Final: `one` > `two`) | supported | +0.400 [")
    assert "| supported, bitwise the same | +0.000" in lines[3]
    assert lines[-1] == "2 runs, 2.5 M generated tokens, 0.5 core-hours."


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the modules of two studies and a results page."""
    for name in STUDIES[:2]:
        (tmp_path / f"{name}.py").write_text('"""A study.\n\nClaim: it is one.\n"""\n\nimport os\n')
    (tmp_path / "results.md").write_text(f"Before.\n\n{HEAD}\n| old |\n\n0 runs, 0.0 core-hours. After.\n")
    monkeypatch.setattr("experiments.studies.FOLDER", tmp_path)
    monkeypatch.setattr("experiments.studies.RECORD", tmp_path / "results")
    monkeypatch.setattr("experiments.studies.RESULTS_PAGE", tmp_path / "results.md")
    return tmp_path


def test_recording_replaces_the_earlier_record(paper: Path, tmp_path: Path):
    out = tmp_path / "runs"
    finished(out, VALUES)
    for _ in range(2):  # the second time changes nothing
        record(out)
        expected = table(found(out, "cpu"), costs(out, "cpu"))
        assert (paper / "results.md").read_text() == f"Before.\n\n{expected} After.\n"
        docstring, code = (paper / f"{STUDIES[0]}.py").read_text().split('"""')[1:]
        assert docstring.startswith("A study.\n\nClaim: it is one.\n\nMeasured by `rl-llm ablate experiments/paper/")
        assert "3 seeds, differences with 95 % intervals:\n\n* One is more than two: supported, +0.400 [" in docstring
        assert code == "\n\nimport os\n"


def test_the_record_keeps_studies_whose_runs_are_gone(paper: Path, tmp_path: Path):
    finished(tmp_path / "runs", VALUES)
    record(tmp_path / "runs")
    before = (paper / "results.md").read_text()
    record(tmp_path / "nothing")
    assert (paper / "results.md").read_text() == before


def test_a_repeated_study_is_compared_with_the_record(paper: Path, tmp_path: Path):
    finished(tmp_path / "runs", VALUES)
    assert agreement(found(tmp_path / "runs", "cpu")) == f"not recorded: {STUDIES[0]}"
    record(tmp_path / "runs")
    assert agreement(found(tmp_path / "runs", "cpu")) == f"as recorded: {STUDIES[0]}"
    finished(tmp_path / "runs", {**VALUES, "two": {0: 0.5, 1: 0.42, 2: 0.5}})
    assert agreement(found(tmp_path / "runs", "cpu")) == f"different from the record: {STUDIES[0]}"


@pytest.mark.parametrize("name", recorded())
def test_a_recorded_study_is_registered_in_its_module(name: str):
    study, _ = load_study(f"experiments/paper/{name}.py", "cpu")
    assert recorded()[name]["sha256"] == study.registered()["sha256"]


@pytest.mark.parametrize("name", recorded())
def test_recorded_verdicts_follow_from_the_recorded_values(name: str):
    """Otherwise the rules have changed, and repeating the study would not reproduce its record."""
    study, _ = load_study(f"experiments/paper/{name}.py", "cpu")
    by_seed = {
        json.dumps(item["metric"]): {arm: {int(seed): x for seed, x in row.items()} for arm, row in item["of"].items()}
        for item in recorded()[name]["values"]
    }
    values = {one.metric: by_seed[json.dumps(to_json(one.metric))] for one in study.hypotheses}
    states = {arm: {int(seed): x for seed, x in row.items()} for arm, row in recorded()[name]["states"].items()}
    verdicts = [to_json(verdict) for verdict in judge(study.hypotheses, values, states)]
    assert verdicts == recorded()[name]["verdicts"]


def test_the_results_page_has_the_recorded_map():
    assert draw(recorded()["initialization_and_learning_rate"]) in (ROOT / "docs/results.md").read_text()


def test_the_results_page_has_the_recorded_table():
    assert table(recorded(), json.loads((RECORD / "costs.json").read_text())) in (ROOT / "docs/results.md").read_text()


def test_every_study_of_the_paper_is_run_by_make_studies():
    assert {path.stem for path in (ROOT / "experiments/paper").glob("*.py")} == {*STUDIES, "scales"}


def test_the_map_has_a_row_for_each_start_and_a_column_for_each_rate():
    study = STUDY["smoke"]
    results = {
        "values": [{"metric": to_json(Final()), "of": {arm: {"0": 0.5, "1": 0.7} for arm in study.arms}}],
        "fates": {arm: {"learned": 1, "stalled": 0, "collapsed": 1} for arm in study.arms},
    }
    head, _, *rows = draw(results).splitlines()
    assert head == "| begins with | 0.0001 | 0.001 | 0.01 |"
    assert "| weak | 0.600 (1/0/1) | 0.600 (1/0/1) | 0.600 (1/0/1) |" in rows
    assert "| weak, no warm-up |  | 0.600 (1/0/1) | 0.600 (1/0/1) |" in rows
    assert "| brief |  | 0.600 (1/0/1) |  |" in rows
    assert len(rows) == 9


def test_skewed_sums_have_the_lengths_of_the_others():
    lengths, answers = (
        [
            Counter(getattr(problem, name) for problem in task.problems("train", 2048, 0))
            for task in (TASK, skewed(Skewed))
        ]
        for name in ("difficulty", "answer")
    )
    assert lengths[0] == lengths[1]
    assert answers[0]["0"] < 0.3 * 2048 < 0.6 * 2048 < answers[1]["0"]
