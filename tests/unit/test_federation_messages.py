"""What coordinator and agent say to each other is read strictly, and bounded before it is parsed."""

import json
from typing import Any

import pytest

from federation.messages import MESSAGE_LIMIT_BYTES, InputReference, OrderMessage, OrderReply, read_message
from storage.errors import Rejected

ORDER = OrderMessage(
    plan="a" * 64,
    round=3,
    action="train",
    input=InputReference(sha256="b" * 64, size=10),
    deadline="2026-11-25T00:00:00Z",
    order="{}",
)


def changed(**members: Any) -> str:
    return json.dumps({**ORDER.model_dump(), **members})


def test_a_message_survives_its_own_text() -> None:
    assert read_message(ORDER.model_dump_json(), OrderMessage) == ORDER


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"plan": "A" * 64}, "plan"),
        ({"round": 0}, "round"),
        ({"round": True}, "round"),
        ({"action": "delete"}, "action"),
        ({"input": {"sha256": "b" * 64, "size": 0}}, "input.size"),
        ({"input": {"sha256": "b" * 64, "size": 10, "url": "http://192.168.0.1/"}}, "input.url"),
        ({"code": "x"}, "code"),
    ],
)
def test_a_wrong_or_further_field_is_refused_by_name(members: dict[str, Any], field: str) -> None:
    with pytest.raises(Rejected, match=rf"E_MESSAGE.*{field}"):
        read_message(changed(**members), OrderMessage)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"plan":'])
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="E_MESSAGE"):
        read_message(text, OrderMessage)


def test_a_message_over_the_limit_is_not_parsed() -> None:
    with pytest.raises(Rejected, match="E_LIMIT"):
        read_message(" " * (MESSAGE_LIMIT_BYTES + 1), OrderMessage)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_metric_that_is_no_finite_number_is_refused(number: str) -> None:
    text = f'{{"dataset": "{"a" * 64}", "metrics": {{"loss": {number}}}}}'
    with pytest.raises(Rejected, match=r"E_MESSAGE.*metrics"):
        read_message(text, OrderReply)


@pytest.mark.parametrize("examples", [-1, 1.5, "many"])
def test_a_count_that_is_none_is_refused(examples: object) -> None:
    with pytest.raises(Rejected, match=r"E_MESSAGE.*examples"):
        read_message(json.dumps({"dataset": None, "examples": examples}), OrderReply)
