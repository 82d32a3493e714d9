"""Our components return what the peers' own functions returned on the same inputs, or the case says why not.

The cases (tests/data/oracles, or the folder that RL_LLM_ORACLES names) hold inputs and outputs of verl, ROLL, OpenRLHF,
TRL and prime-rl, with gradients for losses. How a case is put to our components is said in peers/*.py: `MATCHERS` by
(peer, function), and the cases that are not to be reproduced in `LEFT_OUT` with the reason.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import advantages, losses
from peers.case import Case

FOLDER = Path(os.environ.get("RL_LLM_ORACLES") or Path(__file__).parent / "data" / "oracles")
INDEX: dict[str, Any] = json.loads((FOLDER / "oracles.json").read_text())
ARRAYS = np.load(FOLDER / "oracles.npz")
MATCHERS = {**advantages.MATCHERS, **losses.MATCHERS}
LEFT_OUT = {**advantages.LEFT_OUT, **losses.LEFT_OUT}
MATCHED_AT_LEAST = 330

CASES = {entry["name"]: Case(entry, ARRAYS) for entry in INDEX["cases"]}
MATCHED = [name for name in CASES if name not in LEFT_OUT]


@pytest.mark.parametrize("name", MATCHED)
def test_our_component_returns_what_the_peer_returned(name: str):
    case = CASES[name]
    ours = MATCHERS[case.peer, case.function](case)
    assert ours, "a matcher must return something to compare"
    for output, value in ours.items():
        expected = case.output(output)
        assert np.shape(value) == expected.shape, output
        np.testing.assert_allclose(value, expected, rtol=0, atol=case.tolerance, err_msg=f"{name}: {output}")


def test_every_case_is_matched_or_has_a_reason():
    assert set(LEFT_OUT) <= set(CASES)
    assert all(len(reason) > 20 for reason in LEFT_OUT.values())
    assert len(MATCHED) >= MATCHED_AT_LEAST
