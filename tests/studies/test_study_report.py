"""The report of a study: verdicts first, everything to reproduce it, and nothing from outside the folder."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import rl_llm, shared_folder
from test_run_report import HOSTILE, Page

from rl_llm import config
from rl_llm.cli import main
from rl_llm.reports.charts import COLORS
from rl_llm.reports.run_report import write_report
from rl_llm.runs.folder import RunFolder
from rl_llm.studies import Final, Hypothesis, Last, Study
from rl_llm.studies.charts import bands, curve_chart, effect_chart, points
from rl_llm.studies.folder import Member, StudyFolderError, members, open_study, reopen_study
from rl_llm.studies.hypothesis import judge
from rl_llm.studies.provenance import read_provenance
from rl_llm.studies.report import write_results
from rl_llm.studies.study import load_study

MODULE = str(Path(__file__).parents[1] / "data" / "study.py")
STUDY, _ = load_study(MODULE, "smoke")
SEEDS = 5
STEPS, TOKENS = 20, 2500  # steps per run, tokens per step
Ending = Callable[[str, int], float]  # final entropy by arm and seed


def entropy(arm: str, seed: int) -> float:
    return {"slow": 0.9}.get(arm, 0.5) + 0.01 * math.sin(7 * seed + (arm == "slow"))


def make_run(member: Member, study: Study, ending: Ending = entropy, seconds: float = 30.0) -> None:
    """Write the folder of a run like `rl-llm train`; accuracy is a sigmoid of the logarithm of tokens."""
    experiment = study.experiments[member.name]
    noise = np.random.default_rng([member.seed, len(member.name) if member.name == "slow" else 0])
    record = {
        "fingerprint": config.fingerprint(experiment),
        "seed": member.seed,
        "problems": "cafe",
        "tokenizer": "abba",
        "experiment": config.to_json(experiment),
        "versions": {"jax": "0.10.2"},
        "python": "3.12.1",
        "devices": ["TFRT_CPU_0"],
        "commit": "c0ffee",
    }
    end = ending(member.name, member.seed)
    with RunFolder.create(member.folder, record) as folder:
        folder.ledger.append("started", seed=member.seed)
        for step in range(1, STEPS + 1):
            tokens = TOKENS * step
            line = {"step": step, "phase": "rl", "tokens/total": tokens, "reward/mean": 0.4 + 0.01 * step}
            line |= {"policy/entropy": end + (STEPS - step) / STEPS, "response/length": 10 + step / 5}
            if step % 2 == 0:
                line["evaluation/accuracy"] = accuracy_at(tokens) + 0.004 * noise.standard_normal()
            folder.log(line)
        folder.samples(
            {"step": STEPS, "when": "after", "prompt": f"{n}+1=", "response": HOSTILE, "answer": "2", "reward": 1.0}
            for n in range(5)
        )
        accuracy = accuracy_at(TOKENS * STEPS) + 0.001 * member.seed
        folder.ledger.append("finished", accuracy_after=accuracy)
        folder.write_summary(
            {
                "accuracy_before": 0.3,
                "accuracy_after": accuracy,
                "tokens_generated": TOKENS * STEPS,
                "flops": 2.5e12,
                "wall_seconds": seconds,
                "findings": [{"name": "lost_signal", "step": 9, "text": "its rewards are alike"}],
                "state_sha256": f"{member.seed}{'d' if member.name == 'slow' else 'e'}" * 32,
            }
        )
    if member.seed == 0:
        write_report(member.folder)


def accuracy_at(tokens: float) -> float:
    return 0.3 + 0.6 / (1 + (15_000 / tokens) ** 3)


def make_study(out: Path, study: Study = STUDY, seeds: int = SEEDS, **how: Any) -> list[Member]:
    open_study(out, study, MODULE, "smoke", seeds, resume=False)
    everyone = members(study, out, seeds)
    for member in everyone:
        make_run(member, study, **how)
    return everyone


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("studies") / "whole"
    return out, write_results(out, STUDY, make_study(out))


class Cells(Page):
    """A page with spaces in its text between elements."""

    def handle_endtag(self, tag: str) -> None:
        super().handle_endtag(tag)
        self.text += " "


def text_of(out: Path) -> str:
    return " ".join(Cells(out / "report.html").text.split())


def test_verdicts_come_first_and_every_part_is_there(whole: tuple[Path, str]):
    out, _ = whole
    text = text_of(out)
    for expected in (
        "Of 2 hypotheses: 2 supported.",
        "supported A larger rate lowers the entropy",
        "fast − slow",
        "-0.39",
        "pairs 5",
        "twin − fast bitwise the same",
        "The runs are bitwise the same.",
        "Learning curves",
        "Learned / stalled / collapsed",
        "fast 5 / 0 / 0 ",
        "0.886 [0.885, 0.888]",
        "least 0.884 · 5 seeds",
        "50 k",
        "2.5 T",
        "fast, seed 0",
        "twin seed 4 done 0.3 0.888 lost signal 4e4e",
        "optimizer.learning_rate: 0.0001 -> 0.01",
        "before the first run began at",
        "c0ffee",
        "jax 0.10.2",
        "TFRT_CPU_0",
        STUDY.registered()["sha256"],
        "3e" * 32,
        f"rl-llm ablate {MODULE} --scale smoke --seeds 5",
    ):
        assert expected in text, expected
    assert text.index("A larger rate lowers") < text.index("Learning curves") < text.index("sha256")
    assert "Unfinished" not in text


def test_the_report_has_the_fitted_asymptote_and_efficiency(whole: tuple[Path, str]):
    text = text_of(whole[0])
    row = re.search(r"fast 0\.3 (\S+) \[.*?\] (\S+) \[.*?\] (\S+ \S) \[", text[text.index("Asymptote and eff") :])
    assert row is not None
    assert abs(float(row[1]) - 0.9) < 0.01
    assert abs(float(row[2]) - 3.0) < 0.2
    assert row[3].startswith("15")


def test_the_page_is_self_contained_and_its_links_exist(whole: tuple[Path, str]):
    page = (whole[0] / "report.html").read_text()
    for reference in ("http:", "https:", "src=", "<link", "@import", "file:", "<script"):
        assert reference not in page
    links = re.findall(r'href="([^"#]+)"', page)
    assert len(links) == 1 + len(STUDY.experiments)  # results.json, and the runs of the one seed with reports
    assert all((whole[0] / link).is_file() for link in links)
    assert "var(--series-1)" in page
    assert not any(color in page for color in COLORS)


def test_the_terminal_has_the_verdicts_first_and_the_reports_last(whole: tuple[Path, str]):
    out, said = whole
    lines = said.splitlines()
    assert lines[:2] == [STUDY.title, "Of 2 hypotheses: 2 supported."]
    assert "SUPPORTED: A larger rate lowers the entropy" in lines
    assert lines[-1] == f"report  {out / 'report.html'}, {out / 'report.md'}, {out / 'results.json'}"


def test_a_repeated_study_has_the_same_numbers(whole: tuple[Path, str], tmp_path: Path):
    out = tmp_path / "again"
    write_results(out, STUDY, make_study(out, seconds=77.0))
    first, second = ((folder / "report.md").read_text() for folder in (whole[0], out))
    assert first != second
    assert first.split("## Cost")[0] == second.split("## Cost")[0]
    assert (out / "results.json").read_bytes() == (whole[0] / "results.json").read_bytes()
    assert "| **supported** | -0.39" in first
    assert "| bitwise the same |" in first
    for table in re.findall(r"(?:^\|.*\n)+", first, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_an_unfinished_study_says_what_is_missing(tmp_path: Path):
    ledger = open_study(tmp_path / "study", STUDY, MODULE, "smoke", SEEDS, resume=False)
    everyone = members(STUDY, tmp_path / "study", SEEDS)
    arms = [member for member in everyone if member.is_arm]
    for member in arms[:5]:
        make_run(member, STUDY)
    ledger.append("member_failed", name=arms[5].name, seed=arms[5].seed, code=1)
    said = write_results(tmp_path / "study", STUDY, everyone)
    assert "Unfinished: 5 of 15 runs are done (1 failed, 9 not begun)." in said
    text = text_of(tmp_path / "study")
    assert f"{arms[5]} failed" in text
    assert "UNDECIDED" in said
    assert "A test needs 3 seeds that both arms have; there are 2; " in text
    assert "seeds would decide" in text
    assert "undetermined: intervals need 3 seeds; there are 2" in text


def test_short_runs_and_second_judgements_are_reported(tmp_path: Path):
    out, study = tmp_path / "study", STUDY.with_budget(2 * STEPS * TOKENS)
    ledger = open_study(out, study, MODULE, "smoke", 1, resume=False)
    for member in members(study, out, 1):
        make_run(member, study)
    ledger.append("carried_out", done=3, seconds=1.0)
    assert "different numbers of seeds" not in write_results(out, study, members(study, out, 1))
    open_study(out, study, MODULE, "smoke", 2, resume=True)
    everyone = members(study, out, 2)
    for member in everyone[len(everyone) // 2 :]:
        make_run(member, study)
    said = write_results(out, study, everyone)
    for expected in (
        "Judged at 2 different numbers of seeds, so each time at a level of 5 % / 2.",
        "Runs that reached their last step before their token budget: ",
        "fast (2 of 2 runs)",
    ):
        assert expected in said
        assert expected in text_of(out)
        assert expected in (out / "report.md").read_text()


def test_continuing_a_study_after_a_budget_counts_as_a_second_judgement(tmp_path: Path):
    """Otherwise seeds could be added budget by budget until a difference is significant."""
    found = []
    for left_out in (0, 3):
        out = tmp_path / f"left-{left_out}"
        ledger = open_study(out, STUDY, MODULE, "smoke", 2, resume=False)
        ledger.append("carried_out", done=6 - left_out, seconds=1.0, left_out=left_out)
        found.append([read_provenance(out, STUDY, members(STUDY, out, 2)).looks])
        open_study(out, STUDY, MODULE, "smoke", 2, resume=True).append("carried_out", done=6, seconds=1.0, left_out=0)
        found[-1].append(read_provenance(out, STUDY, members(STUDY, out, 2)).looks)
    assert found == [[1, 1], [1, 2]]


def test_a_study_without_any_run_or_one_seed_has_a_report(tmp_path: Path):
    open_study(tmp_path / "none", STUDY, MODULE, "smoke", 1, resume=False)
    everyone = members(STUDY, tmp_path / "none", 1)
    write_results(tmp_path / "none", STUDY, everyone)
    assert "no run has begun" in text_of(tmp_path / "none")
    for member in everyone:
        make_run(member, STUDY)
    assert "an unknown number of seeds would decide" in write_results(tmp_path / "none", STUDY, everyone)
    assert "least 0.884 · 1 seed" in text_of(tmp_path / "none")


def test_a_study_without_hypotheses_describes_its_arms(tmp_path: Path):
    study = replace(STUDY, hypotheses=(), title=f"{HOSTILE} | {HOSTILE}")
    write_results(tmp_path / "study", study, make_study(tmp_path / "study", study, seeds=2))
    page = Page(tmp_path / "study" / "report.html")
    assert "nothing is decided" in page.text
    assert HOSTILE in page.text
    assert "script" not in page.tags
    markdown = (tmp_path / "study" / "report.md").read_text()
    assert markdown.startswith("# &lt;script&gt;alert('x')&lt;/script&gt;&amp;amp; \\| &lt;script")


def test_runs_without_a_finite_value_are_left_out(tmp_path: Path):
    def ending(arm: str, seed: int) -> float:
        return math.nan if arm == "fast" and seed == 1 else entropy(arm, seed)

    everyone = make_study(tmp_path / "study", seeds=4, ending=ending)
    for member in everyone:
        if member.name == "slow":  # like a run on stored responses: no tokens, no evaluations
            path = member.folder / "metrics.jsonl"
            lines = [json.loads(line) | {"tokens/total": 0} for line in path.read_text().splitlines()]
            keep = [{key: line[key] for key in line if key != "evaluation/accuracy"} for line in lines]
            path.write_text("".join(json.dumps(line) + "\n" for line in keep))
    write_results(tmp_path / "study", STUDY, everyone)
    text = text_of(tmp_path / "study")
    assert "no run measured evaluation/accuracy during training" in text
    assert "pairs 3" in text
    assert "not measured" in text


def test_a_registration_after_the_first_run_is_reported(tmp_path: Path):
    everyone = make_study(tmp_path / "study", seeds=1)
    moved = tmp_path / "other"
    open_study(moved, STUDY, MODULE, "smoke", 1, resume=False)
    for member in everyone:
        shutil.copytree(member.folder, moved / member.folder.relative_to(tmp_path / "study"))
    assert read_provenance(tmp_path / "study", STUDY, everyone).registered_first
    write_results(moved, STUDY, members(STUDY, moved, 1))
    assert "after the first run began" in text_of(moved)
    ledger = moved / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"registered", b"registerep"))
    write_results(moved, STUDY, members(STUDY, moved, 1))
    assert "A record is broken" in text_of(moved)


def test_a_summary_changed_after_the_run_is_reported(tmp_path: Path):
    member = make_study(tmp_path, seeds=1)[-1]
    path = member.folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "accuracy_after": 0.99}))
    write_results(tmp_path, STUDY, members(STUDY, tmp_path, 1))
    assert f"{member}: accuracy_after in summary.json differ from its ledger" in text_of(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "summary.json").write_text("{"),
        lambda run: (run / "metrics.jsonl").unlink(),
    ],
)
def test_a_damaged_member_is_named(damage: Callable[[Path], object], tmp_path: Path):
    member = make_study(tmp_path, seeds=1)[-1]
    damage(member.folder)
    with pytest.raises(StudyFolderError, match=rf"{member} cannot be read .*; delete .* again with --resume"):
        write_results(tmp_path, STUDY, members(STUDY, tmp_path, 1))


def test_the_verb_rebuilds_the_reports(whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    out, said = whole
    before = {name: (out / name).read_bytes() for name in ("report.html", "report.md", "results.json")}
    for name in before:
        (out / name).unlink()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.strip() == said.strip()
    assert {name: (out / name).read_bytes() for name in before} == before


def test_the_verb_reports_a_study_with_a_budget_and_a_shared_folder(tmp_path: Path):
    study = STUDY.with_budget(900)
    shared = tmp_path / "shared"
    open_study(tmp_path / "study", study, MODULE, "smoke", 2, False, budget_tokens=900, shared=shared)
    again, everyone = reopen_study(tmp_path / "study")
    assert again == study
    assert everyone == members(study, tmp_path / "study", 2, shared)
    assert "--budget-tokens 900" in read_provenance(tmp_path / "study", study, everyone).command


def test_a_study_whose_module_has_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = tmp_path / "changing.py"
    module.write_text(Path(MODULE).read_text())
    study, _ = load_study(str(module), "smoke")
    open_study(tmp_path / "study", study, str(module), "smoke", 1, resume=False)
    stored = json.loads((tmp_path / "study" / "study.json").read_text())
    forged = stored | {"sha256": "0" * 64, "title": "Another"}
    (tmp_path / "study" / "study.json").write_text(json.dumps(forged))
    assert main(["report", str(tmp_path / "study")]) == 2
    assert "has changed since the study was registered (title)" in capsys.readouterr().err
    (tmp_path / "study" / "study.json").write_text(json.dumps(stored))
    module.unlink()
    assert main(["report", str(tmp_path / "study")]) == 2
    assert "changing.py, which is not here; " in capsys.readouterr().err
    assert not (tmp_path / "study" / "report.html").exists()


def test_points_are_finite_and_ascend():
    lines = [
        {"phase": "rl", "tokens/total": tokens, "x": value}
        for tokens, value in ((1, 0.5), (1, 0.6), (3, math.nan), (4, 0.7), (2, 0.8))
    ]
    assert points(lines, "x") == [(1.0, 0.5), (4.0, 0.7)]
    assert points(lines, "y") == []


def test_curves_without_a_common_range_are_left_out():
    def run(first: int) -> tuple[dict, list[dict[str, Any]]]:
        return {}, [{"phase": "rl", "tokens/total": first + n, "x": 1.0} for n in range(3)]

    assert bands({"apart": {0: run(0), 1: run(10)}, "alike": {0: run(0), 1: run(1)}}, "x").keys() == {"alike"}


def test_charts_are_deterministic_and_lines_can_be_dashed():
    hypothesis = Hypothesis('"a" < b', "a", "b", Final(), "greater", 0.1)
    values = {Final(): {"a": {0: 0.1, 1: 0.3, 2: 0.4}, "b": {0: 0.0, 1: 0.1, 2: 0.1}}}
    (verdict,) = judge([hypothesis], values)
    assert effect_chart(verdict, [0.1, 0.2, 0.3]) == effect_chart(verdict, [0.1, 0.2, 0.3])
    assert "&quot;a&quot; &lt; b" in effect_chart(verdict, [])
    runs = {
        f"arm{index}": {0: ({}, [{"phase": "rl", "tokens/total": n, "x": index} for n in (0, 1)])} for index in (0, 1)
    }
    found = bands(runs, "x")
    assert "stroke-dasharray" in curve_chart(found, {"arm0": (0, "-"), "arm1": (0, "--")})
    assert str(Last("x")) == "x, mean of the last 25% of its steps"


@pytest.mark.slow
def test_a_study_ends_with_its_reports_which_can_be_rebuilt(tmp_path: Path):
    out = tmp_path / "study"
    shared = shared_folder(tmp_path)
    code, said, errors = rl_llm(
        *("ablate", MODULE, "--scale", "smoke", "--seeds", "1", "--out", out, "--shared", shared)
    )
    assert code == 0, errors
    assert said.rstrip().endswith(f"report  {out / 'report.html'}, {out / 'report.md'}, {out / 'results.json'}")
    assert "SUPPORTED: The same twice is the same" in said
    before = {name: (out / name).read_bytes() for name in ("report.html", "report.md", "results.json")}
    assert rl_llm("report", str(out))[0] == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    page = (out / "report.html").read_text()
    assert all((out / link).is_file() for link in re.findall(r'href="([^"#]+)"', page))
    assert "</think>" not in page
