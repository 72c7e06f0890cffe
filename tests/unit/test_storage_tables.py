"""What leaves the site about tables: names and types of columns, rounded counts, and nothing else."""

from pathlib import Path

import pytest

from storage.errors import Rejected, Unchecked
from storage.tables import SAMPLED_ROWS, read_tables, told_rows


def tables(folder: Path, **files: str) -> list[tuple[str, list[tuple[str, str]], int]]:
    names = []
    for name, content in files.items():
        path = folder / name.replace("_dot_", ".")
        path.write_text(content, "utf-8")
        names.append(path.name)
    return [
        (table.suffix, [(column.name, column.data_type) for column in table.columns], table.rows)
        for table in read_tables(folder, names)
    ]


def types(folder: Path, *cells: str) -> str:
    [(_, columns, _)] = tables(folder, t_dot_csv="x,y\n" + "".join(f"{cell},1\n" for cell in cells))
    return columns[0][1]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "+3", "007"], "sc:Integer"),
        (["1", "2.5"], "sc:Float"),
        (["1e-3", ".5", "5."], "sc:Float"),
        (["true", "FALSE"], "sc:Boolean"),
        (["2026-11-25", "1970-01-01"], "sc:Date"),
        (["a", "1"], "sc:Text"),
        (["1", "true"], "sc:Text"),
        (["2026-11-25", "1"], "sc:Text"),
        (["", "NA", "nan", "?", "7"], "sc:Integer"),
        (["", "null"], "sc:Text"),
        (["٣", "1"], "sc:Text"),
        (["9" * 30], "sc:Float"),
    ],
)
def test_type_of_a_column_is_the_one_of_all_its_values(
    tmp_path: Path, cells: list[str], expected: str
) -> None:
    assert types(tmp_path, *cells) == expected


def test_files_with_the_same_header_are_one_table(tmp_path: Path) -> None:
    found = tables(
        tmp_path,
        train_dot_csv="label,p\n1,0.5\n2,1\n",
        heldout_dot_csv="label,p\n3,x\n",
        other_dot_csv="p,label\n1,1\n",
        tabs_dot_tsv="label\tp\n1\t2\n",
        readme_dot_txt="label,p\n1,2\n",
    )
    assert found == [
        (".csv", [("label", "sc:Integer"), ("p", "sc:Text")], 3),
        (".csv", [("p", "sc:Integer"), ("label", "sc:Integer")], 1),
        (".tsv", [("label", "sc:Integer"), ("p", "sc:Integer")], 1),
    ]


def test_quotes_line_breaks_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    assert tables(tmp_path, t_dot_csv='\ufeffname,"the text"\r\na,"two\nlines, one cell"\r\n\r\n') == [
        (".csv", [("name", "sc:Text"), ("the text", "sc:Text")], 1)
    ]


def test_rows_beyond_the_sample_are_counted(tmp_path: Path) -> None:
    rows = SAMPLED_ROWS + 5
    [(_, columns, count)] = tables(tmp_path, t_dot_csv="x\n" + "1\n" * SAMPLED_ROWS + "a\n" * 5)
    assert (columns, count) == ([("x", "sc:Integer")], rows)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n1,2\n",
        "5.1,3.5,setosa\n4.9,3.0,setosa\n",
        "Ann Smith,1977-02-01\nBob,1980-01-01\n",
        "a,a\n1,2\n",
        "a,\n1,2\n",
        "a,b\x07\n1,2\n",
        "a," + "b" * 200 + "\n1,2\n",
    ],
    ids=ascii,
)
def test_table_without_a_header_is_refused_and_its_first_row_never_shown(
    tmp_path: Path, content: str
) -> None:
    with pytest.raises(Rejected, match=r"E_DATA: table t\.csv") as error:
        tables(tmp_path, t_dot_csv=content)
    assert "Smith" not in str(error.value) and "5.1" not in str(error.value)


def test_row_of_another_length_is_named_by_its_number_only(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"E_DATA.*2 columns in every row; row 3 has 3") as error:
        tables(tmp_path, t_dot_csv="a,b\n1,2\nsecret,2,3\n")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("content", [b"a,b\n1,\xff\n", b'a,b\n1,"open\n', b'a,b\n1,"x"y\n'])
def test_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(Rejected, match="E_DATA"):
        read_tables(tmp_path, ["t.csv"])


def test_file_that_cannot_be_read_is_unchecked(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match="E_INPUT"):
        read_tables(tmp_path, ["no.csv"])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (0, "fewer than 10 rows"),
        (9, "fewer than 10 rows"),
        (10, "about 10 rows"),
        (14, "about 10 rows"),
        (97, "about 100 rows"),
        (599, "about 600 rows"),
        (1347, "about 1300 rows"),
        (1_234_567, "about 1200000 rows"),
    ],
)
def test_counts_are_rounded_and_small_ones_are_not_told(rows: int, told: str) -> None:
    assert told_rows(rows) == told
