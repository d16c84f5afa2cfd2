"""Promises of prompt internalisation: one rule, found once, that does the same wherever it is applied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.chat import plain
from potstill.prompt import Drop, PromptRule, Strip, find_rule, joined, parts_of
from potstill.records import Message
from potstill.serving.call import Call
from potstill.serving.http import Http
from potstill.serving.prompt_step import strip_instructions
from potstill.serving.steps import Plan

STANDING = "You sort a bank's mail. Answer with one of: card, cash, other."
NEWER = "You sort a bank's mail. Answer with exactly one of: card, cash, loan, other."
FRAME = 'Classify the message of a customer.\nMessage: "{}"\nAnswer with the intent alone.'
people = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


def turn(text: Any, role: str = "user") -> Message:
    return {"role": role, "content": text}


def log(system: str = STANDING, frame: str = "{}", count: int = 20, role: str = "system") -> list[list[Message]]:
    """A log of prompts whose users all say something else."""
    said = [f"{chr(97 + at % 26)} {at} is what I, customer number {at}, want to ask you" for at in range(count)]
    return [[turn(system, role), turn(frame.format(each))] for each in said]


def test_standing_instructions_are_left_out_and_what_people_say_stays() -> None:
    rule = find_rule(map(parts_of, log()))
    assert rule == PromptRule((Drop("system", STANDING),))
    assert rule.apply([turn(STANDING, "system"), turn("where is my card?")]) == [turn("where is my card?")]


def test_several_wordings_over_time_are_each_left_out() -> None:
    rule = find_rule(map(parts_of, [*log(), *log(NEWER, count=30)]))
    assert {each.text for each in rule.drops} == {STANDING, NEWER}
    for text in (STANDING, NEWER):
        assert rule.apply([turn(text, "system"), turn("hello")]) == [turn("hello")]
        assert rule.recognises([turn(text, "system"), turn("hello")])


def test_instructions_said_to_one_person_are_kept() -> None:
    personal = turn("This customer is blind; describe every picture.", "system")
    rule = find_rule(map(parts_of, [*log(), [personal, turn("hello")]]))
    assert rule.apply([personal, turn("hello")]) == [personal, turn("hello")]
    assert not rule.recognises([personal, turn("hello")])


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_of_either_role_are_left_out_in_that_role(role: str) -> None:
    rule = find_rule(map(parts_of, log(role=role)))
    assert rule.apply([turn(STANDING, role), turn("hello")]) == [turn("hello")]
    other = "developer" if role == "system" else "system"
    assert rule.apply([turn(STANDING, other), turn("hello")]) == [turn(STANDING, other), turn("hello")]
    assert not rule.recognises([turn(STANDING, other), turn("hello")])


def test_text_in_several_parts_counts_as_the_same_text() -> None:
    lines = STANDING.replace(". ", ".\n")
    parts = [{"type": "text", "text": each} for each in lines.split("\n")]
    rule = find_rule(map(parts_of, [[turn(parts, "system"), *prompt[1:]] for prompt in log()]))
    assert rule.drops == (Drop("system", lines),)
    assert rule.apply([turn(parts, "system"), turn("hello")]) == [turn("hello")]
    assert rule.apply([turn(lines, "system"), turn("hello")]) == [turn("hello")]
    framed = find_rule(map(parts_of, log(frame=FRAME)))
    in_parts = [{"type": "text", "text": each} for each in FRAME.format("my card").split("\n")]
    assert framed.apply([turn(in_parts)]) == framed.apply([turn(FRAME.format("my card"))]) == [turn("my card")]


def test_text_between_a_frame_is_what_stays() -> None:
    rule = find_rule(map(parts_of, log(frame=FRAME)))
    (strip,) = rule.strips
    assert (strip.prefix, strip.suffix) == tuple(FRAME.split("{}"))
    assert rule.apply([turn(FRAME.format('it said "no"\ntwice'))]) == [turn('it said "no"\ntwice')]


def test_several_frames_are_each_removed() -> None:
    other = "A guest of a restaurant writes this.\n<<<{}>>>\nGive the booking as JSON."
    rule = find_rule(map(parts_of, [*log(frame=FRAME), *log(frame=other)]))
    assert rule.apply([turn(FRAME.format("a"))]) == rule.apply([turn(other.format("a"))]) == [turn("a")]


@pytest.mark.parametrize(
    "beginning",
    [
        "I would like to book a table for the evening of the {}",
        "Hello, could you please help me with the following: {}",
        'My friend told me to write to you and say "{}"',
    ],
)
def test_common_beginnings_of_people_are_not_stripped(beginning: str) -> None:
    rule = find_rule(map(parts_of, log(frame=beginning, count=50)))
    assert rule.strips == ()
    assert rule.apply([turn(beginning.format("fifth"))]) == [turn(beginning.format("fifth"))]


def test_frame_of_few_is_no_frame() -> None:
    assert find_rule(map(parts_of, log(frame=FRAME, count=4))).strips == ()
    assert find_rule(map(parts_of, log(count=4))) == PromptRule()
    assert find_rule([]) == PromptRule()


def test_later_turns_of_people_do_not_make_a_rule() -> None:
    prompts = [[*each, turn("no", "assistant"), turn("The same question once again?")] for each in log()]
    assert find_rule(map(parts_of, prompts)) == find_rule(map(parts_of, log()))


texts = people | st.sampled_from([STANDING, NEWER, FRAME.format("x"), FRAME.format(""), "", FRAME[:40]])
contents = (
    st.none() | texts | st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), min_size=1, max_size=3)
)
prompts = st.lists(
    st.builds(turn, contents, st.sampled_from(["system", "developer", "user", "assistant", "tool"])),
    min_size=1,
    max_size=5,
)
RULES = [
    PromptRule(),
    find_rule(map(parts_of, log())),
    find_rule(map(parts_of, [*log(frame=FRAME), *log(NEWER, role="developer")])),
    PromptRule(tuple(Drop(role, STANDING) for role in ("system", "user")), (Strip("user", "", ""),)),
]


@given(st.sampled_from(RULES), prompts)
def test_a_prompt_is_never_emptied_and_roles_keep_their_order(rule: PromptRule, prompt: list[Message]) -> None:
    kept = rule.apply(prompt)
    assert kept
    roles, rest = [each["role"] for each in kept], iter(each["role"] for each in prompt)
    assert all(role in rest for role in roles)


@given(prompts)
def test_empty_rule_keeps_every_message_as_it_is(prompt: list[Message]) -> None:
    assert PromptRule().apply(prompt) == prompt


@given(st.sampled_from(RULES), prompts)
def test_rule_that_travelled_as_json_does_the_same(rule: PromptRule, prompt: list[Message]) -> None:
    again = PromptRule.from_json(json.loads(json.dumps(rule.to_json())))
    assert again == rule
    assert again.apply(prompt) == rule.apply(prompt)
    assert again.recognises(prompt) == rule.recognises(prompt)


@given(st.sampled_from(RULES), prompts)
def test_serving_shows_the_model_what_distilling_showed_it(rule: PromptRule, prompt: list[Message]) -> None:
    """What training renders (the distilled prompt as templates read it) is what the server sends to the engine."""
    call = Call(Http({}, None, None), Plan.of([]), body={"messages": prompt})
    strip_instructions(call, rule)
    assert plain(call.upstream["messages"]) == plain(rule.apply(prompt))
    assert call.unknown_instructions == (bool(rule.drops) and not rule.recognises(prompt))


def test_content_of_one_text_is_itself() -> None:
    assert joined("a") == "a"
    assert joined(None) is None
    assert joined([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "a\nb"


def test_rule_does_not_depend_on_the_process_that_finds_it() -> None:
    """Frames are found over sets of texts; another seed of string hashes must not order them otherwise."""
    code = (
        "import json, sys; from potstill.prompt import find_rule, parts_of; "
        "print(json.dumps(find_rule(map(parts_of, json.load(sys.stdin))).to_json()))"
    )
    frames = [f"{kind} for you to sort, please.\n<<<{{}}>>>" for kind in ("1 mail", "2 news", "3 text", "4 call")]
    data = json.dumps([prompt for frame in frames for prompt in log(frame=frame)])
    words = [sys.executable, "-c", code]
    rules = {
        subprocess.run(
            words, input=data, env=os.environ | {"PYTHONHASHSEED": seed}, text=True, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(rules) == 1
    assert len(json.loads(rules.pop())["strips"]) == 4
