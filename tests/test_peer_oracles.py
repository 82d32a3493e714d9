"""Our components return what the peers' own functions returned on the same inputs, or the case says why not.

The cases (tests/data/oracles, or the folder that RL_LLM_ORACLES names) hold inputs and outputs of verl, ROLL, OpenRLHF,
TRL and prime-rl, with gradients for losses. How a case is put to our components is said in peers/*.py: `MATCHERS` by
(peer, function). docs/tools/peers.toml tells readers of it: which of our values is the peer's function, which
cases are not reproduced, and why. Here it is held to what is done.
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
    """All components that are made during the test."""
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
        told = said(case, entry)
        assert told is None or told in compared, f"{entry.ours} is said of {case.function}, and was not compared"


def test_groups_are_as_large_as_the_file_says():
    case = CASES["trl.rloo_adv.norm0.real"]
    rewards = case.input("reward_real")
    of_one_group = MATCHERS[case.peer, case.function](replace(case, responses_per_group=len(rewards)))
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    np.testing.assert_allclose(of_one_group["advantages"], rewards - others, atol=1e-5)


def test_every_case_is_matched_or_has_a_reason():
    assert all(len(reason) > 20 for reason in LEFT_OUT.values())
    assert len(MATCHED) >= MATCHED_AT_LEAST


def test_every_function_is_told_and_none_besides():
    told = {function for entry in same() for function in entry.functions} | {entry.function for entry in left_out()}
    assert told | set(plain()) == {(case.peer, case.function) for case in CASES.values()}
    assert versions().items() <= INDEX["versions"].items()


@pytest.mark.parametrize("entry", same(), ids=lambda entry: f"{entry.component}: {entry.ours}")
def test_what_is_told_is_said_of_a_case_of_every_function(entry: Any):
    for function in entry.functions:
        cases = [CASES[name] for name in MATCHED if (CASES[name].peer, CASES[name].function) == function]
        assert any(said(case, entry) is not None for case in cases), function


@pytest.mark.parametrize("entry", left_out(), ids=lambda entry: " ".join(entry.function))
def test_what_is_left_out_are_cases_of_its_function(entry: Any):
    for pattern in entry.cases:
        found = [case for name, case in CASES.items() if fnmatchcase(name, pattern)]
        assert {(case.peer, case.function) for case in found} == {entry.function}
