"""The gate: sound verifiers pass, and every way to reward the wrong answer or to lose the right one is found."""

import os
import re
import time
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rl_llm.commands.gate import JUNK_RESPONSES, GateReport, check_task, sentence_golds
from rl_llm.problem import Problem
from rl_llm.rewards.components import Reward
from rl_llm.rewards.grader import Grader

BOX = re.compile(r"\\boxed\{(.*)\}\Z", re.DOTALL)


def boxed(problem: Problem) -> str:
    return rf"so \boxed{{{problem.answer}}}"


def verify(problem: Problem, response: str) -> float:
    """A verifier with the fault that the problem names."""
    found = BOX.search(response)
    right = found is not None and found[1] == problem.answer
    match problem.metadata["fault"]:
        case "reads another mark":
            return float(response == f"#### {problem.answer}")
        case "reads the last digits":
            return float(re.findall(r"\d+", response)[-1:] == [problem.answer])
        case "takes what is near":
            return float(found is not None and found[1].isdigit() and abs(int(found[1]) - int(problem.answer)) <= 1)
        case "takes the empty answer":
            return float(right or response == "" or (found is not None and not found[1]))
        case "takes everything":
            return 1.0
        case "pays for nonsense":
            return 1.0 if right else 0.5
        case "pays a little for nonsense":
            return 1.0 if right else 0.05
        case "raises on nonsense":
            return float(int(found[1] if found else response) == int(problem.answer))
        case "gives a text":
            return "yes" if right else "no"  # type: ignore[return-value]
        case "gives an int":
            return int(right)
        case "gives a bool":
            return right
        case "is slow":
            time.sleep(0.02)
        case "ends the process":
            raise SystemExit
        case "runs code":
            try:
                return float(eval(found[1] if found else response) == int(problem.answer))
            except Exception:
                return 0.0
        case "hangs":
            time.sleep(1000)
        case "crashes":
            os._exit(1)
    return float(right)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(verify, Reward(), workers=1) as running:
        yield running


def problems(fault: str, count: int = 40) -> list[Problem]:
    answers = [str(17 * n) for n in range(count)]
    return [Problem(n, f"{n}?", answer, metadata={"fault": fault}) for n, answer in enumerate(answers)]


def report(grader: Grader, fault: str, count: int = 40) -> GateReport:
    return check_task(grader, problems(fault, count), boxed)


@pytest.mark.parametrize("fault", ["none", "gives an int", "gives a bool", "pays a little for nonsense"])
def test_a_sound_verifier_passes(grader: Grader, fault: str):
    found = report(grader, fault)
    assert (found.checked, found.failures) == (40, ())


@pytest.mark.parametrize(
    ("fault", "share", "said"),
    [
        ("reads another mark", 1.0, r"gold '0': the right response 'so \\boxed{0}' earns 0"),
        ("reads the last digits", 0.9, r"gold '17': the wrong response 'so \\boxed{1/17}' earns 1"),
        ("takes what is near", 1.0, r"gold '17': the wrong response 'so \\boxed{18}' earns 1"),
        ("takes the empty answer", 1.0, r"the wrong response '' earns 1"),
        ("takes everything", 1.0, r"earns 1"),
        ("pays for nonsense", 0.9, r"the wrong response 'junk' earns 0.5"),
        ("raises on nonsense", 1.0, r"response '' ends in error, ValueError: invalid literal for int"),
        ("gives a text", 1.0, r"the verifier gave 'yes', of class str; expected a number (float, int or bool)"),
        ("ends the process", 1.0, r"ends in error, SystemExit"),
    ],
)
def test_a_fault_is_found_and_shown(grader: Grader, fault: str, share: float, said: str):
    found = report(grader, fault)
    assert found.share >= share
    assert said in "\n".join(map(str, found.failures))
    assert str(found).startswith(f"{len(found.failures)} of 40 problems fail")


def test_a_few_golds_that_fail_are_counted(grader: Grader):
    asked = problems("none", 100)
    asked[7:9] = problems("reads another mark", 9)[7:9]
    found = check_task(grader, asked, boxed)
    assert [probe.problem.id for probe in found.failures] == [7, 8]
    assert found.share == 0.02


def test_a_slow_verifier_is_tried_on_fewer_problems(grader: Grader):
    start = time.monotonic()
    found = report(grader, "is slow", 400)
    assert 4 < found.checked < 100
    assert f"(0.0%; checked {found.checked} of 400)" in str(found)
    assert found.few == (found.checked < 64)
    assert not found.failures
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (
            "gives a text",
            r"\nMend the verifier or the component of the reward: error, ValueError: the verifier",
        ),
        (
            "takes what is near",
            r"\nGold \+- 1 is right, other wrong answers are not: narrow the verifier's tolerance",
        ),
        ("reads the last digits", r"\Z"),
        ("takes everything", r"\Z"),
    ],
)
def test_a_likely_cause_is_named_with_its_remedy(grader: Grader, fault: str, cause: str):
    assert re.match(cause, report(grader, fault).causes)


def test_a_verifier_that_runs_responses_as_code_is_found():
    with Grader(verify, Reward(), workers=1) as grader:
        found = report(grader, "runs code")
    assert found.share == 1.0
    assert re.search(r"wrong response .*__import__\('os'\)._exit\(3\).* ends in crashed", str(found))
    assert "exit code 3. It runs text of a response as code: read numbers" in found.causes


@pytest.mark.parametrize(("fault", "status"), [("hangs", "timeout"), ("crashes", "crashed")])
def test_a_verifier_that_hangs_or_dies_is_left_after_a_few_responses(fault: str, status: str):
    with Grader(verify, Reward(), workers=1, time_limit=0.5) as grader:
        start = time.monotonic()
        found = report(grader, fault, 400)
        assert time.monotonic() - start < 20
    assert (found.checked, found.share, found.failures[0].grade.status) == (1, 1.0, status)


@given(
    st.one_of(
        st.integers(-(10**40), 10**40).map(str), st.decimals(allow_nan=False, allow_infinity=False).map("{:f}".format)
    )
)
def test_no_gold_makes_a_sound_verifier_fail(grader: Grader, gold: str):
    """Junk such as "0000" and neighbours such as 1/1 may be right; the gate knows."""
    problem = Problem(1, "?", gold, metadata={"fault": "none"})
    assert not check_task(grader, [problem] * len(JUNK_RESPONSES), boxed).failures


def test_an_answer_that_no_response_ends_with_is_written_by_the_task(grader: Grader):
    """Wrong answers that `write` cannot take, or does not use, are no probes."""

    def write(problem: Problem) -> str:
        return boxed(problem) if problem.answer == "17" else str(1 // 0)

    asked = problems("none")[1:2]
    assert not check_task(grader, asked, write).failures
    assert not check_task(grader, asked, lambda problem: r"\boxed{17}").failures
    with pytest.raises(ValueError, match=r"write_answer fails on the answer '34': ZeroDivisionError"):
        check_task(grader, problems("none")[2:3], write)


SENTENCES = ["We add them. So there are 7 apples.", "Therefore the total number of red apples is 7"]
NO_SENTENCES = ["7 apples", "11:55 p.m.", r"x \in \mathbb{R}, \text{ but } x \neq \frac{\pi}{2}", "all real numbers"]


@pytest.mark.parametrize(("golds", "count"), [(SENTENCES, 2), (NO_SENTENCES, 0)])
def test_golds_that_only_their_own_words_could_earn_are_counted(golds: list[str], count: int):
    """Files whose answers are solutions without a mark, as Orca-Math has them."""
    said, many = sentence_golds([Problem(1, "?", gold, metadata={"solution": ""}) for gold in golds * 3])
    assert said.startswith(f"{3 * count} of {3 * len(golds)} golds are sentences without a mark")
    assert many == (count > 0)


def test_a_sentence_is_no_defect_where_a_solution_stands_before_it_or_it_is_rare():
    rare = [Problem(1, "?", gold, metadata={"solution": ""}) for gold in [*SENTENCES, *["7"] * 198]]
    assert not sentence_golds(rare)[1]
    assert not sentence_golds([Problem(1, "?", SENTENCES[0], metadata={"solution": "so"})])[1]
