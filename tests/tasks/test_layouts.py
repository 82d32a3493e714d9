"""Layouts of questions and answers: presets read rows as they are published, and nothing of a question is left out."""

from decimal import Decimal
from typing import Any

import pytest

from rl_llm.config import OverrideError, override
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.layouts import DAPO, GSM8K, MATH, PRESETS, TRL, Layout, advice, fitting

USER = {"role": "user", "content": "What is 1 + 2?"}
SYSTEM = {"role": "system", "content": "Be brief."}
PUBLISHED = {
    "GSM8K": {"question": "1 + 2?", "answer": "It is 3. #### 3"},
    "MATH": {"problem": "1 + 2?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{3}$."},
    "AIME": {"id": 60, "problem": "1 + 2?", "solution": "It is 3.", "answer": "3", "question": "1 + 2?"},
    "DAPO": {"prompt": [USER], "reward_model": {"ground_truth": "3", "style": "rule"}, "extra_info": {"index": "x"}},
    "TRL": {"prompt": [USER], "answer": "3"},
    "TRL_SOLUTION": {"prompt": "1 + 2?", "solution": "3"},
    "SVAMP": {"Body": "Ann has 1.", "Question": "1 + 2?", "Answer": 3.0, "Equation": "( 1 + 2 )"},
    "ASDIV": {"body": "Ann has 1.", "question": "1 + 2?", "answer": "3 (apples)", "idx": 0},
    "MAWPS": {"input": "1 + 2?", "target": 3.0},
    "CARP": {"content": "1 + 2?", "answer": "3"},
    "OLYMPIAD": {"context": None, "question": "1 + 2?", "final_answer": ["3"], "solution": ["..."]},
    "AQUA": {"question": "1 + 2?", "options": ["A)2", "B)3"], "rationale": "...", "correct": "B"},
    "SAT": {"question": "1 + 2?", "options": "A) $2$ B) $3$", "Answer": "B"},
    "MMLU": {"question": "1 + 2?", "choices": ["2", "3"], "answer": 1},
    "ARC": {"question": "1 + 2?", "choices": {"text": ["2", "3"], "label": ["A", "B"]}, "answerKey": "B"},
    "RLVR": {"messages": [USER], "ground_truth": "3"},
    "GROUND_TRUTH": {"prompt": [USER], "ground_truth": "3"},
    "MGSM": {"question": "1 + 2?", "answer": None, "answer_number": 3, "equation_solution": None},
    "METAMATH": {"query": "1 + 2?", "response": "It is 3.\nThe answer is: 3", "type": "MATH_Rephrased"},
    "CAPITALS": {"ID": "2024-I-1", "Problem": "1 + 2?", "Solution": "...", "Answer": 3},
    "CAPITALS_QUESTION": {"Question": "1 + 2?", "Answer": "3", "Answer_type": "integer"},
    "OPENRLHF": {"input": "1 + 2?", "label": "3"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_fits_first_what_is_published_in_it(name: str):
    assert fitting(PUBLISHED[name])[0] == name
    assert "1 + 2?" in PRESETS[name].read(PUBLISHED[name]).question


def test_a_command_line_sets_a_preset_by_its_name():
    for name, preset in PRESETS.items():
        assert override(JsonlProblems("a.jsonl", layout=PRESETS["AQUA"]), [f"layout={name}"]).layout == preset
    with pytest.raises(
        OverrideError, match=r"give the name of a preset \(did you mean 'MATH'\?\): DAPO, .*CARP; or use"
    ):
        override(JsonlProblems("a.jsonl"), ["layout=MATHS"])


@pytest.mark.parametrize(
    ("row", "layout", "question", "answer"),
    [
        (PUBLISHED["SVAMP"], PRESETS["SVAMP"], "Ann has 1.\n1 + 2?", "3"),
        (PUBLISHED["OLYMPIAD"], PRESETS["OLYMPIAD"], "1 + 2?", "3"),
        (PUBLISHED["AQUA"], PRESETS["AQUA"], "1 + 2?\nA)2\nB)3", "B"),
        (PUBLISHED["SAT"], PRESETS["SAT"], "1 + 2?\nA) $2$ B) $3$", "B"),
        (PUBLISHED["MMLU"], PRESETS["MMLU"], "1 + 2?\nA) 2\nB) 3", "B"),
        (PUBLISHED["ARC"], PRESETS["ARC"], "1 + 2?\nA) 2\nB) 3", "B"),
        ({"question": "q", "answer": 27.0}, GSM8K, "q", "27"),
        ({"question": "q", "answer": 0.5}, GSM8K, "q", "0.5"),
        ({"question": "q", "answer": 1e23}, GSM8K, "q", "1" + "0" * 23),
        ({"question": "q", "answer": Decimal("1234567890123456.789")}, GSM8K, "q", "1234567890123456.789"),
        ({"question": "q", "answer": 7}, GSM8K, "q", "7"),
        ({"question": "q", "answer": ["1", 2.0]}, GSM8K, "q", "1, 2"),
        ({"question": "q", "answer": ' ["34"] '}, GSM8K, "q", "34"),
        ({"question": "q", "answer": '["-1", 2, "x"]'}, GSM8K, "q", "-1, 2, x"),
        ({"question": "q", "answer": '["-1","2"]'}, GSM8K, "q", "-1, 2"),
        ({"question": "q", "answer": r'["\\frac{1}{2}"]'}, GSM8K, "q", r"\frac{1}{2}"),
        ({"question": "q", "answer": "['a', \"b's\"]"}, GSM8K, "q", "a, b's"),
        ({"question": "q", "answer": "[1, 2]"}, GSM8K, "q", "[1, 2]"),
        ({"a.b": "q", "answer": "1"}, Layout("a.b"), "q", "1"),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A"}, PRESETS["OPTIONS"], "q\nA) x\nB) y", "A"),
    ],
)
def test_questions_and_answers_are_taken_out(row: dict, layout: Layout, question: str, answer: str):
    assert layout.read(row)[::2] == (question, answer)


@pytest.mark.parametrize("said", [[USER], [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}]])
def test_one_message_of_the_user_is_its_text(said: Any):
    assert DAPO.read({"prompt": said, "reward_model": {"ground_truth": "3"}}) == ("What is 1 + 2?", [], "3")


def test_several_messages_are_kept():
    found = TRL.read({"prompt": [SYSTEM, USER], "answer": "3"})
    assert (found.question, found.messages) == ("system: Be brief.\n\nuser: What is 1 + 2?", [SYSTEM, USER])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q"}, "the field 'answer' is missing; there are 'prompt'"),
        ({"prompt": "q", "answer": None}, "the field 'answer' is None"),
        ({"prompt": "q", "answer": ""}, "the field 'answer' is ''"),
        ({"prompt": "q", "answer": float("nan")}, "the field 'answer' is nan"),
        ({"prompt": "q", "answer": Decimal("Infinity")}, "the field 'answer' is Decimal('Infinity')"),
        ({"prompt": "q", "answer": []}, "the field 'answer' is []"),
        ({"prompt": "q", "answer": r'["\frac12"]'}, "expected a list in JSON (a backslash was lost)"),
        ({"prompt": "q", "answer": '["a" + x, "b"]'}, "expected a list in JSON"),
        ({"prompt": " ", "answer": "1"}, "the field 'prompt' is ' '"),
        ({"prompt": [], "answer": "1"}, "'prompt' is []; expected a list of messages"),
        ({"prompt": [SYSTEM], "answer": "1"}, "'prompt' ends with a message of the system; expected the user's last"),
        ({"prompt": [{**USER, "tool_calls": [1]}], "answer": "1"}, "prompt[0]: unknown 'tool_calls'"),
        ({"prompt": [{"role": "tool", "content": "1"}], "answer": "1"}, "prompt[0]: expected a role among system"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"}, "has parts that are no text"),
        ({"prompt": "q", "answer": "1", "tools": [{"name": "x"}]}, "nothing uses it; take it out of the file"),
        ({"prompt": "q", "answer": "1", "chat_template_kwargs": {"enable_thinking": False}}, "in the tokenizer"),
        ({"prompt": "q", "answer": "1", "system": "Be brief."}, "set tokenizer.system"),
        ({"prompt": "q", "answer": "1", "extra_info": {"tools_kwargs": {"f": {"x": 1}}}}, "'extra_info.tools_kwargs'"),
        ({"prompt": "q", "answer": "1", "extra_info": {"need_tools_kwargs": True}}, "extra_info.need_tools_kwargs"),
        ({"prompt": "q", "answer": "1", "agent_name": "tool_agent"}, "the field 'agent_name' would change"),
        ({"prompt": "q", "answer": "1", "options": ["1", "2"]}, "add it to the layout, or to layout.left_out"),
    ],
)
def test_an_unfit_row_is_refused_by_name(row: dict, reason: str):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the reason is compared below)
        TRL.read(row)
    assert reason in str(caught.value)


def test_empty_fields_and_those_left_out_are_no_obstacle():
    nothing = {"tools": None, "images": [], "context": "", "options": {}, "chat_template_kwargs": None}
    assert GSM8K.read({"question": "q", "answer": "1", **nothing}).question == "q"
    info = {"tools_kwargs": {"f": {"x": None}}, "need_tools_kwargs": False, "index": 3}
    assert GSM8K.read({"question": "q", "answer": "1", "extra_info": info, "agent_name": "single_turn_agent"})
    noted = {"question": "q", "answer": "1", "extra_info": {"tools_kwargs": {"f": 1}}}
    assert Layout(left_out=("extra_info.tools_kwargs",)).read(noted).question == "q"
    assert TRL.read({"prompt": [{**USER, "tool_calls": [], "name": None}], "answer": "1"}).question == USER["content"]
    assert Layout(left_out=("context",)).read({"question": "q", "answer": "1", "context": "x"}).question == "q"


def test_messages_and_options_cannot_be_joined():
    row = {"prompt": [SYSTEM, USER], "options": ["1", "2"], "answer": "A"}
    with pytest.raises(ValueError, match="the fields prompt hold no texts that can be joined"):
        Layout("prompt", options="options").read(row)


@pytest.mark.parametrize(("answer", "options"), [(2, ["1", "2"]), (-1, ["1", "2"])])
def test_an_index_beyond_the_options_is_refused(answer: int, options: list[str]):
    with pytest.raises(ValueError, match="is no index of the 2 options"):
        PRESETS["MMLU"].read({"question": "q", "choices": options, "answer": answer})


def test_advice_names_the_preset_that_fits():
    said = advice(PUBLISHED["MATH"], GSM8K)
    assert said == "; PRESETS['MATH'] of rl_llm.tasks.layouts fits: --set task.layout=MATH"
    assert advice({"text": "1"}, GSM8K) == ""
    assert advice(PUBLISHED["MATH"], MATH) == ""
    assert advice(PUBLISHED["GSM8K"], MATH).endswith("--set task.layout=GSM8K")
