"""Texts are read from CSV strictly, and no message shows one."""

from pathlib import Path

import pytest

from federation.recipes.texts import MAX_CHARACTERS, read_texts
from storage.errors import Rejected, Unchecked

LABELS = ("good", "bad")


def read(folder: Path, content: str, labels: tuple[str, ...] | None = LABELS) -> list[tuple[str, int]]:
    path = folder / "train.csv"
    path.write_bytes(content.encode())
    found = read_texts(path, labels)
    return list(zip(found.texts, found.labels.tolist(), strict=True))


def test_texts_may_hold_commas_quotes_and_line_breaks_and_columns_any_order(tmp_path: Path) -> None:
    content = 'label,text\nbad,"one, ""two""\nthree"\ngood,ü\n'
    assert read(tmp_path, content) == [('one, "two"\nthree', 1), ("ü", 0)]
    assert read(tmp_path, "text\nsecret\n", None) == [("secret", 0)]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("text,label\nsecret,good\nsecret,fine\n", "line 3: column label should be one of the 2 labels"),
        ("text,label\nsecret,\n", "line 2: column label is empty"),
        ("text,label\n  ,good\n", "line 2: column text is empty"),
        ("text,label,more\nsecret,good,1\n", "line 1: expected the columns text and label, and no other"),
        ("text\nsecret\n", "line 1: expected the columns text and label"),
        ("text,label\nsecret\n", "line 2: expected 2 cells, found 1"),
        ("text,label\n", "line 1: expected at least one row"),
        ("", "line 1: expected the columns"),
        (
            f"text,label\n{'x' * (MAX_CHARACTERS + 1)},good\n",
            f"line 2: a text should have at most {MAX_CHARACTERS}",
        ),
        (f"text,label\n{'x' * 140_000},good\n", f"over {MAX_CHARACTERS} characters"),
        ('text,label\n"secret" x,good\n', "line 2: the line is not well-formed CSV"),
    ],
)
def test_a_broken_file_is_refused_by_line_and_rule_without_its_text(
    tmp_path: Path, content: str, rule: str
) -> None:
    with pytest.raises(Rejected, match=rule) as caught:
        read(tmp_path, content)
    assert caught.value.code == "E_DATA" and "secret" not in str(caught.value)
    assert "fine" not in str(caught.value)


def test_a_missing_file_and_one_that_is_not_utf_8_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match=r"train\.csv: cannot be read"):
        read_texts(tmp_path / "train.csv", LABELS)
    (tmp_path / "train.csv").write_bytes(b"text,label\n\xff,good\n")
    with pytest.raises(Rejected, match="not UTF-8"):
        read_texts(tmp_path / "train.csv", LABELS)
