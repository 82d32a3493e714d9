"""Overrides, JSON, fingerprints and differences."""

import dataclasses
import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.config import OverrideError, differences, fingerprint, override, to_json
from rl_llm.config.fields import Decay, PositiveFloat, PositiveInt, PositiveOrInfinite, check_fields


class Objective(Protocol):
    def __call__(self) -> float: ...


@dataclass(frozen=True)
class Clip:
    low: float = 0.2
    high: float = 0.28

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")

    def __call__(self) -> float:
        return self.high


@dataclass(frozen=True)
class Penalty:
    coefficient: float = 0.1


@dataclass(frozen=True)
class Algorithm:
    objective: Objective = Clip()
    std: Literal["group", "batch", "none"] = "batch"
    penalty: Penalty | None = None
    filters: tuple[Penalty, ...] = (Penalty(), Penalty(0.5))


@dataclass(frozen=True)
class Trial:
    algorithm: Algorithm = Algorithm()
    title: str = "lite"
    note: str | None = None
    steps: int = 30
    learning_rate: float = 1e-6
    warm_start: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    stages: tuple[int, ...] = (64, 128)
    data: Path | None = None
    file: str | Path = "somewhere"
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    schedule: float | Penalty = 1.0
    mesh: int = field(default=1, metadata={"fingerprint": False})
    resolved: int = field(default=7, init=False)


BASE = Trial()


# Assignment, place, value.
@pytest.mark.parametrize(
    ("assignment", "place", "expected"),
    [
        ("steps=5", "steps", 5),
        ("learning_rate=2e-6", "learning_rate", 2e-6),
        ("learning_rate=1", "learning_rate", 1.0),
        ("learning_rate=inf", "learning_rate", math.inf),
        ("warm_start=false", "warm_start", False),
        ("warm_start=False", "warm_start", False),
        ("note=none", "note", None),
        ("note=null", "note", None),
        ("note=two words", "note", "two words"),
        ("note=007", "note", "007"),
        ('note="none"', "note", "none"),
        ("title=12", "title", "12"),
        ("title=a=b", "title", "a=b"),
        ("algorithm.std=none", "algorithm.std", "none"),
        ("algorithm.objective.high=0.3", "algorithm.objective.high", 0.3),
        ("algorithm.filters.1.coefficient=0.25", "algorithm.filters.1.coefficient", 0.25),
        ("betas=[0.8, 0.9]", "betas", (0.8, 0.9)),
        ("betas.1=0.99", "betas.1", 0.99),
        ("stages=[]", "stages", ()),
        ("data=folder/file.jsonl", "data", Path("folder/file.jsonl")),
        ("file=folder/file.jsonl", "file", "folder/file.jsonl"),
        ("data=none", "data", None),
        ("temperature=0.7", "temperature", 0.7),
        ("schedule=0.5", "schedule", 0.5),
    ],
)
def test_override_converts_the_text_by_the_annotation(assignment: str, place: str, expected: Any):
    changed = at(override(BASE, [assignment]), place)
    assert changed == expected
    assert type(changed) is type(expected)


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("steps=2.0", ["expected int", "'2.0'"]),
        ("steps=true", ["expected int"]),
        ("steps=many", ["expected int", "'many'"]),
        ("learning_rate=true", ["expected float"]),
        ('learning_rate="1"', ["expected float"]),
        ("learning_rate=NaN", ["expected float"]),
        ("warm_start=1", ["expected bool"]),
        ("betas=[0.9]", ["expected tuple[float, float]"]),
        ("betas.2=0.9", ["betas", "has no '2'", "0, 1"]),
        ("temperature=0", ["expected float > 0, got '0'"]),
        ("algorithm.std=grop", ["expected Literal['group', 'batch', 'none']", "'grop'"]),
        ("stpes=3", ["Trial", "no 'stpes'", "did you mean 'steps'?", "it has: algorithm, title"]),
        ("algorithm.objective.hihg=1", ["algorithm.objective (Clip)", "did you mean 'high'?", "low, high"]),
        ("objective.high=1", ["did you mean 'algorithm.objective.high'?"]),
        ("learning_rat=1", ["did you mean 'learning_rate'?"]),
        ("hig=1", ["did you mean 'algorithm.objective.high'?"]),
        ("objectve.hihg=1", ["did you mean 'algorithm.objective.high'?"]),
        ("penalty.strength=1", ["did you mean 'algorithm.penalty'?"]),
        ("algorithm.penalty.coeficient=1", ["Penalty has no 'coeficient' (did you mean 'coefficient'?)"]),
        ("algorithm.penalty.coefficient=x", ["expected float, got 'x'"]),
        ("coefficient=1", ["'algorithm.filters.0.coefficient' or 'algorithm.filters.1.coefficient'"]),
        ("steps.more=1", ["steps (30) has no 'more'"]),
        ("resolved=1", ["has no 'resolved'"]),
        (
            "algorithm=dapo",
            ["now Algorithm", "Python changes structure", "algorithm.objective, algorithm.std"],
        ),
        ("algorithm.objective=0.2", ["Python changes structure", "algorithm.objective.low"]),
        ("algorithm.penalty=0.1", ["Python changes structure", "now None"]),
        ('algorithm.penalty={"coefficient": 1}', ["Python changes structure"]),
        ("algorithm.filters=[]", ["Python changes structure", "algorithm.filters.0"]),
        ("algorithm.objective.low=0.5", ["Clip refuses it", "low 0.5 is above high 0.28"]),
        ("steps", ["NAME=VALUE"]),
        ("=3", ["NAME=VALUE"]),
        ("algorithm..std=none", ["NAME=VALUE"]),
    ],
)
def test_a_wrong_override_names_itself_the_place_and_the_remedy(assignment: str, parts: list[str]):
    with pytest.raises(OverrideError) as caught:
        override(BASE, [assignment])
    assert f"--set {assignment}" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "coefficient"), [("algorithm.penalty.coefficient=0.3", 0.3), ("algorithm.penalty=0.3", 0.1)]
)
def test_a_value_inside_none_is_refused_with_the_python_that_makes_it(assignment: str, coefficient: float):
    """The lines in the message work as they stand."""
    with pytest.raises(OverrideError, match="only Python changes structure; in the experiment's file:") as caught:
        override(BASE, [assignment])
    lines = {"base": BASE}
    exec("\n".join(line.strip() for line in str(caught.value).splitlines()[1:]), lines)
    assert lines["base"] == replace(BASE, algorithm=replace(Algorithm(), penalty=Penalty(coefficient)))


@pytest.mark.parametrize("second", ["steps=4", "steps = 4"])
def test_one_place_is_set_once(second: str):
    with pytest.raises(OverrideError, match="--set steps=3 already sets this place"):
        override(BASE, ["steps=3", second])


def test_a_tuple_and_its_element_are_not_set_together():
    with pytest.raises(OverrideError, match="already sets this place"):
        override(BASE, ["betas.0=0.5", "betas=[0.1, 0.2]"])


def test_fields_checked_together_are_set_together():
    changed = override(BASE, ["algorithm.objective.low=0.5", "algorithm.objective.high=0.6"])
    assert changed.algorithm.objective == Clip(0.5, 0.6)


def test_a_refusal_names_all_assignments_of_the_component():
    with pytest.raises(OverrideError, match=r"high=0\.1.*low=0\.15"):
        override(BASE, ["algorithm.objective.high=0.1", "algorithm.objective.low=0.15"])


def test_a_value_that_a_literal_does_not_name_is_refused_with_its_place():
    check_fields(Trial())
    wrong = replace(Trial(), algorithm=Algorithm(std="batches"))  # type: ignore[arg-type]
    said = r"^Trial\.algorithm\.std='batches' must be one of 'group', 'batch', 'none' \(did you mean 'batch'\?\)$"
    with pytest.raises(ValueError, match=said):
        check_fields(wrong)


@dataclass(frozen=True)
class Ranges:
    rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    limit: PositiveOrInfinite | None = None
    count: PositiveInt = 1
    betas: tuple[Decay, ...] = (0.9, 0.99)
    schedule: PositiveFloat | Penalty = 1.0
    size: Literal[-1] | PositiveInt = -1

    def __post_init__(self) -> None:
        check_fields(self)


def test_values_within_their_declared_ranges_pass():
    Ranges(1.0, math.inf, 2, (0.0,), Penalty(-1.0))
    assert Ranges(1, 3.5, schedule=2, size=3).rate == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate": 0}, "Ranges.rate=0 is out of range; expected > 0 and <= 1"),
        ({"rate": math.nan}, "Ranges.rate=nan is out of range; expected > 0 and <= 1"),
        ({"limit": 0.0}, "Ranges.limit=0.0 is out of range; expected > 0 or None"),
        ({"limit": -math.inf}, "Ranges.limit=-inf is out of range"),
        ({"count": 0}, "Ranges.count=0 is out of range; expected >= 1"),
        ({"betas": (0.9, 1.0)}, "Ranges.betas.1=1.0 is out of range; expected >= 0 and < 1"),
        ({"schedule": math.inf}, "Ranges.schedule=inf is out of range; expected > 0"),
        ({"size": 0}, "Ranges.size=0 is out of range; expected -1 or >= 1"),
        ({"count": None}, "Ranges.count=None is out of range; expected >= 1"),
        ({"count": "1"}, "Ranges.count='1' is out of range; expected >= 1"),
    ],
)
def test_a_value_outside_its_declared_range_is_refused(wrong: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        Ranges(**wrong)


def test_an_override_names_the_range_it_leaves():
    with pytest.raises(OverrideError, match=r"--set rate=2: expected float > 0 and <= 1, got '2'"):
        override(Ranges(), ["rate=2"])
    with pytest.raises(OverrideError, match=r"expected int >= 1, got '0'"):
        override(Ranges(), ["count=0"])
    with pytest.raises(OverrideError, match=r"expected float > 0 \| None, got '0'"):
        override(Ranges(), ["limit=0"])
    with pytest.raises(OverrideError, match=r"Ranges.schedule=inf is out of range"):
        override(Ranges(), ["schedule=inf"])


def test_overrides_leave_the_original_and_the_rest_alone():
    before = fingerprint(BASE)
    changed = override(BASE, ["algorithm.std=group"])
    assert changed == replace(BASE, algorithm=replace(BASE.algorithm, std="group"))
    assert fingerprint(BASE) == before
    assert override(BASE, []) is BASE


numbers = st.floats(allow_nan=False)
plain_values = {
    "steps": st.integers(-(2**60), 2**60),
    "learning_rate": numbers,
    "warm_start": st.booleans(),
    "title": st.text(),
    "algorithm.std": st.sampled_from(["group", "batch", "none"]),
    "algorithm.filters.0.coefficient": numbers,
    "betas": st.tuples(numbers, numbers).filter(lambda pair: all(map(math.isfinite, pair))),
    "stages": st.lists(st.integers(0, 2**31)).map(tuple),
}
some_values = st.fixed_dictionaries({}, optional=plain_values)


@given(some_values)
def test_what_is_written_as_json_is_read_back(values: dict[str, Any]):
    changed = override(BASE, assignments(values))
    for place, expected in values.items():
        assert at(changed, place) == expected


@given(some_values)
def test_differences_name_exactly_the_places_that_changed(values: dict[str, Any]):
    changed = override(BASE, assignments(values))
    lines = differences(to_json(BASE), to_json(changed))
    expected = {place for place, value in values.items() if at(BASE, place) != value}
    assert {place for place in values if any(line.startswith(place) for line in lines)} == expected
    assert bool(lines) == bool(expected)


@given(some_values, st.randoms(use_true_random=False))
def test_the_fingerprint_depends_on_the_values_only(values: dict[str, Any], draw: random.Random):
    ordered = assignments(values)
    shuffled = draw.sample(ordered, len(ordered))
    changed = override(BASE, ordered)
    assert fingerprint(changed) == fingerprint(replace(override(BASE, shuffled), mesh=8))
    assert (fingerprint(changed) == fingerprint(BASE)) == (changed == BASE)


def test_a_fingerprint_is_64_hexadecimal_digits_and_equal_numbers_are_one():
    assert len(bytes.fromhex(fingerprint(BASE))) == 32
    assert fingerprint(replace(BASE, learning_rate=1)) == fingerprint(replace(BASE, learning_rate=1.0))


def test_components_with_the_same_fields_have_different_fingerprints():
    @dataclass(frozen=True)
    class Other:
        coefficient: float = 0.1

    assert fingerprint(Penalty()) != fingerprint(Other())


def test_json_holds_the_class_and_every_field():
    written = json.loads(json.dumps(to_json(BASE), allow_nan=False))
    assert written["class"] == f"{__name__}.Trial"
    assert written["algorithm"]["objective"] == {"class": f"{__name__}.Clip", "low": 0.2, "high": 0.28}
    assert written["betas"] == [0.9, 0.95]
    assert written["mesh"] == 1
    assert set(written) == {"class", *(item.name for item in dataclasses.fields(Trial))}


def a_class_of(module: str, name: str = "Trick") -> type:
    return dataclass(frozen=True)(type(name, (), {"__module__": module, "__qualname__": name}))


def test_moving_a_class_of_the_package_changes_no_record():
    before, after = a_class_of("rl_llm.here")(), a_class_of("rl_llm.there.deeper")()
    assert to_json(before) == to_json(after) == {"class": "Trick"}
    assert fingerprint(before) == fingerprint(after)


def test_a_foreign_class_is_recorded_with_its_module():
    assert fingerprint(a_class_of("rl_llm.here")()) != fingerprint(a_class_of("mine")())
    assert to_json(a_class_of("mine")()) == {"class": "mine.Trick"}


@pytest.mark.parametrize("write", [to_json, fingerprint])
def test_two_classes_with_one_recorded_name_are_refused(write: Any):
    with pytest.raises(ValueError, match=r"value\[1\]: rl_llm.there and rl_llm.here both define 'Trick'"):
        write((a_class_of("rl_llm.here")(), a_class_of("rl_llm.there")()))


@dataclass(frozen=True)
class Holder:
    held: Any


def function_of_a_module() -> None: ...


@pytest.mark.parametrize(
    ("held", "written"),
    [
        (math.inf, "inf"),
        (Path("a") / "b", "a/b"),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (function_of_a_module, f"{__name__}.function_of_a_module"),
        (Clip, f"{__name__}.Clip"),
        (math.sqrt, "math.sqrt"),
    ],
)
def test_json_of_what_a_field_may_hold(held: Any, written: Any):
    assert to_json(Holder(held))["held"] == written


@pytest.mark.parametrize("held", [object(), lambda: None, {1: 2}, {"a"}, b"bytes", 1j])
def test_values_that_json_cannot_record_are_refused_with_their_place(held: Any):
    with pytest.raises(TypeError, match=r"value\.held\[1\]\.held is"):
        to_json(Holder((0, Holder(held))))


def test_differences_say_the_old_and_the_new_value():
    other = override(BASE, ["algorithm.objective.high=0.3", "betas.1=0.99"])
    assert differences(to_json(BASE), to_json(other)) == [
        "algorithm.objective.high: 0.28 -> 0.3",
        "betas.1: 0.95 -> 0.99",
    ]


def test_differences_of_structure_are_one_line():
    other = replace(BASE, algorithm=Algorithm(objective=Penalty(), filters=()))
    assert differences(to_json(BASE), to_json(other)) == [
        "algorithm.objective: Clip(low=0.2, high=0.28) -> Penalty(coefficient=0.1)",
        "algorithm.filters: [Penalty(coefficient=0.1), Penalty(coefficient=0.5)] -> []",
    ]


def test_differences_distinguish_a_boolean_from_a_number_and_a_missing_field():
    assert differences({"a": True, "b": 1}, {"a": 1}) == ["a: True -> 1", "b: 1 -> absent"]


def assignments(values: Mapping[str, Any]) -> list[str]:
    return [f"{place}={json.dumps(value).replace('Infinity', 'inf')}" for place, value in values.items()]


def at(value: Any, place: str) -> Any:
    for part in place.split("."):
        value = value[int(part)] if part.isdecimal() else getattr(value, part)
    return value
