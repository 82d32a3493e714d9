"""Arms that form a grid of two settings."""

from dataclasses import replace
from itertools import product
from pathlib import Path

from test_study_report import STUDY, make_study, text_of

from rl_llm import config
from rl_llm.studies.grid import find_grid
from rl_llm.studies.report import write_results

BASE = STUDY.arms["fast"]
RATES, STEPS = (0.01, 0.1, 0.001), (4, 10)
ARMS = {
    f"rate{rate}-steps{steps}": replace(BASE, optimizer=replace(BASE.optimizer, learning_rate=rate), steps=steps)
    for rate, steps in product(RATES, STEPS)
}
RECORDS = {name: config.to_json(arm) for name, arm in ARMS.items()}
VALUES = {name: index / 10 for index, name in enumerate(ARMS)}


def test_two_settings_make_a_grid_with_ordered_values_and_colors():
    grid = find_grid(RECORDS, VALUES)
    assert grid is not None
    assert (grid.row_setting, grid.column_setting) == ("optimizer.learning_rate", "steps")
    assert (grid.rows, grid.columns) == (["0.001", "0.01", "0.1"], ["4", "10"])
    assert grid.cells[1][0].arm == "rate0.01-steps4"
    assert [[cell.value for cell in row] for row in grid.cells] == [[0.4, 0.5], [0.0, 0.1], [0.2, 0.3]]
    assert (grid.cells[1][0].color, grid.cells[0][1].color) == (8, 72)


def test_a_missing_arm_and_an_unmeasured_one_are_told_apart():
    some = dict(list(RECORDS.items())[1:])
    grid = find_grid(some, {**VALUES, "rate0.001-steps4": None})
    assert grid is not None
    assert grid.cells[1][0] is None
    assert (grid.cells[0][0].value, grid.cells[0][0].color) == (None, 0)


def test_settings_that_change_together_are_one_axis():
    records = {name: record | {"train_problems": record["steps"] * 10} for name, record in RECORDS.items()}
    grid = find_grid(records, VALUES)
    assert grid is not None
    assert (grid.column_setting, grid.columns) == ("steps, train_problems", ["4, 40", "10, 100"])


def test_other_arms_make_no_grid():
    names = list(RECORDS)
    assert find_grid({name: config.to_json(arm) for name, arm in STUDY.arms.items()}, {}) is None
    assert find_grid({names[0]: RECORDS[names[0]], names[2]: RECORDS[names[2]]}, VALUES) is None  # one setting
    assert find_grid({**RECORDS, "twin": RECORDS[names[0]]}, VALUES) is None  # two arms in one cell
    diagonal = {names[index]: RECORDS[names[index]] for index in (0, 3)}
    assert find_grid(diagonal, VALUES) is None  # its settings change together: one axis


def test_a_study_shows_differences_of_arms_first_and_the_grid(tmp_path: Path):
    study = replace(STUDY, arms=ARMS, hypotheses=(), starts={})
    write_results(tmp_path / "study", study, make_study(tmp_path / "study", study, seeds=1))
    text = text_of(tmp_path / "study")
    first, second = "rate0.01-steps4", "rate0.01-steps10"
    assert f"Differs from {first} in" in text
    assert f"{second} steps: 4 -> 10" in text
    assert text.index(f"Differs from {first} in") < text.index("Grid of the arms") < text.index("Learning curves")
    assert "Rows: optimizer.learning_rate. Columns: steps." in text
    page = (tmp_path / "study" / "report.html").read_text()
    assert f'title="{second}"' in page
