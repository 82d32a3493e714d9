"""Final answers are found where responses put them; a number that stands elsewhere is never paid."""

import pytest

from rl_llm.tasks.answers import (
    MARKS,
    extract_answer,
    grade_answer,
    last_answer_tag,
    split_gold,
    written_as_asked,
)


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        (r"\frac{3}{4}", r"The chance is \(\boxed{\frac{3}{4}}\).", 1.0),
        (r"\frac{3}{4}", r"\fbox{$\frac{3}{4}$}", 1.0),
        ("C", r"Only \(\boxed{C}\) fits.", 1.0),
        ("C", r"Only \(\boxed{\text{(C)}}\) fits.", 1.0),
        ("5b-1", r"\boxed{5b-1}.", 1.0),
        ("4", r"The chance is \(\boxed{\frac{3}{4}}\).", 0.0),
        ("3", r"The chance is \(\boxed{\frac{3}{4}}\).", 0.0),
        ("24", "\\boxed{24}\n\nCheck: 24 / 3 = 8.", 1.0),
        ("8", "\\boxed{24}\n\nCheck: 24 / 3 = 8.", 0.0),
        ("24", "<answer>\\boxed{24}</answer>", 1.0),
        ("24", "<answer>so $\\boxed{24}$ it is</answer>", 1.0),
        ("7200", r"\boxed{\$7{,}200}", 1.0),
        ("200", r"\boxed{\$7{,}200}", 0.0),
        ("6", r"\boxed{4} was wrong, so \boxed{6}. (Step 3 had the slip.)", 1.0),
        ("4", r"\boxed{4} was wrong, so \boxed{6}. (Step 3 had the slip.)", 0.0),
        ("6", r"Put it as \boxed{}. I find \boxed 6.", 1.0),
        ("6", r"\boxed{\boxed{6}}", 1.0),
        ("6", r"\boxed{6} and then \boxed{7", 1.0),
        ("6", r"\\boxed{6}", 1.0),
        ("6", r"\boxed{\text{Answer: }6}", 1.0),
        ("B", r"\boxed{\text{The answer is } B}", 1.0),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", 1.0),
        (r"\{1, 2\}", r"\boxed{\left\{ 1,2 \right\}} } }", 1.0),
        ("6", r"\boxedsomething{6} 7", 0.0),
        ("6", r"I never box {6}, only \boxed{9}", 0.0),
    ],
)
def test_the_last_balanced_box_is_the_answer(gold, response, right):
    assert grade_answer(response, gold) == right


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("36", "6 * 6 = 36\n#### 36\nThis agrees with the estimate above."),
        ("36", "#### 36\n\nQuestion: Ann has 4 pears."),
        ("36", "####36"),
        ("36", "#### **36**"),
        ("36", "#### $36$"),
        ("36", "#### 36 euros"),
        ("36", "#### Answer: 36"),
        ("Monday", "#### Monday\nThat is the day."),
        ("7", "#### Step 1\n3 + 4 = 7\n#### Step 2\nSo the answer is 7."),
        ("7", "#### 1. Add\n3 + 4\n#### Result\nThe answer is 7"),
        ("Monday", "#### Step 1\nCount.\n#### Conclusion:\nThe answer is Monday."),
        ("36", "<answer>36 euros</answer>"),
        ("36", "<answer>$36$</answer>"),
        ("36", "<Answer>\n36\n</Answer>"),
        ("36", "<answer>36\nbecause 6 * 6 is 36</answer>"),
        ("36", "<answer>The answer is 36.</answer>"),
        ("36", "<answer>Ann has 36 pears in all.</answer>"),
        ("9", "Write it as <answer>...</answer>. So: 9"),
        ("9", "Write it as <answer>your answer</answer>. So: 9"),
        ("(3,4)", "<answer>(3, 4)</answer>"),
    ],
)
def test_text_around_a_marked_answer_does_no_harm(gold, response):
    assert grade_answer(response, gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("9", "The answer is 9."),
        ("9", "The final answer is: **9**"),
        ("9", "**Answer:** 9 because 3 * 3 = 9; see page 12"),
        ("9", "Answer: x = 9"),
        ("9", "### Final Answer\n\n9 apples, as 10 - 1 shows"),
        ("9", "The answer to the question is $9$."),
        ("9", "答案是 9。"),
        ("B", "The answer is (B)."),
        ("B", "Answer: B. 12 pears"),
        ("B", "The answer is B because 12 is too much."),
        ("Monday", "The answer is **Monday**. Then comes Tuesday."),
        (r"\frac{1}{x}", r"The answer is $\frac{1}{x}$ for all x."),
        ("(1, 2)", "The answer is (1, 2). It lies on the line."),
        ("1/2", "The answer is 1/2."),
        ("1000", "Answer: 1e3"),
        ("18", "The answer is 18, not 19."),
        ("yes", "Answer: Yes, because"),
        ("6", "The answer is 5. Wait, the answer is 6."),
        ("6", "The answer is 5. No, 6."),
        ("6", "#### 5. Wait, it is 6"),
        ("6", "The answer is not 5 but 6."),
        ("C", "The answer is A. No, C."),
        ("A", "The answer is not B, it is A."),
        ("London", "The answer is not Paris, it is London."),
        ("B", "The answer is B. Actually a dog is C"),
        ("C", "The answer is A. The answer is C."),
        ("x^2", "Final Answer: The final answer is $x^2$. I hope it is correct."),
        ("B", "Answer: The correct answer is B"),
        ("-5", "The answer is negative 5."),
        ("-5", "The answer is minus 5."),
        ("18", "The answer is 18. I hope that the answer is correct."),
        (r"\sqrt{2}", "The answer is\n\\[\n\\sqrt2\n\\]"),
    ],
)
def test_a_phrase_marks_the_answer(gold, response):
    assert grade_answer(response, gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("18", "The answer is 18 or 19."),
        ("19", "The answer is 18 or 19."),
        ("19", "#### 18 or 19"),
        ("18", "#### 18 dollars or 19 dollars"),
        ("18", "<answer>18 19</answer>"),
        ("19", "The answer is 18, not 19."),
        ("9", "The answer is x = 8, y = 9"),
        ("5", "The answer is 5. Wait, the answer is 6."),
        ("A", "The answer is A. The answer is C."),
        ("5", "The answer is not 5."),
        ("5", "The answer is negative 5."),
        ("5", "The answer is minus 5."),
        ("7", "The answer is 7 hundred."),
        ("7", "The answer is 7 and a half."),
        ("7", "<answer>the square root of 7</answer>"),
        ("A", "Answer: (A) B C D"),
        ("A", "The answer is A. No, C."),
        ("5", "The answer is 5. No, 6."),
        ("B", "The answer is not B, it is A."),
        ("6", "<answer>5, 6</answer>"),
        ("3", r"The answer is \frac{1}{2}, 3"),
        ("7", "#### 7 quarters"),
    ],
)
def test_a_marked_answer_that_says_two_things_or_another_is_wrong(gold, response):
    assert grade_answer(response, gold) == 0.0


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("x = \u22127", "-7"),
        ("x = \u20137", "-7"),
        ("x = - 7", "- 7"),
        ("It is 3/4.", "3/4"),
        ("It is 3 / 4", "3 / 4"),
        (r"It is $\frac{3}{4}$.", r"\frac{3}{4}"),
        ("2 1/2 cups", "2 1/2"),
        ("It is 4^3.", None),
        ("It is 4^{3}.", None),
        ("It is 2e5", "2e5"),
        ("It is 3 + 4", None),
        ("It is 3 + 4 = 7", "7"),
        ("18/2=9", "9"),
        ("the total is 2 000.", "2 000"),
        ("the total is 2,00,000.", "2,00,000"),
        ("the total is 2,000, not less", "2,000"),
        ("at 4:30.", "4:30"),
        ("pages 10-15", None),
        ("the point (3, 4)", None),
        ("\uff13\uff14", "34"),
        ("H2O, x2 and 5x", None),
        (r"5\sqrt{2}", None),
        (r"\sqrt{2}", None),
        ("7 apples.\n1. Count them", "7"),
        ("It is 7\nStep 2.", "7"),
        ("- 5 apples", "5"),
        ("- 5", "- 5"),
        ("\u221a7", None),
        ("\u00b17", None),
        ("x \u2260 7", None),
        ("x > 7", None),
        ("7 < x", None),
        ("=> 7", "7"),
        ("<b>7</b>", "7"),
        (r"so \Rightarrow 7", "7"),
        ("log 7", None),
        ("the square root of 7", None),
        ("the square root of 49 is 7", "7"),
        ("6 times 7", None),
        ("6 times 7 is 42", "42"),
        ("6 divided by 7", None),
        ("6 to 7", None),
        ("It comes to 7", "7"),
        ("6 or 7", None),
        ("18 19", None),
        ("42!", None),
        (r"1\over 3", None),
        ("7 squared", None),
        ("It was 7 times.", "7"),
        ("$3.50", "$3.50"),
        ("12cm", "12cm"),
        ("no digits", None),
        ("5. So \u221a7", None),
        ("5 left, so he needs \u221a7", None),
        ("5. So 7", "7"),
        ("on the 7th", None),
        (r"so x = $0.\overline{3}$", r"$0.\overline{3}"),
    ],
)
def test_the_last_number_is_a_complete_one(response, number):
    assert extract_answer(response, numeric=True) == number


@pytest.mark.parametrize("gold", ["A", "Monday", "x+1", "(1, 2)"])
def test_only_a_numeric_gold_is_found_without_a_mark(gold):
    assert grade_answer(f"It must be {gold}", gold) == 0.0


def test_the_task_decides_which_marks_count_and_in_which_order():
    response = "<answer>1</answer> \\boxed{2}\n#### 3\nThe answer is 4. Or 5"
    assert [extract_answer(response, (mark,), numeric=True) for mark in MARKS] == ["2", "1", "3", "4", "5", None]
    assert extract_answer(response, ("hashes", "boxed")) == "3"
    assert extract_answer("\\boxed{2} or 5", ("answer_tag", "last_number"), numeric=True) == "5"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so <answer> 4 </answer>.", "4"),
        ("<answer>3</answer> no, <answer>4</answer>", "4"),
        ("<answer>3</answer> no, <answer>4", "3"),
        ("<answer>4", None),
        ("4</answer>", None),
        ("<answer></answer>", ""),
        ("", None),
    ],
)
def test_the_last_complete_answer_tag_counts(response, answer):
    assert last_answer_tag(response) == answer


@pytest.mark.parametrize(
    ("text", "solution", "gold"),
    [
        ("3 + 4 = 7\n#### 7", "3 + 4 = 7", "7"),
        (
            r"We get $\boxed{\frac{1}{\sqrt{2}}}$ at last.",
            r"We get $\boxed{\frac{1}{\sqrt{2}}}$ at last.",
            r"\frac{1}{\sqrt{2}}",
        ),
        ("27", "", "27"),
        (" (1, 2) ", "", "(1, 2)"),
    ],
)
def test_a_gold_answer_is_found_by_the_same_marks(text, solution, gold):
    assert split_gold(text) == (solution, gold)


@pytest.mark.parametrize("text", ["", " \n", "3 + 4\nis more than 6", "####"])
def test_a_gold_without_an_answer_is_refused(text):
    with pytest.raises(ValueError, match="no final answer"):
        split_gold(text)


@pytest.mark.parametrize("gold", ["7", r"\frac{1}{2}", "B", r"\{1,2\}", "x^{2}+1", "3:30", "Monday", "(1, 2)"])
@pytest.mark.parametrize("prompt", [r"Put it in \boxed{}.", "Use <answer>...</answer>.", "End with #### N."])
def test_a_right_answer_written_as_asked_is_right(prompt, gold):
    assert grade_answer(f"So it is {written_as_asked(prompt, gold)}", gold) == 1.0


def test_a_prompt_without_a_mark_asks_for_the_bare_answer():
    assert written_as_asked("How many?", "7") == "7"


@pytest.mark.parametrize(
    "unit",
    [
        r"\boxed{",
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "#### ",
        "answer is ",
        "1 ",
        "1/",
        "\\",
        "{",
        "}",
        "(1, ",
        "-",
        "1. No, ",
        "answer is not 1, ",
        "so 1 x ",
        "0.\\dot{1}",
        "\\color{",
    ],
)
def test_a_long_hostile_response_is_wrong(unit):
    """A search of quadratic time would take hours here; experiments/benchmarks/answers.py --hostile measures it."""
    assert grade_answer(unit * 100_000, "7") == 0.0


@pytest.mark.parametrize(("response", "answer"), [(" (B) ", "(B)"), ("x^2", "x^2"), ("I see.\nB", None), ("", None)])
def test_a_response_of_one_line_is_an_answer_that_is_no_number(response: str, answer: str | None):
    assert extract_answer(response) == answer


def test_the_correct_option_is_a_phrase():
    assert extract_answer("Both are odd.\nThe correct option is (B). It is prime.") == "(B)"


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("6", r"<think>maybe \boxed{5}</think> The answer is 6.", 1.0),
        ("5", r"<think>maybe \boxed{5}</think> The answer is 6.", 0.0),
        ("5", r"maybe \boxed{5}</think> The answer is 6.", 0.0),
        ("6", r"<think>a</think> \boxed{5} <think>no</think> \boxed{6}", 1.0),
        ("6", "<thinking>5</thinking>\n6", 1.0),
        ("5", "<think>I guess 5</think>", 0.0),
        ("5", r"<think>the answer is \boxed{5}", 0.0),
        ("5", "\n<Reasoning> so #### 5", 0.0),
        ("5", r"Write <think> first. \boxed{5}", 1.0),
        ("yes", "<think>no</think> yes", 1.0),
    ],
)
def test_thoughts_have_no_answer(gold, response, right):
    assert grade_answer(response, gold) == right


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        (r"\sqrt5", r"The answer is $\sqrt5$ or $\sqrt6$.", 0.0),
        (r"\sqrt5,\sqrt6", r"The answer is $\sqrt5$ or $\sqrt6$.", 1.0),
        ("1,2,3", "The answer is $1$, $2$ and $3$.", 1.0),
        ("5,6", "The answer is $x=5$ or $x=6$", 1.0),
        ("(1,2)", "The answer is $(1,2)$ and $(3,4)$", 0.0),
        (r"\pi", r"Answer: \(\pi\), \(2\pi\)", 0.0),
        (r"\pi", r"Answer: $\pi$/2", 0.0),
        (r"\sqrt2", r"Answer: $\sqrt2$ * 3", 0.0),
        ("x", "The answer is $x$ + $y$", 0.0),
        ("x", "The answer is $x$ squared", 0.0),
        ("5", "The answer is **5** or **6**", 0.0),
        ("A", "The answer is **A** or **B**", 0.0),
        ("A", "The answer is A. Or B.", 0.0),
        ("2", r"The answer is $2$ times $\sqrt{5}$", 0.0),
        ("1/3", r"The answer is $\frac{1}{2}$ or $\frac{1}{3}$", 0.0),
        (r"\pi", r"The answer is $\pi$, not $2\pi$", 1.0),
        (r"\pi", r"The answer is **$\pi$** because $x = 1$.", 1.0),
        ("x^2", "The answer is $x^2$, where $x > 0$.", 1.0),
        ("Monday", "The answer is **Monday**, and Tuesday comes next.", 1.0),
        ("18", "The answer is **18**. It is 2 * 9.", 1.0),
    ],
)
def test_a_phrase_gives_all_parts_of_its_answer(gold, response, right):
    assert grade_answer(response, gold) == right


@pytest.mark.parametrize(
    "response",
    [
        "5 is wrong",
        "5 is too much",
        "it isn't 5",
        "it cannot be 5",
        "never 5",
        "nearly 5",
        "5 or more",
        "6 remainder 5",
    ],
)
def test_a_number_that_is_denied_or_a_part_is_no_answer(response):
    assert grade_answer(response, "5") == 0.0
