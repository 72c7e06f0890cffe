"""References to versions, the place beside a target, and what a pull tells while it moves."""

import json
from pathlib import Path

import pytest

from federation.pulling import beside, saved_size, split_reference, steps, use_of
from storage.errors import FedhubError, Unchecked


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.example/m", ("a.example/m", None, None)),
        ("a.example/m@3", ("a.example/m", 3, None)),
        ("a.example/m:best", ("a.example/m", None, "best")),
        ("a.example/m/part:v1.0", ("a.example/m/part", None, "v1.0")),
    ],
)
def test_a_reference_names_a_version_or_a_tag(text: str, parts: tuple[str, int | None, str | None]) -> None:
    assert split_reference(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "m@1",
        "a.example/m@",
        "a.example/m:",
        "a.example/m@0",
        "a.example/m@-1",
        "a.example/m@x",
        "a.example/m@٣",
    ],
)
def test_what_is_no_reference_is_wrong_usage(text: str) -> None:
    with pytest.raises(Unchecked) as caught:
        split_reference(text)
    assert caught.value.code == "E_USAGE"


def test_the_place_beside_a_target_goes_away_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyError), beside(tmp_path / "sub" / "model") as place:
        (place / "half").write_text("x")
        assert place.parent == tmp_path / "sub"
        raise KeyError
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unchecked) as caught, beside(tmp_path / "file" / "model"):
        pass
    assert caught.value.code == "E_WRITE"


def test_the_saved_size_is_that_of_the_state_and_0_before_the_first(tmp_path: Path) -> None:
    assert saved_size(tmp_path / "none.json") == 0
    (tmp_path / "state.json").write_text(json.dumps({"size": 7, "root": "a" * 64}))
    assert saved_size(tmp_path / "state.json") == 7
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FedhubError):
        saved_size(tmp_path / "bad.json")


def test_progress_is_told_in_steps() -> None:
    moved: list[int] = []
    progress = steps(moved.append)
    assert progress is not None
    for done in (10, 25, 25, 100):
        progress(done, 100)
    assert (moved, sum(moved)) == ([10, 15, 0, 75], 100)
    assert steps(None) is None


def test_a_use_is_what_the_verifier_takes() -> None:
    from storage.grants import Use

    use = use_of("a" * 64, "firm.example", "b" * 64, "owner.example/m", ["DUO:0000046", "DUO:0000042"])
    assert Use.parse(use).grantee == "firm.example"
    assert use["duo"] == ["DUO:0000042", "DUO:0000046"]
