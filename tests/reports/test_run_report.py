"""The report: it shows everything in a run folder and needs nothing else."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rl_llm.reports.charts import CHARTS, Series, _series, draw_charts, line_chart
from rl_llm.reports.run_report import write_report
from rl_llm.runs.folder import RunFolder, read_metrics

HOSTILE = "<script>alert('x')</script>&amp;"
WARM_START_STEPS, STEPS = 20, 30


def record_of(step: int) -> dict[str, Any]:
    """The metrics of one step of a warm start followed by successful RL."""
    if step <= WARM_START_STEPS:
        return {
            "step": step,
            "phase": "warm_start",
            "loss": 2.5 * math.exp(-step / 6) + 0.2,
            "time/step": 0.4,
        }
    done = (step - WARM_START_STEPS) / STEPS
    skill = 0.37 + 0.6 / (1 + math.exp(6 - 14 * done)) + 0.02 * math.sin(5 * step)
    record = {
        "step": step,
        "phase": "rl",
        "loss": -0.01 * done,
        "reward/mean": skill,
        "reward/std": math.sqrt(max(skill * (1 - skill), 0.0)),
        "reward/std_centered": 0.8 * math.sqrt(max(skill * (1 - skill), 0.0)),
        "reward/zero_variance_groups": 0.1 + 0.7 * done**2,
        "response/length": 9 + 21 * done,
        "response/length_right": 10 + 20 * done,
        "response/length_wrong": 8 + 12 * done if step % 7 else float("nan"),
        "response/truncated": 0.01 * done,
        "policy/entropy": 0.9 * math.exp(-2 * done),
        "policy/clip_low": 0.002 + 0.004 * done,
        "policy/clip_high": 0.001 + 0.006 * done,
        "update/gradient_norm": 0.4 + 0.3 * math.sin(step) ** 2,
        "agreement/mean": 4e-7,
        "agreement/max": 4e-6 + 1e-6 * math.sin(step),
        "agreement/kl": 1e-12,
        "tokens/generated": 12_000 + 400 * step,
        "flops/total": 3.1e10 * step,
        "time/generate": 0.5 + 0.2 * done,
        "time/grade": 0.02,
        "time/update": 0.45 + 0.1 * done,
        "time/step": 1.0 + 0.3 * done,
    }
    return record | ({"evaluation/accuracy": skill + 0.01} if step % 10 == 0 else {})


SUMMARY: dict[str, Any] = {
    "experiment": "quickstart",
    "seed": 3,
    "accuracy_before": 0.3712,
    "accuracy_after": 0.9684,
    "greedy_before": 0.41,
    "greedy_after": 1.0,
    "response_length_before": 9.13,
    "response_length_after": 30.4,
    "wall_seconds": 123.4,
    "tokens_generated": 642_000,
    "time": {"warm_start": 48.0, "rl": 61.0, "evaluation": 14.0},
    "state_sha256": "5e" * 32,
}
EXPERIMENT: dict[str, Any] = {
    "name": "quickstart",
    "seed": 3,
    "fingerprint": "f00d",
    "problems": "cafe",
    "tokenizer": "abba",
    "model": {"layers": 4, "width": 64, "rope": {"base": 10000.0}},
    "algorithm": {"advantage": {"mean": "group", "std": "batch"}, "filters": [], "milestones": [1, 2]},
    "note": HOSTILE,
}


def sample(step: int, when: str, prompt: str, response: str, reward: float) -> dict[str, Any]:
    return {
        "step": step,
        "when": when,
        "prompt": prompt,
        "response": response,
        "answer": "5",
        "reward": reward,
    }


def write_run(path: Path, steps: int = WARM_START_STEPS + STEPS) -> Path:
    """A realistic, unfinished run folder with `steps` steps."""
    with RunFolder.create(path, EXPERIMENT) as folder:
        folder.ledger.append("started", seed=3, versions={"jax": "0.10.2"})
        for step in range(1, steps + 1):
            folder.log(record_of(step))
        folder.samples(sample(20, "before", f"4+2+{n}=", str(n), n % 2) for n in range(4))
        folder.samples([sample(30, "training", "1+2=", f"1+2=3, so 3 {HOSTILE}", 1.0)])
    return path


def finish_run(path: Path) -> Path:
    with RunFolder.resume(path, EXPERIMENT) as folder:
        folder.samples(sample(50, "after", f"4+2+{n}=", f"4+2=6\n6+{n}={6 + n}\nso {(6 + n) % 7}", 1) for n in range(4))
        folder.write_summary(SUMMARY)
        folder.ledger.append("finished", accuracy_after=0.9684)
    return path


class Page(HTMLParser):
    """Parses a page into text and tags; fails if tags are not closed in order."""

    EMPTY = ("meta", "br", "path", "use", "rect", "line")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_finished_run_is_reported_in_full(tmp_path: Path) -> None:
    report = write_report(finish_run(write_run(tmp_path / "run")))
    assert report == tmp_path / "run" / "report.html"
    page = Page(report)
    assert page.tags.count("svg") == len(CHARTS)
    text = " ".join(page.text.split())
    for expected in (
        "quickstart · seed 3",
        "Accuracy on held-out problems rose from 37.1 % to 96.8 %.",
        "41 % → 100 %",
        "9.13 → 30.4",
        "2 min 3 s",
        "4+2=6 6+1=7 so 0",
        "batch",
        "warm start",
        "The chain of 2 entries is intact",
        "5e" * 32,
    ):
        assert expected in text, expected


def test_steps_of_rl_count_from_one_and_each_component_has_a_chart(tmp_path: Path) -> None:
    """The warm start has 20 steps, which the curves, samples and messages of RL leave out."""
    run = write_run(tmp_path / "run", steps=WARM_START_STEPS)
    with RunFolder.resume(run, EXPERIMENT) as folder:
        for step in range(WARM_START_STEPS + 1, WARM_START_STEPS + 6):
            folder.log(record_of(step) | {"component/brevity": 0.1 * step, f"component/{HOSTILE}": 1.0})
        folder.samples([sample(25, "training", "9+9=", "18", 0.2) | {"accuracy": 0.5}])
        wrong = sample(25, "ungraded", "9+8=", "boom", 0.0) | {"status": "timeout", "message": "no score within 5 s"}
        folder.samples([wrong])
    page = Page(write_report(run))
    text = " ".join(page.text.split())
    assert "the last step recorded is RL step 5." in text
    assert text.index("Samples by training step RL step 10") < text.index("RL step 5 Problem")
    assert "18 ✓ grade 0.5, reward 0.2" in text
    assert "not graded: timeout, no score within 5 s" in text
    assert "brevity Component of the reward" in text
    assert HOSTILE in text
    assert "script" not in page.tags
    lines = _series("reward", "reward/mean", read_metrics(run), "rl")
    assert list(lines.steps) == [1, 2, 3, 4, 5]


def test_a_run_shows_its_hyperparameters_without_those_that_are_off(tmp_path: Path) -> None:
    recorded = {
        "class": "Experiment",
        "optimizer": {"class": "AdamW", "learning_rate": 2e-4, "schedule": "constant"},
        "algorithm": {
            "class": "Algorithm",
            "objective": {"class": "mine.Clip", "low": 0.2, "extra": None},
            "filters": [],
        },
        "teacher": None,
        "steps": 7,
    }
    with RunFolder.create(tmp_path / "run", {**EXPERIMENT, "experiment": recorded}):
        pass
    text = " ".join(Page(write_report(tmp_path / "run")).text.split())
    shown = text[text.index("Hyper-parameters") : text.index("What is off is left out")]
    assert "algorithm.objectiveClip(low=0.2)" in shown
    assert "optimizerAdamW(learning_rate=0.0002, schedule=constant)" in shown
    assert "steps7" in shown
    assert not re.search("teacher|filters|extra", shown)


@pytest.mark.parametrize(
    ("place", "link"), [("arm-seed0", "../report.html"), ("starts/warm-seed0", "../../report.html")]
)
def test_a_member_of_a_study_links_to_its_report(tmp_path: Path, place: str, link: str) -> None:
    run = write_run(tmp_path / place, steps=1)
    assert "Report of its study" not in write_report(run).read_text()
    (tmp_path / "study.json").write_text("{}")
    assert f'<a href="{link}">Report of its study</a>' in write_report(run).read_text()


def test_text_of_the_run_is_escaped(tmp_path: Path) -> None:
    report = write_report(write_run(tmp_path / "run"))
    assert "<script" not in report.read_text()
    assert Page(report).text.count(HOSTILE) == 2


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    text = write_report(finish_run(write_run(tmp_path / "run"))).read_text()
    for reference in ("http:", "https:", "src=", "<link", "@import", "file:"):
        assert reference not in text


@pytest.mark.parametrize("steps", [0, 1, 2, WARM_START_STEPS + 1])
def test_an_unfinished_run_shows_its_data_so_far(tmp_path: Path, steps: int) -> None:
    page = Page(write_report(write_run(tmp_path / "run", steps)))
    assert "Not finished" in page.text
    assert ("Warm start" in page.text) == (steps > 0)
    assert ("Entropy" in page.text) == (steps > WARM_START_STEPS)


def test_an_empty_folder_makes_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert "no step is recorded yet" in page.text
    assert page.tags.count("section") == 0


def test_a_missing_field_does_not_prevent_a_page(tmp_path: Path) -> None:
    run = finish_run(write_run(tmp_path / "run", steps=0))
    for key in SUMMARY:
        (run / "summary.json").write_text(json.dumps({name: SUMMARY[name] for name in SUMMARY if name != key}))
        assert "Configuration" in Page(write_report(run)).text


def test_values_that_are_not_finite_do_not_prevent_a_page(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", EXPERIMENT) as folder:
        folder.log({key: value if key in ("step", "phase") else float("nan") for key, value in record_of(40).items()})
        folder.log({key: value if key in ("step", "phase") else float("inf") for key, value in record_of(41).items()})
        folder.write_summary({key: float("nan") for key in SUMMARY if key not in ("experiment", "time")})
    assert "nan" in Page(write_report(tmp_path / "run")).text


def test_a_broken_ledger_is_reported(tmp_path: Path) -> None:
    run = finish_run(write_run(tmp_path / "run"))
    ledger = run / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"started", b"startef"))
    text = Page(write_report(run)).text
    assert "The ledger is broken" in text
    assert "line 1" in text


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        write_report(tmp_path / "none")


def test_a_step_without_right_responses_has_no_length_of_them() -> None:
    metrics = [
        {"step": step, "phase": "rl", "response/length_right": right, "response/length_wrong": 9.0}
        for step, right in ((1, 0.0), (2, 7.0), (3, 0.0))
    ]
    (chart,) = draw_charts(metrics)
    assert chart["legend"] == [("right", 7.0), ("wrong", 9.0)]
    never = draw_charts([{**line, "response/length_right": 0.0} for line in metrics])
    assert never[0]["legend"] == [("wrong", 9.0)]


def test_a_chart_is_deterministic_and_its_labels_are_escaped() -> None:
    series = [Series('"a" & b', [1, 2, 3], [0.1, float("nan"), 0.3])]
    assert line_chart(series, log=True) == line_chart(series, log=True)
    assert 'aria-label="&quot;a&quot; &amp; b"' in line_chart(series)


def test_a_chart_with_too_many_series_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 series, not 4"):
        line_chart([Series("a", [1], [1.0])] * 4)


def test_findings_are_shown_as_text_also_during_a_run(tmp_path: Path):
    """They come from the ledger until there is a summary; without findings there is no section."""
    going, finding = write_run(tmp_path / "going"), {"name": "no_signal", "step": 30, "text": f"97% {HOSTILE}"}
    assert "Findings" not in Page(write_report(going)).text
    with RunFolder.resume(going, EXPERIMENT) as folder:
        folder.ledger.append("finding", **finding)
    page = Page(write_report(going))
    assert "script" not in page.tags
    assert page.text.index("Findings") < page.text.index("no signal") < page.text.index(f"97% {HOSTILE}")
    with RunFolder.resume(going, EXPERIMENT) as folder:
        folder.write_summary({**SUMMARY, "findings": []})
    assert "Findings" not in Page(write_report(going)).text
