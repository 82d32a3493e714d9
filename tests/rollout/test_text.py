"""Between text and device: texts survive the round trip, padded on the right, or are refused if too long."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.problem import Problem
from rl_llm.rollout.text import decode_responses, encode_prompts, encode_responses
from rl_llm.tasks.tokenizer import CharacterTokenizer

TOKENIZER = CharacterTokenizer(("a", "b", "c", "<think>"))
WIDTH = 6
texts = st.lists(st.text("abc", min_size=1, max_size=WIDTH - 1), min_size=1, max_size=5)


def problems(*prompts: str) -> list[Problem]:
    return [Problem(id=7 + index, prompt=prompt, answer="") for index, prompt in enumerate(prompts)]


@given(texts)
def test_responses_survive_the_round_trip(responses: list[str]):
    tokens, mask = encode_responses(TOKENIZER, responses, WIDTH, "limit")
    rollout: Any = SimpleNamespace(tokens=tokens, mask=mask)
    assert decode_responses(TOKENIZER, rollout) == responses


@given(texts)
def test_a_response_ends_with_its_end_token_and_masked_padding(responses: list[str]):
    tokens, mask = encode_responses(TOKENIZER, responses, WIDTH, "limit")
    for text, row, counted in zip(responses, tokens, mask, strict=True):
        assert counted.tolist() == [1.0] * (len(text) + 1) + [0.0] * (WIDTH - len(text) - 1)
        assert row[len(text)] == TOKENIZER.end_id
        assert not row[len(text) + 1 :].any()


def test_prompts_are_padded_on_the_right_and_followed_by_the_prefix():
    prompts = encode_prompts(TOKENIZER, problems("ab", "c"), WIDTH, "<think>")
    np.testing.assert_array_equal(prompts.tokens, [[2, 3, 5, 0, 0, 0], [4, 5, 0, 0, 0, 0]])
    np.testing.assert_array_equal(prompts.lengths, [3, 2])
    np.testing.assert_array_equal(prompts.ids, [7, 8])


def test_a_prompt_may_fill_its_width():
    assert encode_prompts(TOKENIZER, problems("a" * WIDTH), WIDTH).lengths.tolist() == [WIDTH]


@pytest.mark.parametrize(("prompt", "length"), [("a" * (WIDTH + 1), WIDTH + 1), ("", 0)])
def test_a_prompt_that_does_not_fit_is_refused_by_name(prompt: str, length: int):
    with pytest.raises(ValueError, match=rf"prompt '{prompt}' has {length} tokens; .*max_prompt_tokens={WIDTH}"):
        encode_prompts(TOKENIZER, problems("a", prompt), WIDTH)


def test_a_demonstration_that_does_not_fit_with_its_end_is_refused_by_name():
    with pytest.raises(ValueError, match=r"response 'cccccc' has 7 tokens with its end; limit=6"):
        encode_responses(TOKENIZER, ["a", "c" * WIDTH], WIDTH, "limit")


def test_a_truncated_response_is_decoded_to_its_last_token():
    rollout: Any = SimpleNamespace(tokens=np.array([[2, 3, 4]]), mask=np.ones((1, 3), np.float32))
    assert decode_responses(TOKENIZER, rollout) == ["abc"]
