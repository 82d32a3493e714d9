"""Expressions with kinks are compared beyond them; lists, chains and choices in their usual spellings."""

import pytest

from rl_llm.tasks.answers import equal_answers
from tests.tasks.test_answers_equality import pairs

EQUAL = r"""
    |x-5| ~ |5-x|
    |x-7| ~ \sqrt{(x-7)^2}
    \max(x,5) ~ \frac{x+5+|x-5|}{2}
    \sqrt{xy} ~ \sqrt{x}\sqrt{y}
    \sqrt{x^2+1}-x ~ \frac{1}{\sqrt{x^2+1}+x}
    \ln|x-1|-\ln|x+1| ~ \ln\left|\frac{x-1}{x+1}\right|
    x' ~ x'
    'Monday' ~ Monday
    5 \ge x \ge -2 ~ -2 \le x \le 5
    1>x>0 ~ 0<x<1
    c>b>a ~ a<b<c
    \{x \mid 2 > x > 1\} ~ (1,2)
    x \mid x > 2 ~ x>2
    x\in\{1,2\} ~ x=1,2
    (\pm1,0) ~ (1,0),(-1,0)
    (1,1,1) ~ (x,y,z)=(1,1,1)
    x=y=z=1 ~ (1,1,1)
    \begin{bmatrix}1\\2\end{bmatrix} ~ \left[\begin{array}{c}1\\2\end{array}\right]
    \mathbb Z ~ \mathbb{Z}
    4210_5 ~ 4210_{\text{five}}
    \lg 2 ~ \log_{10} 2
    \sin 15^\circ ~ \frac{\sqrt{6}-\sqrt{2}}{4}
    \sin^2(15^{\circ}) ~ \frac{2-\sqrt3}{4}
    A. see below ~ A
"""
UNEQUAL = r"""
    5-x ~ |x-5|
    x-5 ~ |x-5|
    1000-x ~ |x-1000|
    10^6-x ~ |x-10^6|
    5-\frac{x}{10} ~ |\frac{x}{10}-5|
    4-x ~ \sqrt{x^2-8x+16}
    10-x^2 ~ |x^2-10|
    a-b+50 ~ |a-b+50|
    5 ~ \max(x,5)
    x ~ \min(x,10)
    y=5-x ~ y=|x-5|
    \ln(10-x) ~ \ln|x-10|
    \ln x ~ \ln|x|
    x ~ \lfloor\frac{x+4}{10}\rfloor+x
    x' ~ x
    f' ~ f
    x" ~ x
    5 \ge x \ge -2 ~ -2 \le x < 5
    5 > x < 7 ~ 5 < x < 7
    5 > x > 1 ~ 5 < x < 1
    a | b ~ b
    x\in\{1,2\} ~ y=1,2
    x=1,3 ~ x\in\{1,2\}
    (\pm1,\pm2) ~ (1,2),(-1,-2)
    x=y=z=1 ~ (1,1,2)
    4210_{\text{five}} ~ 4210_{\text{six}}
    \lg 2 ~ \ln 2
    \sin 15 ~ \frac{\sqrt{6}-\sqrt{2}}{4}
    A. (b) ~ A
    A) or b) ~ A
    A: b: c ~ A
    A. also c ~ A
    A. no, b ~ A
"""


@pytest.mark.parametrize(("answer", "gold"), pairs(EQUAL))
def test_expressions_lists_and_choices_are_equal_in_other_spellings(answer, gold):
    assert equal_answers(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), pairs(UNEQUAL))
def test_expressions_lists_and_choices_that_differ_are_not_equal(answer, gold):
    assert not equal_answers(answer, gold)
