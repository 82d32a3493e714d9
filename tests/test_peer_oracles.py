"""Our components return the outputs of the peers' own functions on the same inputs, or a case has a reason not to.

The cases (tests/data/oracles, or the folder in RL_LLM_ORACLES) hold inputs and outputs of verl, ROLL, OpenRLHF, TRL and
prime-rl, with gradients for losses. `MATCHERS` in peers/*.py, by (peer, function), give our outputs for a case.
docs/tools/peers.toml lists for readers which of our values equals which function, and which cases are not reproduced
and why. The tests hold the list to the comparisons that are made.
"""

import json
import os
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer_functions import left_out, plain, reasons, same, versions
from peers import advantages, losses
from peers.case import KINDS, Case, said

FOLDER = Path(os.environ.get("RL_LLM_ORACLES") or Path(__file__).parent / "data" / "oracles")
INDEX: dict[str, Any] = json.loads((FOLDER / "oracles.json").read_text())
ARRAYS = np.load(FOLDER / "oracles.npz")
MATCHERS = {**advantages.MATCHERS, **losses.MATCHERS}
MATCHED_AT_LEAST = 330

CASES = {entry["name"]: Case(entry, ARRAYS, INDEX["shapes"]["responses_per_group"]) for entry in INDEX["cases"]}
LEFT_OUT = reasons(CASES)
MATCHED = [name for name in CASES if name not in LEFT_OUT]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All components made during the test."""
    found: list[Any] = []
    for kind in KINDS.values():

        def record(self: Any, *given: Any, plainly: Any = kind.__init__, **named: Any) -> None:
            plainly(self, *given, **named)
            found.append(self)

        monkeypatch.setattr(kind, "__init__", record)
    return found


@pytest.mark.parametrize("name", MATCHED)
def test_our_component_returns_what_the_peer_returned(name: str, made: list[Any]):
    case = CASES[name]
    ours = MATCHERS[case.peer, case.function](case)
    assert ours, "a matcher must return something to compare"
    for output, value in ours.items():
        expected = case.output(output)
        assert np.shape(value) == expected.shape, output
        np.testing.assert_allclose(value, expected, rtol=0, atol=case.tolerance, err_msg=f"{name}: {output}")
    compared = tuple(made)
    for entry in same():
        value = said(case, entry)
        assert value is None or value in compared, f"{entry.ours} stands for {case.function}, and was not compared"


def test_groups_are_as_large_as_the_file_says():
    case = CASES["trl.rloo_adv.norm0.real"]
    rewards = case.input("reward_real")
    one_group = MATCHERS[case.peer, case.function](replace(case, responses_per_group=len(rewards)))
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    np.testing.assert_allclose(one_group["advantages"], rewards - others, atol=1e-5)


def test_every_case_is_matched_or_has_a_reason():
    assert all(len(reason) > 20 for reason in LEFT_OUT.values())
    assert len(MATCHED) >= MATCHED_AT_LEAST


def test_peers_toml_names_exactly_the_functions_of_the_cases():
    listed = {function for entry in same() for function in entry.functions} | {entry.function for entry in left_out()}
    assert listed | set(plain()) == {(case.peer, case.function) for case in CASES.values()}
    assert versions().items() <= INDEX["versions"].items()


@pytest.mark.parametrize("entry", same(), ids=lambda entry: f"{entry.component}: {entry.ours}")
def test_each_entry_applies_to_a_case_of_each_of_its_functions(entry: Any):
    for function in entry.functions:
        cases = [CASES[name] for name in MATCHED if (CASES[name].peer, CASES[name].function) == function]
        assert any(said(case, entry) is not None for case in cases), function


@pytest.mark.parametrize("entry", left_out(), ids=lambda entry: " ".join(entry.function))
def test_left_out_patterns_match_cases_of_their_function(entry: Any):
    for pattern in entry.cases:
        found = [case for name, case in CASES.items() if fnmatchcase(name, pattern)]
        assert {(case.peer, case.function) for case in found} == {entry.function}
