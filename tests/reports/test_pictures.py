"""Pages in headless Chromium: their pictures, and no sideways scrolling on a phone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import layout, needs_chromium, picture
from test_run_report import EXPERIMENT, HOSTILE, SUMMARY, finish_run, record_of, sample, write_run

from rl_llm.reports.comparison import write_comparison
from rl_llm.reports.run_report import write_report
from rl_llm.runs.folder import RunFolder

PHONE, DESKTOP = 360, 1280
HASH = "5e" * 32
SETTINGS: dict[str, Any] = {
    "class": "Experiment",
    "start": "/a/long/path/without/any/space/" + HASH,
    "optimizer": {"class": "AdamW", "learning_rate": 1e-3, "note": "x" * 200},
}

pytestmark = [
    needs_chromium(),
    pytest.mark.slow,
    pytest.mark.nightly("test_run_report.py parses the same pages"),
]


def run_page(folder: Path) -> Path:
    """A finished run of a study with long names, long hashes and a response without spaces."""
    run = finish_run(write_run(folder / f"arm-{HASH}-seed0"))
    (folder / "study.json").write_text("{}")
    with RunFolder.resume(run, EXPERIMENT) as opened:
        opened.ledger.append("finding", name="no_signal", step=30, text=HASH + HOSTILE)
        opened.samples([sample(40, "training", "1+1=" + "1" * 300, "<think>" + "2" * 900, 1.0) | {"accuracy": 1.0}])
        opened.write_summary({**SUMMARY, "findings": [{"name": "no_signal", "step": 30, "text": HASH + HOSTILE}]})
    recorded = {**EXPERIMENT, "experiment": SETTINGS, "spec": "x.py", "overrides": [], "commit": HASH, "folder": HASH}
    RunFolder.create(folder / "other", {**recorded, "code": {"x.py": HASH}, "code_commit": HASH}).__exit__()
    (run / "experiment.json").write_bytes((folder / "other" / "experiment.json").read_bytes())
    return write_report(run)


def comparison_page(folder: Path) -> Path:
    runs = []
    for name, rate in (("slow" + HASH, 1e-3), ("fast" + HASH, 2e-3)):
        settings = SETTINGS | {"optimizer": {"class": "AdamW", "learning_rate": rate, "note": f"{rate}" * 90}}
        with RunFolder.create(folder / name, {**EXPERIMENT, "experiment": settings}) as opened:
            for step in range(1, 51):
                opened.log(record_of(step) | {"component/brevity": rate * step})
            opened.write_summary(SUMMARY)
        runs.append(folder / name)
    return write_comparison(runs, folder / "comparison.html")


def study_page(folder: Path) -> Path:
    """A study with a grid of arms and hypotheses."""
    from test_study_report import STUDY, make_study

    from rl_llm.studies.report import write_results

    base = STUDY.arms["fast"]
    grid = {
        f"learning_rate_{rate}-temperature_{heat}": replace(
            base,
            optimizer=replace(base.optimizer, learning_rate=rate),
            sampling=replace(base.sampling, temperature=heat),
        )
        for rate, heat in product((0.001, 0.01, 0.1), (0.8, 1.0))
    }
    hypothesis = replace(STUDY.hypotheses[0], treatment=next(iter(grid)), control=list(grid)[-1])
    study = replace(STUDY, arms=grid, hypotheses=(hypothesis,), starts={})
    write_results(folder / "study", study, make_study(folder / "study", study, seeds=3))
    return folder / "study" / "report.html"


PAGES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "run": (run_page, ["Hyper-parameters", "Samples by training step", "Report of its study", HOSTILE]),
    "comparison": (comparison_page, ["Differences of settings", "optimizer.learning_rate", "brevity"]),
    "study": (study_page, ["Grid of the arms", "Differs from", "Learning curves"]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_has_its_picture(name: str, tmp_path: Path):
    """Long words wrap. Wide tables scroll inside their own card."""
    make, texts = PAGES[name]
    page = make(tmp_path)
    for width in (PHONE, DESKTOP):
        found = layout(page, width)
        assert (found["width"], found["wide"]) == (width, [])
        assert [text for text in texts if text not in found["text"]] == []
    for width, height in ((PHONE, 1600), (DESKTOP, 1400)):
        shown = pixels(picture(page, width, height, tmp_path / f"{name}-{width}.png"))
        assert shown.shape[:2] == (height, max(width, 500))
        assert len(np.unique(shown.reshape(-1, shown.shape[-1]), axis=0)) > 50, "curves and text have many colors"


def test_the_check_sees_what_sticks_out(tmp_path: Path):
    page, wide = tmp_path / "page.html", f'<p style="width: {PHONE + 9}px">wide</p>'
    page.write_text(f'<!doctype html><body>{wide}<div class="scroll" style="overflow: auto"><p>{HASH}</p></div>')
    found = layout(page, PHONE)
    assert found["width"] > PHONE
    assert found["wide"] == [wide]


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))
