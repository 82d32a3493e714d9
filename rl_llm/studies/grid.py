"""Arms that form a grid: two settings vary, and each pair of their values has an arm."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_llm.reports.settings import brief, varying

LEAST_FILLED = 0.5  # of the grid's cells
PALEST, DARKEST = 8, 72  # percent of the color of the least and the largest value


@dataclass(frozen=True)
class Cell:
    """An arm at its place in a grid, with its value (None if no run measured it) and percent of color."""

    arm: str
    value: float | None
    color: int


@dataclass(frozen=True)
class Grid:
    """A heat map: names and values of both settings; cells[row][column] is None where there is no arm."""

    row_setting: str
    column_setting: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell | None]]


def find_grid(arms: Mapping[str, Any], values: Mapping[str, float | None]) -> Grid | None:
    """The grid that recorded experiments form, with a value for each arm; None if they form none.

    Settings that always change together are one axis.
    """
    axes: dict[tuple[int, ...], dict[str, list[Any]]] = {}
    for place, found in varying(list(arms.values())).items():
        texts = [json.dumps(value, sort_keys=True) for value in found]
        axes.setdefault(tuple(map(texts.index, texts)), {})[place] = found
    if len(axes) != 2:
        return None
    (row_setting, of_row), (column_setting, of_column) = (_axis(places) for places in axes.values())
    rows, columns = (sorted(set(found)) for found in (of_row, of_column))
    at = {place: arm for arm, place in zip(arms, zip(of_row, of_column, strict=True), strict=True)}
    if min(len(rows), len(columns)) < 2 or not LEAST_FILLED * len(rows) * len(columns) <= len(at) == len(arms):
        return None
    known = [value for value in values.values() if value is not None]
    low, width = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)

    def cell(arm: str | None) -> Cell | None:
        value = None if arm is None else values.get(arm)
        share = 0.0 if value is None or not width else (value - low) / width
        color = 0 if value is None else round(PALEST + (DARKEST - PALEST) * share)
        return None if arm is None else Cell(arm, value, color)

    cells = [[cell(at.get((row, column))) for column in columns] for row in rows]
    row_texts, column_texts = ([text for *_, text in found] for found in (rows, columns))
    return Grid(row_setting, column_setting, row_texts, column_texts, cells)


def _axis(places: Mapping[str, Sequence[Any]]) -> tuple[str, list[tuple[bool, float, str]]]:
    """Name of the settings of an axis, and for each arm a key that sorts numbers first, with the text to show."""
    found = []
    for value, *others in zip(*places.values(), strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        text = ", ".join(brief(part) for part in (value, *others))
        found.append((not number, float(value) if number else 0.0, text))
    return ", ".join(places), found
