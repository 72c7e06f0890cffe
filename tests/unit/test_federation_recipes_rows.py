"""Rows are read strictly, and what is wrong with them is said by file, line and rule, never by value."""

from pathlib import Path

import numpy as np
import pytest

from federation.recipes import rows as rows_module
from federation.recipes.rows import read_rows
from storage.errors import Rejected, Unchecked

COLUMNS = ("p00", "p01")


def csv_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "train.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    rows = read_rows(csv_file(tmp_path, "p01,label,p00\n2.5,1,-1e2\n0,0,3\n"), COLUMNS, 2)
    assert rows.features.tolist() == [[-100.0, 2.5], [3.0, 0.0]] and rows.features.dtype == np.float32
    assert rows.labels.tolist() == [1, 0] and rows.labels.dtype == np.int64 and len(rows) == 2


@pytest.mark.parametrize(
    "text", ["label,p00,p01\r\n1,2,3\r\n", "\ufefflabel,p00,p01\n1,2,3", 'label,"p00",p01\n1,"2",3\n']
)
def test_line_ends_marks_and_quotes_of_spreadsheets_are_read(tmp_path: Path, text: str) -> None:
    assert read_rows(csv_file(tmp_path, text), COLUMNS, 2).features.tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("", 1, "3 columns are missing, such as label"),
        ("label,p00\n1,2\n", 1, "1 columns are missing, such as p01"),
        ("label,p00,p01,name\n1,2,3,4\n", 1, "1 columns stand here that the recipe does not name"),
        ("label,p00,p01,p01\n1,2,3,4\n", 1, "two columns have the same name"),
        ("label,p00,p01\n", 1, "at least one row"),
        ("label,p00,p01\n1,2,3\n1,2\n", 3, "expected 3 cells, found 2"),
        ("label,p00,p01\n1,2,3,4\n", 2, "expected 3 cells, found 4"),
        ("label,p00,p01\n\n1,2,3\n", 2, "expected 3 cells, found 0"),
        ("label,p00,p01\n1,2,secret\n", 2, "column p01 should be a number"),
        ("label,p00,p01\n1,,3\n", 2, "column p00 should be a number"),
        ("label,p00,p01\n1,nan,3\n", 2, "column p00 should be a number"),
        ("label,p00,p01\n1,1e39,3\n", 2, "column p00 should be a number"),
        ("label,p00,p01\n1,1_0,3\n", 2, "column p00 should be a number"),
        ("label,p00,p01\n1, 2,3\n", 2, "column p00 should be a number"),
        ("label,p00,p01\n1,٣,3\n", 2, "column p00 should be a number"),
        ("label,p00,p01\n2,2,3\n", 2, "column label should be a whole number from 0 to 1"),
        ("label,p00,p01\n-1,2,3\n", 2, "column label"),
        ("label,p00,p01\n1.0,2,3\n", 2, "column label"),
        ("label,p00,p01\n٣,2,3\n", 2, "column label"),
        ('label,p00,p01\n1,2,"3\n', 2, "not well-formed CSV"),
        ('label,p00,p01\n1,2,"3"x\n', 2, "not well-formed CSV"),
        ("label,p00,p01\n1,2," + "3" * 200_000 + "\n", 2, "not well-formed CSV"),
    ],
)
def test_a_broken_line_is_named_with_its_rule_and_without_its_values(
    tmp_path: Path, text: str, line: int, rule: str
) -> None:
    with pytest.raises(Rejected, match=rule) as caught:
        read_rows(csv_file(tmp_path, text), COLUMNS, 2)
    assert caught.value.code == "E_DATA"
    assert caught.value.message.startswith(f"train.csv line {line}: ")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="not UTF-8"):
        read_rows(csv_file(tmp_path, b"label,p00,p01\n1,2,\xff\n"), COLUMNS, 2)


def test_a_missing_file_is_unchecked(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match=r"train\.csv: cannot be read") as caught:
        read_rows(tmp_path / "train.csv", COLUMNS, 2)
    assert caught.value.code == "E_DATA_MISSING"


def test_limits_on_rows_and_bytes_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_file(tmp_path, "label,p00,p01\n" + "1,2,3\n" * 3)
    monkeypatch.setattr(rows_module, "MAX_ROWS", 2)
    with pytest.raises(Rejected, match="line 4: a file should have at most 2 rows"):
        read_rows(path, COLUMNS, 2)
    monkeypatch.setattr(rows_module, "MAX_BYTES", 10)
    with pytest.raises(Rejected, match="at most 10 bytes"):
        read_rows(path, COLUMNS, 2)
