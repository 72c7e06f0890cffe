"""Asset manifests: names, files, parts, order, salt, and the OMS statement over them."""

import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from storage import manifests
from storage.encoding import canonical, read_json, sha256_hex
from storage.errors import Rejected, Unchecked
from storage.manifests import (
    MANIFEST_TYPE,
    PART_BYTES,
    FileEntry,
    Manifest,
    build_manifest,
    check_names,
    check_oms,
    hash_file,
    new_salt,
    oms_payload,
    oms_root,
    read_entries,
    read_manifest,
)
from storage.signing import open_envelope, sign
from storage.statements import Statement, read_statement
from tests.vectors.make_vectors import KEY

NAME = "owner.example/digits"


def write(folder: Path, **files: bytes | str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def entry(name: str = "a", size: Any = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": "0" * 64, "size": size, **more}


def raw_manifest(*files: Any, **changes: Any) -> bytes:
    return canonical({"files": list(files), "name": NAME, "type": MANIFEST_TYPE, **changes})


def rejected(raw: bytes, code: str = "E_MALFORMED", needle: str = "") -> None:
    with pytest.raises(Rejected) as error:
        read_manifest(raw)
    assert error.value.code == code
    assert needle in error.value.message


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["a"],
        ["a/b.bin", "a/c", "b"],
        ["model-00001-of-00002.safetensors", "README.md"],
        ["é", "数据/表.csv", "a b"],
        ["x" * 255, "/".join(["y" * 204] * 5)],
        [".hidden", "..a", "a..b", "git", "x.git"],
        ["a/b", "b/a"],
    ],
    ids=lambda names: names[0][:20],
)
def test_plain_names_are_accepted(names: list[str]) -> None:
    check_names(names)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "a/",
        "a//b",
        ".",
        "..",
        "../x",
        "a/../b",
        "a/./b",
        "a ",
        "a.",
        "a /b",
        "a./b",
        "a\\b",
        "a<b",
        "a>b",
        "C:b",
        'a"b',
        "a|b",
        "a?b",
        "a*b",
        "a\x00b",
        "a\nb",
        "a\x1fb",
        "a\x7fb",
        "a\x85b",
        ".git",
        ".gitattributes",
        ".GIT/config",
        "a/.Gitignore",
        ".gitx",
        "e\u0301",
        "\u212b",
        "x" * 256,
        "é" * 128,
        "/".join(["y" * 200] * 6),
        "a\udc80b",
    ],
    ids=ascii,
)
def test_name_that_could_mean_another_file_is_rejected(name: str) -> None:
    with pytest.raises(Rejected) as error:
        check_names(["first", name])
    assert (error.value.code, error.value.step) == ("E_PATH", "V12")
    assert error.value.message.isascii()


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["a", "A"],
        ["ß", "ss"],
        ["straße/x", "STRASSE/y"],
        ["a/b", "A/c"],
        ["a", "a/b"],
        ["a/b", "a"],
        ["A", "a/b"],
        ["x/é", "x/É"],
        ["\u03c3", "\u03c2"],
    ],
    ids=ascii,
)
def test_names_that_some_file_systems_take_for_one_are_rejected(names: list[str]) -> None:
    with pytest.raises(Rejected, match="E_PATH"):
        check_names(names)


# --- building -------------------------------------------------------------------------------------


def test_manifest_lists_every_file_with_digest_and_size(tmp_path: Path) -> None:
    write(tmp_path, b="22", a__x="1", a__empty=b"")
    made = build_manifest(tmp_path, NAME)
    assert made.files == (
        FileEntry("a/empty", sha256_hex(b""), 0),
        FileEntry("a/x", sha256_hex(b"1"), 1),
        FileEntry("b", sha256_hex(b"22"), 2),
    )
    assert made.total_bytes == 3
    assert made.asset_id == sha256_hex(made.raw)
    assert read_manifest(made.raw) == made
    assert read_json(made.raw)["type"] == "https://fedhub.dev/manifest/v1"


def test_files_are_sorted_by_the_parts_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, **{"a-b": "1", "a__b": "2", "a_dot_b": "3", "B": "4", "é": "5"})
    assert [found.name for found in build_manifest(tmp_path, NAME).files] == ["B", "a/b", "a-b", "a.b", "é"]


def test_same_files_under_another_asset_name_are_another_asset(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    assert build_manifest(tmp_path, NAME).asset_id != build_manifest(tmp_path, "firm.example/digits").asset_id


def test_salt_makes_asset_ids_unguessable(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    first, second = (build_manifest(tmp_path, NAME, salt=new_salt()) for _ in range(2))
    assert first.files == second.files
    assert first.asset_id != second.asset_id
    assert first.salt and len(first.salt) == 64
    assert build_manifest(tmp_path, NAME).salt is None


def test_salt_of_another_form_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    with pytest.raises(Rejected, match="salt"):
        build_manifest(tmp_path, NAME, salt="salt")


def test_empty_asset_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "only" / "folders").mkdir(parents=True)
    with pytest.raises(Rejected, match=r"E_PATH.*at least one file"):
        build_manifest(tmp_path, NAME)


def test_missing_folder_is_not_an_empty_asset(tmp_path: Path) -> None:
    with pytest.raises(Unchecked, match="E_INPUT"):
        build_manifest(tmp_path / "no", NAME)
    write(tmp_path, a="1")
    with pytest.raises(Unchecked, match="E_INPUT"):
        build_manifest(tmp_path / "a", NAME)


@pytest.mark.parametrize("kind", ["link to file", "link to folder", "dangling link", "pipe", "socket"])
def test_anything_but_regular_files_is_rejected(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "m", a="1", b__c="2")
    monkeypatch.chdir(folder)
    if kind == "pipe":
        os.mkfifo("x")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x")
    else:
        os.symlink({"link to file": "a", "link to folder": "b", "dangling link": "no"}[kind], "x")
    with pytest.raises(Rejected) as error:
        build_manifest(folder, NAME)
    assert (error.value.code, error.value.step) == ("E_PATH", "V12")


@pytest.mark.parametrize("name", [".gitattributes", ".git/config", "a:b", "trailing."])
def test_hidden_or_odd_file_in_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    write(tmp_path, a="1")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(Rejected, match="E_PATH"):
        build_manifest(tmp_path, NAME)


def test_file_name_that_is_no_utf8_is_rejected(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff", "wb"):
        pass
    with pytest.raises(Rejected, match=r"E_PATH.*UTF-8"):
        build_manifest(tmp_path, NAME)


def test_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a="1", secret__b="2")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(Unchecked, match=r"E_INPUT.*Permission denied"):
        build_manifest(tmp_path, NAME)


# --- hashing and parts ----------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of 8 bytes, read 4 at a time, so that the rules of parts can be tried on small files."""
    monkeypatch.setattr(manifests, "PART_BYTES", 8)
    monkeypatch.setattr(manifests, "_READ_BYTES", 4)
    return 8


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 24, 25])
def test_parts_are_the_digests_of_each_part_in_order(tmp_path: Path, small_parts: int, size: int) -> None:
    content = os.urandom(size)
    write(tmp_path, a=content)
    parts = [content[start : start + small_parts] for start in range(0, size, small_parts)]
    expected = tuple(hashlib.sha256(part).hexdigest() for part in parts) if size > small_parts else None
    assert hash_file(tmp_path / "a") == (sha256_hex(content), size, expected)
    assert read_manifest(build_manifest(tmp_path, NAME).raw).files[0].parts == expected


def test_only_files_that_are_not_known_are_read(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="2")
    known = {name: FileEntry(name, "0" * 64, 1) for name in ("a", "gone")}
    read = FileEntry("b", sha256_hex(b"2"), 1)
    assert list(read_entries(tmp_path, known=known)) == [known["a"], read]
    assert build_manifest(tmp_path, NAME, known=known).files == (known["a"], read)


@pytest.mark.parametrize("size", [1, 9])
def test_file_that_nobody_waits_for_is_given_up(tmp_path: Path, small_parts: int, size: int) -> None:
    write(tmp_path, a=b"a" * size)
    stop = threading.Event()
    entries = read_entries(tmp_path, stop)
    stop.set()
    with pytest.raises(Unchecked, match="E_INTERRUPTED"):
        next(entries)


def test_real_part_is_32_mib_and_only_larger_files_have_parts(tmp_path: Path) -> None:
    assert PART_BYTES == 32 * 1024 * 1024
    with open(tmp_path / "one", "wb") as file:
        file.truncate(PART_BYTES)
    with open(tmp_path / "two", "wb") as file:
        file.truncate(PART_BYTES + 1)
    one, two = build_manifest(tmp_path, NAME).files
    assert one.parts is None
    assert two.parts == (one.sha256, sha256_hex(b"\0"))


def test_file_that_grows_while_it_is_read_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, a="1") / "a"
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        path.write_bytes(b"grown")
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(Unchecked, match=r"had 1 bytes when opened and 5 when read"):
        hash_file(path)


def test_file_replaced_by_a_link_or_folder_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, a="1", folder__b="2")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(Rejected, match="E_PATH"):
            hash_file(tmp_path / name)
    with pytest.raises(Unchecked, match="E_INPUT"):
        hash_file(tmp_path / "no")


# --- reading --------------------------------------------------------------------------------------


def test_manifest_reads_back() -> None:
    made = read_manifest(raw_manifest(entry("a"), entry("b/c", 0), salt="1" * 64))
    assert (made.name, made.salt) == (NAME, "1" * 64)
    assert [found.name for found in made.files] == ["a", "b/c"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        raw_manifest(entry(), extra=1),
        raw_manifest(entry(), type="https://fedhub.dev/manifest/v2"),
        raw_manifest(entry(), name="digits"),
        raw_manifest(entry(), name=None),
        raw_manifest(entry(), salt="x"),
        raw_manifest(entry(), salt=None),
        raw_manifest(entry(), salt="A" * 64),
        raw_manifest(entry(), files={}),
        raw_manifest(None),
        raw_manifest({"name": "a"}),
        raw_manifest(entry(extra=1)),
        raw_manifest(entry(sha256="x")),
        raw_manifest(entry(size=-1)),
        raw_manifest(entry(size=True)),
        raw_manifest(entry(size="1")),
        raw_manifest({**entry(), "name": 5}),
        raw_manifest(entry(parts=[])),
        raw_manifest(entry(parts=["0" * 64])),
        raw_manifest(entry(size=PART_BYTES, parts=["0" * 64])),
        raw_manifest(entry(size=PART_BYTES + 1)),
        raw_manifest(entry(size=PART_BYTES + 1, parts=["0" * 64])),
        raw_manifest(entry(size=PART_BYTES + 1, parts=["0" * 64] * 3)),
        raw_manifest(entry(size=PART_BYTES + 1, parts=["0" * 64, "x"])),
        raw_manifest(entry(size=PART_BYTES + 1, parts="0" * 64)),
        raw_manifest(entry("b"), entry("a")),
        raw_manifest(entry("a-b"), entry("a/b")),
        raw_manifest(entry()) + b"\n",
        raw_manifest(entry()).replace(b":", b": ", 1),
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_manifest_in_another_form_is_rejected(raw: bytes) -> None:
    rejected(raw)


@pytest.mark.parametrize(
    "raw",
    [
        raw_manifest(),
        raw_manifest(entry("../a")),
        raw_manifest(entry(".git/config")),
        raw_manifest(entry("A"), entry("a")),
        raw_manifest(entry("a"), entry("a")),
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_manifest_with_forbidden_names_or_none_is_rejected(raw: bytes) -> None:
    rejected(raw, "E_PATH")


def test_large_file_with_all_its_parts_is_accepted() -> None:
    made = read_manifest(raw_manifest(entry(size=2 * PART_BYTES + 1, parts=["1" * 64, "2" * 64, "3" * 64])))
    assert made.files[0].parts == ("1" * 64, "2" * 64, "3" * 64)


def test_caller_names_the_error_it_needs() -> None:
    with pytest.raises(Rejected, match="E_SUBJECT"):
        read_manifest(b"{}", code="E_SUBJECT")


# --- OMS ------------------------------------------------------------------------------------------


def manifest() -> Manifest:
    return read_manifest(raw_manifest(entry("a", 1), {**entry("b/c", 2), "sha256": "1" * 64}))


def oms(change: Any = None) -> Statement:
    document = read_json(oms_payload(manifest(), "digits"))
    if change is not None:
        change(document)
    return read_statement(open_envelope(sign(KEY, canonical(document))))


def test_oms_statement_covers_the_files_of_its_manifest() -> None:
    check_oms(oms(), manifest())
    assert oms().subject == oms_root(manifest()) == sha256_hex(b"\x00" * 32 + b"\x11" * 32)


@pytest.mark.parametrize("ignored", [[], [".git"], [".git", ".gitattributes", ".github", ".gitignore"]])
def test_paths_that_the_stock_signer_ignores_may_stand(ignored: list[str]) -> None:
    check_oms(oms(lambda value: value["predicate"]["serialization"].update(ignore_paths=ignored)), manifest())
    check_oms(oms(lambda value: value["predicate"]["serialization"].pop("ignore_paths")), manifest())


def setting(**values: Any) -> Any:
    return lambda value: value["predicate"]["serialization"].update(values)


def resources(change: Any) -> Any:
    return lambda value: change(value["predicate"]["resources"])


@pytest.mark.parametrize(
    "change",
    [
        setting(ignore_paths=["a"]),
        setting(ignore_paths=["../.git"]),
        setting(ignore_paths=".git"),
        setting(ignore_paths=[None]),
        setting(ignore_paths=[["x"]]),
        setting(method="shards"),
        setting(hash_type="blake2b"),
        setting(allow_symlinks=True),
        setting(allow_symlinks=0),
        setting(shard_size=1),
        lambda value: value["predicate"]["serialization"].pop("method"),
        lambda value: value["predicate"].update(note=1),
        resources(lambda found: found.pop()),
        resources(lambda found: found.reverse()),
        resources(lambda found: found.append(dict(found[0], name="z"))),
        resources(lambda found: found[0].update(name="z")),
        resources(lambda found: found[0].update(digest="2" * 64)),
        resources(lambda found: found[0].update(algorithm="sha512")),
        resources(lambda found: found[0].update(size=1)),
        lambda value: value["subject"][0]["digest"].update(sha256="2" * 64),
        lambda value: value["subject"].append(value["subject"][0]),
    ],
)
def test_oms_statement_that_covers_other_or_fewer_files_is_rejected(change: Any) -> None:
    with pytest.raises(Rejected) as error:
        check_oms(oms(change), manifest())
    assert (error.value.code, error.value.step) == ("E_OMS", "V12")


def test_statement_of_another_kind_is_no_oms_statement() -> None:
    from tests.vectors.make_vectors import example_payload

    grant = read_statement(open_envelope(sign(KEY, example_payload("grant"))))
    with pytest.raises(Rejected, match="E_OMS"):
        check_oms(grant, manifest())
