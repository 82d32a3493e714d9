"""Equal answers are equal in every spelling, and a wrong answer never is."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.tasks.answers import equal_answers, grade_answer, needs_math
from rl_llm.tasks.answers.numbers import read_number


def pairs(table: str) -> list[tuple[str, str]]:
    """Read lines of `given ~ gold`."""
    return [tuple(part.strip() for part in line.split(" ~ ")) for line in table.splitlines() if line]


NUMBERS = r"""
    1,000 ~ 1000
    1 000 ~ 1000
    1{,}000 ~ 1000
    1,\!000 ~ 1000
    1\,000 ~ 1000
    12,34,567 ~ 1234567
    $1,000.00 ~ 1000
    \$18 ~ 18
    US$18 ~ 18
    18 dollars ~ 18
    18 dollars per day ~ 18
    18\text{ dollars} ~ 18
    18 \text{ cm}^2 ~ 18
    18 cm^2 ~ 18
    18cm ~ 18
    18 square inches ~ 18
    9 (apples) ~ 9
    9 apples ~ 9 (apples)
    5 元 ~ 5
    5 \text{ feet} ~ 5 ft
    18.0 ~ 18
    18. ~ 18
    007 ~ 7
    .5 ~ 0.5
    −5 ~ -5
    –5 ~ -5
    - 5 ~ -5
    -$5 ~ -5
    $-5$ ~ -5
    1 1/2 ~ 3/2
    1½ ~ 3/2
    1\frac{1}{2} ~ \frac{3}{2}
    12 \frac{3}{5} ~ 12\frac{3}{5}
    -1\frac12 ~ -3/2
    \dfrac{1}{2} ~ 1/2
    \tfrac12 ~ 0.5
    \frac{-1}{2} ~ -1/2
    \frac{1}{-2} ~ -0.5
    \frac{2}{4} ~ 1/2
    1e3 ~ 1000
    1.5 \times 10^3 ~ 1500
    1.5*10^{3} ~ 1500
    1.5 × 10² ~ 150
    10^{-2} ~ 0.01
    50% ~ 50
    50\% ~ 50\%
    50% ~ 0.5
    50 percent ~ 50%
    0.5 ~ 50\%
    100\% ~ 1
    ４２ ~ 42
    x = 5 ~ 5
    $x=5$ ~ 5
    5 ~ x = 5
    f(2)=5 ~ 5
    2 + 3 = 5 ~ 5
    \theta = 30^\circ ~ 30
    30 degrees ~ 30°
    2 million ~ 2000000
    \text{18} ~ 18
    \mathbf{18} ~ 18
    \boldsymbol{18} ~ \underline{18}
    {18} ~ 18
    3:30 PM ~ 3:30
    3:30 p.m. ~ 3:30 PM
    03:30 ~ 3:30
    3:30 \text{ p.m.} ~ 3:30 PM
    5 p.m. ~ 5 PM
    5:00 pm ~ 5 PM
    3{:}05 \text{ pm} ~ 3:05 PM
    (-3) ~ -3
    -(-5) ~ 5
    -\left(\frac34\right) ~ -3/4
    9 red apples ~ 9
    7 months ~ 7
    41 ~ 41 (fourth graders)
    9 ~ 9 (quarters)
    9 quarters ~ 9 (quarters)
    9 \text{ quarters} ~ 9 (quarters)
    0.\overline{3} ~ 1/3
    1/3 ~ 0.\dot{3}
    0.1\overline{6} ~ 1/6
    0.\dot{1}4285\dot{7} ~ 1/7
    -3.\overline{3} ~ -10/3
    33.\overline{3}\% ~ 1/3
    -\frac{-3}{4} ~ 3/4
    -\frac{-3}{-4} ~ -3/4
    2 h ~ 2 hours
    5m ~ 5 meters
    10 ~ 10 sq ft
    3rd ~ 3
    3 ~ 3^{\text{rd}}
    \color{red}{5} ~ 5
    \textcolor{blue}{\frac{1}{2}} ~ 0.5
    \Large 18 ~ 18
    m+n = 63 + 64 = 127 ~ 127
"""
OTHER_NUMBERS = r"""
    1/2 ~ 2
    1 1/2 ~ 11/2
    11/2 ~ 1 1/2
    0.333 ~ 1/3
    0.333333 ~ 1/3
    1/3 ~ 0.333
    -5 ~ 5
    5 ~ -5
    1,000 ~ 1
    18 cm ~ 18 m
    18 cm ~ 18 cm^2
    $5 ~ 5 cents
    0.5% ~ 0.5
    50% ~ 500
    0.5 ~ 50
    1% ~ 1
    5x ~ 5
    5 ~ 5x
    4m ~ 4
    4 m ~ 4
    12 x ~ 12
    12xy ~ 12
    2x = 5 ~ 5
    3 = 5 ~ 5
    x=5 ~ y=5
    2+3 ~ 5
    2^2 ~ 4
    3 \times 4 ~ 12
    2\pi ~ 2
    2i ~ 2
    5! ~ 5
    1e3 ~ 3
    10^3 ~ 3
    1,2 ~ 12
    1.000,5 ~ 1000.5
    1 2 ~ 12
    5 or 6 ~ 5
    5, 6 ~ 5
    not 5 ~ 5
    5 thousand ~ 5
    2 dozen ~ 2
    5万 ~ 5
    5 hours and 30 minutes ~ 5
    -1\frac{1}{2} ~ -1/2
    10000000000000001 ~ 10000000000000000
    0.1000000001 ~ 0.1
    1/0 ~ 0
    nan ~ 5
    \infty ~ 5
    1e999999999 ~ 5
    ... ~ 5
    3:30 ~ 30
    3:03 ~ 3:30
    3:30 AM ~ 3:30 PM
    12:00 ~ 1:00
    5 AM ~ 5 PM
    5 ~ 5 PM
    5:30 PM ~ 5 PM
    1/2e3 ~ 500
    10^{3}2 ~ 1000
    1/10^3 ~ 1000
    7 squared ~ 7
    7 cubed ~ 7
    7 factorial ~ 7
    7 halves ~ 7
    7 tenths ~ 7
    7 lakh ~ 7
    7 quadrillion ~ 7
    7 theta ~ 7
    7 infinity ~ 7
    7 hundred ~ 7
    7 choose three ~ 7
    7 below zero ~ 7
    7 eight nine ~ 7
    7 plus two ~ 7
    7 point five ~ 7
    7 \text{ squared} ~ 7
    7 quarters ~ 7
    0.\overline{34} ~ 1/3
    3.\overline{3} ~ 1/3
    1 0.\overline{3} ~ 1/3
    -\frac{-3}{4} ~ -3/4
    2 m ~ 2 hours
    5 x ~ 5 meters
    5 m ~ 5
    4th ~ 3rd
    \textcolor{red}{15} ~ 5
    f(x)=x, f(x)=0 ~ 0
"""
TEXTS = r"""
    (A) ~ A
    A) ~ A
    A. ~ A
    \text{A} ~ A
    \textbf{(A)} ~ A
    A. 5 apples ~ A
    (A) 5 apples ~ A
    a ~ A
    (a) ~ A
    Option B ~ B
    A. A dog ~ A
    (A) I am ~ A
    A ~ A) 5 apples
    Monday ~ monday
    \text{Monday} ~ Monday
    **Monday** ~ Monday
    "Monday" ~ Monday
    no ~ No
    \text{no  solution} ~ No solution
    x\text{-axis} ~ x-axis
"""
OTHER_TEXTS = r"""
    B ~ A
    A, B ~ A
    A or B ~ A
    AB ~ A
    A. 5 or B. 6 ~ A
    (A), C ~ A
    (A) B C D ~ A
    A) B, C ~ A
    A. C ~ A
    5 apples ~ A
    Tuesday ~ Monday
    Monday or Tuesday ~ Monday
    yes ~ no
    X ~ x
    2n+1 ~ 2N+1
"""
LISTS = r"""
    (1,2) ~ (1, 2)
    \left(1,2\right) ~ (1,2)
    (\frac{1}{2}, 3) ~ (0.5,3)
    (3, \frac{\pi}{2}) ~ (3,\pi/2)
    (45,2),(-10,-9) ~ $(-10,-9)$, $(45,2)$
    2, 3 ~ 3, 2
    2 and 3 ~ 2, 3
    2\text{ or }3 ~ 3,2
    x=2 or x=3 ~ 2,3
    2, 3, and 5 ~ 5,3,2
    1,000, 2,000 ~ 2000, 1000
    \{3,2\} ~ \{2, 3\}
    \{2,3\} ~ 2,3
    \pm 2 ~ 2,-2
    1 \pm \sqrt{2} ~ 1+\sqrt{2},1-\sqrt{2}
    x=1,y=2 ~ (1,2)
    (x,y)=(1,2) ~ (1,2)
    x=1, y=2 ~ y=2, x=1
    \begin{pmatrix}1\\2\end{pmatrix} ~ \begin{bmatrix} 1 \\ 2 \end{bmatrix}
    \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix} 1 & 2 \\ 3 & 4.0\end{pmatrix}
    [-2,1) ~ \{x|-2\leq x < 1\}
    (2,\infty) ~ x>2
    x>2 ~ (2,\infty)
    \{x \mid x>2\} ~ (2, \infty)
    x\in[1,2] ~ [1,2]
    (-\infty,1)\cup(2,\infty) ~ (2,\infty) \cup (-\infty, 1)
    x<1 \text{ or } x>2 ~ (-\infty,1)\cup(2,\infty)
    f(x)=0 \text{ and } f(x)=x ~ f(x)=x, f(x)=0
    \emptyset ~ \emptyset
    \varnothing ~ ∅
"""
OTHER_LISTS = r"""
    (1,2) ~ 1,2
    (2,1) ~ (1,2)
    [1,2] ~ (1,2)
    (1,2] ~ (1,2)
    \{1,2\} ~ (1,2)
    (1,2) ~ \{1,2\}
    2,3 ~ 2
    2 ~ 2,3
    2,2 ~ 2,3
    2,3,4 ~ 2,3
    1728 ~ 1331 and 1728
    n=2,3,4 ~ n=1,2,3
    D=(0,1) ~ D=(0,1.5)
    19,46,\text{ and }82 ~ 21,36, and 82
    2021 ~ \pm 2021
    1,2,\ldots,n ~ 1,3,\ldots,n
    x=2 ~ y=2
    x=1,y=2 ~ (2,1)
    (2,\infty) ~ [2,\infty)
    (-\infty,1)\cup(2,\infty) ~ (-\infty,1)\cup[2,\infty)
    x<1 \text{ and } x>2 ~ (-\infty,1)\cup(2,\infty)
    x<1 \text{ or } x\ge2 ~ (-\infty,1)\cup(2,\infty)
    \begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}1&2\end{pmatrix}
    \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix}1&3\\2&4\end{pmatrix}
"""
EXPRESSIONS = r"""
    \frac{\sqrt{3}}{3} ~ \frac{1}{\sqrt3}
    √3/3 ~ \frac{\sqrt{3}}{3}
    2\sqrt{3} ~ \sqrt{12}
    2\sqrt{3}\text{ cm} ~ 2\sqrt{3}
    4\pi \text{ square units} ~ 4\pi
    4b-2 ~ 2(2b-1)
    x^2+2x+1 ~ (x+1)^2
    10-4 n ~ -4n+10
    2π ~ 2\pi
    \sin x ~ sin(x)
    \ln(xy) ~ \ln x+\ln y
    2+3i ~ 3i+2
    \frac{1}{1+i} ~ \frac{1-i}{2}
    2x-y+3=0 ~ y=2x+3
    2x+3 ~ y=2x+3
    x>2 ~ 2<x
    x \geq 2 ~ x\ge2
    1011_2 ~ 1011_{2}
    \infty ~ \infty
    3^{100} ~ 3^{100}
"""
OTHER_EXPRESSIONS = r"""
    3.14159265 ~ \pi
    x+1 ~ y+1
    x ~ 2x-x+1
    \sqrt{x^2} ~ x
    |x| ~ x
    \sin x ~ \cos x
    \ln x ~ \ln 2x
    10^{-20}x ~ 10^{-21}x
    \frac{1}{2004!} ~ \frac{1}{2006!}
    \frac{1}{2^{99}}+0 ~ \frac{1}{2^{98}}+0
    \frac{2^{2005}+1}{3\cdot2^{2006}} ~ \frac{1}{3\cdot2^{2006}}
    1-\frac{1}{\mathrm{e}} ~ 1+\frac{1}{\mathrm{e}}
    4 ~ 4\sqrt(2)
    12 ~ 12_8
    12_9 ~ 12_8
    3x+4y+14=0 ~ 3x-y+13=0
    y=2x+3 ~ y=2x+4
    f(x)=2x ~ f(x)=3x
    f'(x)=2x ~ f(x)=2x
    e^x=0 ~ e^{2x}=0
    x>2 ~ x\ge2
    x>2 ~ x<2
    2\sqrt{3} \text{ cm} ~ 2\sqrt{3} \text{ m}
    -\infty ~ \infty
    5 ~ \infty
    x+1 @ ~ x+1
    \frac{1}{2 ~ \frac{x}{2}
"""


@pytest.mark.parametrize(("answer", "gold"), pairs(NUMBERS + TEXTS + LISTS + EXPRESSIONS))
def test_equal_answers_are_equal(answer, gold):
    assert equal_answers(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), pairs(OTHER_NUMBERS + OTHER_TEXTS + OTHER_LISTS + OTHER_EXPRESSIONS))
def test_a_wrong_answer_is_not_equal(answer, gold):
    assert not equal_answers(answer, gold)


def spellings(number: Fraction) -> list[str]:
    """Ways to write a number."""
    sign, size = "-" if number < 0 else "", abs(number)
    top, bottom = size.numerator, size.denominator
    found = [
        f"{sign}{top}/{bottom}",
        rf"{sign}\frac{{{top}}}{{{bottom}}}",
        rf"${sign}\dfrac{{{top}}}{{{bottom}}}$",
        f"{sign.replace('-', chr(0x2212))}{top:,} / {bottom}",
        rf"x = {sign}\frac{{{top}}}{{{bottom}}}",
    ]
    if top > bottom > 1:
        found.append(f"{sign}{top // bottom} {top % bottom}/{bottom}")
    if bottom == 1:
        whole = f"{sign}{top:,}"
        found += [f"{sign}{top}", whole, whole.replace(",", "{,}"), whole.replace(",", " "), f"{whole} apples"]
        found += [f"{whole}.00", rf"{whole} \text{{ cm}}^2", f"{sign}${top:,}", f"**{whole}**", f"{sign} {top}."]
        found += ["".join(chr(ord(c) + 0xFEE0) for c in f"{sign}{top}"), f"{sign}{top}e0", f"{sign}0{top}"]
    return found


rationals = st.builds(Fraction, st.integers(-(10**7), 10**7), st.sampled_from([1, 1, 1, 2, 3, 7, 8, 100]))


@given(rationals, st.data())
def test_a_number_equals_itself_in_any_spelling_and_no_other_number(number, data):
    answer, gold = (data.draw(st.sampled_from(spellings(number))) for _ in range(2))
    assert read_number(answer).value == number
    assert equal_answers(answer, gold)
    assert grade_answer(rf"So it is \boxed{{{answer}}}.", gold) == 1.0
    assert grade_answer(f"Of 3 parts:\n#### {answer}\nChecked 2 times.", gold) == 1.0
    for other in (number + 1, number - 1, -number, number * 10, 1 / number if number else 2):
        if other != number:
            assert not equal_answers(data.draw(st.sampled_from(spellings(Fraction(other)))), gold)


@given(st.text(max_size=60), st.sampled_from(["7", "1/2", "A", "3:30", "Monday"]))
def test_any_text_is_compared_without_an_error(text, gold):
    assert equal_answers(text, gold) in (True, False)
    assert grade_answer(text, gold) in (0.0, 1.0)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=5), st.randoms())
def test_a_list_may_be_in_any_order_and_a_tuple_may_not(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    written, other = (", ".join(map(str, some)) for some in (numbers, shuffled))
    assert equal_answers(other, written)
    assert equal_answers(rf"\{{{other}\}}", rf"\{{{written}\}}")
    assert equal_answers(f"({other})", f"({written})") == (numbers == shuffled)
    assert not equal_answers(f"{other}, 51", written)


@pytest.mark.parametrize(
    ("gold", "needed"),
    [("7", False), ("1/2", False), ("A", False), ("Monday", False), ("3:30", False), ("x+1", True), ("(1,2)", True)],
)
def test_only_expressions_and_lists_need_math_verify(gold, needed):
    assert needs_math(gold) == needed


def test_numeric_golds_never_import_sympy():
    program = (
        "import sys; from rl_llm.tasks.answers import grade_answer\n"
        "assert [grade_answer(r, '7') for r in ('7.0', '\\\\boxed{\\\\sqrt{49}}', 'x+1', '(1, 7)')] == [1, 0, 0, 0]\n"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_missing_math_verify_is_named_with_the_extra(monkeypatch):
    from rl_llm.tasks.answers import expressions

    monkeypatch.setitem(sys.modules, "math_verify", None)
    expressions.require_math_verify.cache_clear()
    with pytest.raises(ImportError, match=r"rl_llm\[math\]"):
        equal_answers("x + 1", "1 + x")
    assert equal_answers("7.0", "7")
    expressions.require_math_verify.cache_clear()
