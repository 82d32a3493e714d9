"""Chat templates of strangers: no template hangs a run, fills its memory, or renders other bits the next time."""

import os
import signal
import threading
from typing import Any

import pytest

from rl_llm.tasks import chat_template
from rl_llm.tasks.chat_template import TemplateError, render_chat

SAID = [{"role": "user", "content": "What is 1+1?"}]
REFUSED = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "takes more than",
    "{{ 9 ** (9 ** 9) }}": "takes more than",
    "{{ 'a' * 10 ** 10 }}": "MemoryError",
    "{{ 'a'.ljust(10 ** 11) }}": "MemoryError",
    "{{ '%99999999999d' % 1 }}": r"\(\w+Error\)",
    "{{ 'a' | center(10 ** 11) }}": "MemoryError",
    "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}": "MemoryError",
    "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}": "MemoryError",
    "{{ 'a' * (10 ** 7 + 1) }}": "10,000,001 characters; expected at most 10,000,000",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{{ [1, 2] | random }}": "No filter named 'random'",
    "{{ lipsum() }}": "'lipsum' is undefined",
    "{{ cycler('a').next }}": "a place in memory",
    "{{ '' ~ namespace }}{{ messages[0].items }}": "a place in memory",
    "{{ messages[0]['content'][99] + 1 }}": "UndefinedError|no element 99",
    "{{ 'x' | int(base=99) }}{{ 1 // 0 }}": "ZeroDivisionError",
    "{{ {} | dictsort(by='neither') }}": "You can only sort",
    "{{ 'é'.encode('ascii') }}": "UnicodeEncodeError",
    "{{ [1, 'a'] | sort }}": "TypeError",
}


def render(template: str, said: Any = SAID, **options: Any) -> str:
    return render_chat(template, said, {"bos_token": "<s>"}, **options)


@pytest.mark.parametrize("template", REFUSED)
def test_a_hostile_template_is_refused_by_name(template: str, monkeypatch: pytest.MonkeyPatch):
    if "takes" in REFUSED[template]:
        monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    with pytest.raises(TemplateError, match=f"the chat template cannot be rendered: .*({REFUSED[template]})"):
        render(template)
    assert render("{{ bos_token }}{{ messages[0].content }}") == "<s>What is 1+1?"


def test_an_address_in_a_message_is_no_place_of_ours():
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "<f at 0x7f3a>"}]) == "<f at 0x7f3a>"


def test_any_text_comes_back():
    text = '\ud800 é\n\u2028\x00 \\ " {{ x }} 答'
    assert render("{{ messages[0].content }}", [{"role": "user", "content": text}]) == text


def test_the_day_is_the_given_one():
    assert render("{{ strftime_now('%d %b %Y') }}", date="2024-07-26") == "26 Jul 2024"


def test_a_process_that_ended_is_started_again():
    assert render("a") == "a"
    process = chat_template._RENDERER._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert render("b") == "b"


def test_threads_get_their_own_texts():
    texts: list[str] = []
    workers = [threading.Thread(target=lambda i=i: texts.append(render(f"{{{{ {i} }}}}"))) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(map(int, texts)) == list(range(8))
