"""The comparison of runs: one page with all curves, results and differences of settings."""

import re
from pathlib import Path
from typing import Any

import pytest
from test_run_report import EXPERIMENT, HOSTILE, SUMMARY, Page, record_of

from rl_llm.cli import main
from rl_llm.reports.comparison import write_comparison
from rl_llm.reports.run_report import write_report
from rl_llm.reports.settings import brief, varying
from rl_llm.runs.folder import RunFolder

SETTINGS: dict[str, Any] = {
    "class": "Experiment",
    "steps": 30,
    "optimizer": {"class": "AdamW", "learning_rate": 1e-3},
    "algorithm": {"class": "Algorithm", "objective": {"class": "Clip", "low": 0.2}},
}


def make_run(path: Path, settings: dict[str, Any], first: int = 1, **summary: Any) -> Path:
    record = {**EXPERIMENT, "experiment": settings}
    with RunFolder.create(path, record) as folder:
        folder.ledger.append("started", seed=record["seed"])
        for step in range(first, 41):
            folder.log(record_of(step))
        if summary:
            folder.ledger.append("finished", accuracy_after=summary.get("accuracy_after", SUMMARY["accuracy_after"]))
            folder.write_summary({**SUMMARY, **summary})
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    other = {**SETTINGS, "optimizer": {"class": "AdamW", "learning_rate": 2e-3}}
    other["algorithm"] = {"class": "Algorithm", "objective": {"class": "Gate", "note": HOSTILE}}
    finding = {"name": "no_signal", "step": 3, "text": "..."}
    first = make_run(tmp_path / "runs" / "slow", SETTINGS, accuracy_after=0.5, findings=[finding])
    write_report(first)
    return [first, make_run(tmp_path / "runs" / "fast", other)]  # the second has no summary and no page yet


def test_a_page_compares_results_settings_and_curves(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    assert main(["report", *map(str, runs)]) == 0
    path = runs[0] / "compared_with_fast.html"
    assert capsys.readouterr().out.strip() == str(path)
    page = Page(path)
    text = " ".join(page.text.split())
    assert re.search(r"accuracy after\s*50 %\s*–", text)
    assert re.search(r"findings\s*no signal\s*–", text)
    assert re.search(r"optimizer\.learning_rate\s*0\.001", text)
    assert f"Gate(note={HOSTILE})" in text
    assert "steps 30" not in text  # both have it
    assert "script" not in page.tags
    assert page.text.count("Reward and accuracy: accuracy") == 1
    assert re.search(r"Entropy.*slow [\d.]+ fast [\d.]+", text)
    assert 'href="report.html"' in path.read_text()
    assert not re.search("https?:|src=|<link|@import|file:", path.read_text())


def test_a_run_keeps_its_color_where_another_has_no_data(runs: list[Path], tmp_path: Path):
    """So that one name has one color on the whole page."""
    third = make_run(tmp_path / "empty", SETTINGS, first=41)
    page = write_comparison([third, *runs], tmp_path / "page.html").read_text()
    curves = page[page.index("Learning curves") :]
    assert re.findall(r"<i style=\"background: var\((--series-\d)\)\"></i>(\w+)", curves)[:2] == [
        ("--series-2", "slow"),
        ("--series-3", "fast"),
    ]
    assert "stroke: var(--series-2)" in curves
    assert "stroke: var(--series-1)" not in curves
    assert "experiments are the same" in write_comparison([third, runs[0]], tmp_path / "same.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{slow}", "{slow}/../slow"], "is given twice"),
        (["{slow}", "{slow}/nothing"], "nothing is not a run folder"),
        (["{slow}", "--out", "x.html"], "--out x.html cannot act"),
        (["{slow}", "{fast}", "--out", "{slow}/none/x.html"], "there is no folder"),
        (["{slow}", "{fast}", "--out", "{slow}"], "is a folder; give the file to write"),
    ],
)
def test_folders_that_cannot_be_compared_are_wrong_usage(
    runs: list[Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    slow, fast = runs
    assert main(["report", *(part.format(slow=slow, fast=fast) for part in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_too_many_runs_are_refused(runs: list[Path], tmp_path: Path):
    with pytest.raises(ValueError, match="9 runs are too many for one page; compare at most 8"):
        write_comparison(runs[:1] * 9, tmp_path / "page.html")


def test_varying_settings_are_found_at_the_deepest_common_place():
    same = {"class": "A", "x": [1, 2], "y": {"class": "B", "z": None}}
    assert varying([same, same]) == {}
    assert varying([same, {**same, "x": [1, 3]}]) == {"x.1": [2, 3]}
    assert varying([same, {**same, "x": [1]}]) == {"x": [[1, 2], [1]]}
    assert varying([same, {**same, "y": {"class": "C"}}]) == {"y": [same["y"], {"class": "C"}]}
    assert varying([{"a": 1}, {"a": True}, {}]) == {"a": [1, True, "absent"]}
    assert brief({"class": "m.Clip", "low": 0.2, "high": None, "of": [{"class": "T"}]}) == "Clip(low=0.2, of=[T()])"
