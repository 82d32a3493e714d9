"""A unit is no difference if it is missing; a text that goes on with the answer is no unit."""

import pytest

from rl_llm.tasks.answers import equal_answers
from tests.tasks.test_answers_equality import pairs

SAME = r"""
    5 m/s ~ 5
    5 ~ 5 m/s
    5mph ~ 5
    5 mi/h ~ 5 mph
    5 km/h ~ 5 km/hr
    5 kHz ~ 5
    5 kWh ~ 5
    5 \Omega ~ 5
    5 \ \mu m ~ 5 μm
    5 hrs ~ 5 hours
    5 {\rm cm} ~ 5
    5\textbf{ cm} ~ 5 cm
    5\text{ m/s} ~ 5 meters per second
    5 \mathrm{~m} / \mathrm{s} ~ 5 m/s
    5\text{ m}\cdot\text{s}^{-1} ~ 5\text{ m/s}
    5\,\mathrm{m\,s^{-1}} ~ 5\text{ m/s}
    5 \mathrm{~N}-\mathrm{m} ~ 5\text{ N m}
    3.5 \mathrm{erg/s} ~ 3.5
    25 sq. ft. ~ 25 square feet
    25 cm squared ~ 25\text{ cm}^2
    25\text{ cm2} ~ 25\text{ cm}^{2}
    10\text{ cc} ~ 10\text{ cm}^3
    5^\circ\text{C} ~ 5
    5^\circ ~ 5^\circ C
    5 degrees Celsius ~ 5^{\circ}\mathrm{C}
    5 dollars per hour ~ $5
    60 minutes per hour ~ 60 minutes
    5\text{ L} ~ 5\text{ liters}
    3\,\mathrm{A} ~ 3
    5元 ~ 5
    5个苹果 ~ 5
    45 (DVDs) ~ 45
    16 ~ 16 ways (order matters)
    40\pi cm^2 ~ 40\pi
    $40\pi$ cm ~ 40\pi
    2\sqrt{3}\text{ m/s} ~ 2\sqrt3
    \frac{\pi}{2} \mathrm{rad} ~ \frac{\pi}{2}
    3+4\mathrm{i} ~ 3+4i
    2\,\text{e} ~ 2e
    \frac{\mathrm{e}}{2} ~ e/2
    \mathrm{e}^{\mathrm{i}\pi} ~ e^{i\pi}
    \frac{\mathrm{d}y}{\mathrm{d}x} ~ \frac{dy}{dx}
"""
DIFFERENT = r"""
    5 ~ 5\mathrm{i}
    2 ~ 2\mathrm{e}
    2\mathrm{e}^3 ~ 2\mathrm{e}^{2}
    x+3 ~ x+3\mathrm{i}
    1-\sqrt3 ~ 1-\sqrt3\mathrm{i}
    (2,1) ~ (2\mathrm{e},1)
    2\mathbf{i} ~ 2\mathbf{j}
    5 ~ 5\mathbf{a}
    2\mathit{i} ~ 2
    2\underline{3} ~ 2
    2\mathrm{A} ~ 2
    2\mathrm{ln} ~ 2
    2\mathrm{Na} ~ 2\mathrm{K}
    2\text{NaCl} ~ 2\text{KCl}
    5\text{, 6} ~ 5
    5\text{/6} ~ 5
    5\text{6} ~ 5
    5\text{ (6)} ~ 5
    5\text{k} ~ 5
    5\text{ bn} ~ 5
    5\text{x cm} ~ 5
    5\text{ A and B} ~ 5
    5 (x) ~ 5
    5 nm ~ 5
    5 nC ~ 5
    5 e ~ 5
    \sqrt2\text{ or 5} ~ \sqrt2
    \sqrt2\text{ squared} ~ \sqrt2
    \sqrt2\text{ million} ~ \sqrt2
    25\pi\text{ percent} ~ 25\pi
    n+1\text{ if n is odd} ~ n+1
    n+1 ~ n+1\text{ even}
    5\text{ m/s} ~ 5\text{ km/h}
    5\text{ m/s} ~ 5\text{ m/s}^2
    5\text{ m/s} ~ 5\text{ m}
    5\text{ ms} ~ 5\text{ s}
    5\text{ Pa} ~ 5\text{ kPa}
    5\text{ mW} ~ 5\text{ MW}
    5\text{ N} ~ 5\text{ J}
    3\mathrm{~kJ} ~ 3\mathrm{~J}
    5 GB ~ 5 MB
    5^\circ F ~ 5^\circ C
    5^\circ ~ 5\text{ radians}
    5 sq cm ~ 5 cm
    5 cubic cm ~ 5 square cm
    5 miles per hour ~ 5 miles
    5 yen ~ $5
    5 pesos ~ 5 dollars
    5厘米 ~ 5米
    2\pi\text{ rad} ~ 2\pi\text{ degrees}
"""


@pytest.mark.parametrize(("answer", "gold"), pairs(SAME))
def test_a_unit_is_read_in_any_spelling_and_may_be_missing(answer, gold):
    assert equal_answers(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), pairs(DIFFERENT))
def test_other_units_and_texts_that_are_no_units_make_another_answer(answer, gold):
    assert not equal_answers(answer, gold)
