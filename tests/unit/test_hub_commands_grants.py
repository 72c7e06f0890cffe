"""What the list of grants says of each."""

from typing import Any

import pytest

from hub.commands.grants import _state

NOW = "2026-11-30T12:00:00Z"
BEFORE, AFTER = "2026-11-30T11:59:59Z", "2026-11-30T12:00:01Z"


def grant(
    name: str,
    *,
    begins: str = BEFORE,
    expires: str = AFTER,
    parent: str | None = None,
    issuer: str = "owner.example",
    **conditions: str,
) -> dict[str, Any]:
    times = {"notBefore": begins, "expires": expires}
    return {"id": name, "issuer": issuer, "parent": parent, "conditions": conditions, **times}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", "valid"),
        ("begins now", "valid"),
        ("early", "not yet"),
        ("late", "ended"),
        ("ends now", "ended"),
        ("withdrawn", "revoked"),
        ("under good", "valid"),
        ("under withdrawn", "revoked"),
        ("under under late", "ended"),
        ("under one that is not shown", "valid"),
        ("of one without a status list", "stale"),
        ("under stale", "stale"),
        ("consent of one without a status list", "valid"),
    ],
)
def test_a_grant_is_as_good_as_itself_and_what_it_delegates(name: str, expected: str) -> None:
    every = [
        grant("good"),
        grant("begins now", begins=NOW),
        grant("early", begins=AFTER),
        grant("late", expires=BEFORE),
        grant("ends now", expires=NOW),
        grant("withdrawn"),
        grant("under good", parent="good"),
        grant("under withdrawn", parent="withdrawn"),
        grant("under late", parent="late"),
        grant("under under late", parent="under late"),
        grant("under one that is not shown", parent="hidden"),
        grant("of one without a status list", issuer="away.example"),
        grant("under stale", parent="of one without a status list"),
        grant("consent of one without a status list", issuer="away.example", plan="a plan"),
    ]
    grants = {each["id"]: each for each in every}
    revoked = {
        ("owner.example", "withdrawn"),
        ("firm.example", "good"),
    }  # others revoke nothing of the owner's
    assert _state(grants[name], grants, revoked, NOW, {"away.example"}) == expected
