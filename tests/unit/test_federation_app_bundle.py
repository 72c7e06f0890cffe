"""App bundles as a site reads them: what the list does not name, or the limits do not allow, is refused."""

import stat
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from federation.app_bundle import CONTENT, check_named, read_bundle, run_config, typed_parameters, unpack
from federation.app_terms import AppTerms
from storage.encoding import sha256_hex
from storage.errors import Rejected

PROJECT = b"""
[project]
name = "a"
version = "1"
[tool.flwr.app.components]
clientapp = "a.client:app"
[tool.flwr.app.config]
rate = 0.5
steps = 1
loud = false
mode = "x"
inner.depth = 3
"""
FILES = {"pyproject.toml": PROJECT, "a/client.py": b"app = 1\n", "a/__init__.py": b""}


def listing(files: dict[str, bytes]) -> bytes:
    return "\n".join(f"{name},{sha256_hex(data)},{8 * len(data)}" for name, data in files.items()).encode()


def pack(files: dict[str, bytes] = FILES, *, content: bytes | None = None, **more: Any) -> bytes:
    """A bundle; ``content`` replaces its list, ``more`` are entries by name that the list does not name."""
    entries = [*files.items(), (CONTENT, listing(files) if content is None else content), *more.items()]
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def refused(raw: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        read_bundle(raw)
    assert caught.value.code == "E_APP"
    return caught.value.message


def test_a_bundle_is_what_its_list_names() -> None:
    raw = pack()
    bundle = read_bundle(raw)
    assert (bundle.sha256, bundle.size, bundle.client) == (sha256_hex(raw), len(raw), "a.client:app")
    assert {each.name: each.data for each in bundle.files} == FILES
    assert dict(bundle.settings) == {
        "rate": 0.5,
        "steps": 1,
        "loud": False,
        "mode": "x",
        "inner.depth": 3,
    }


def test_it_is_unpacked_into_a_new_folder_that_only_its_owner_reads(tmp_path: Path) -> None:
    unpack(read_bundle(pack()), tmp_path / "code")
    assert stat.S_IMODE((tmp_path / "code").stat().st_mode) == 0o700
    assert (tmp_path / "code" / "a" / "client.py").read_bytes() == b"app = 1\n"
    assert stat.S_IMODE((tmp_path / "code" / "a" / "client.py").stat().st_mode) == 0o400
    with pytest.raises(FileExistsError):
        unpack(read_bundle(pack()), tmp_path / "code")


def _mode(kind: int) -> Callable[[zipfile.ZipInfo], None]:
    return lambda info: setattr(info, "external_attr", kind << 16)


def _with_entry(name: str, change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    files = {**FILES, name: b"x"}
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for each, data in {**files, CONTENT: listing(files)}.items():
            info = zipfile.ZipInfo(each)
            if each == name:
                change(info)
            archive.writestr(info, data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (pack(more=b"x"), "'more' is not listed"),
        (pack(content=listing({**FILES, "gone.py": b""})), "lists 'gone.py', which is not in it"),
        (pack(content=listing({**FILES, "a/client.py": b"app = 2\n"})), "says digest"),
        (pack(content=listing({**FILES, "a/client.py": b"app"})), "says 3 bytes"),
        (pack(content=listing(FILES) + b"\n" + listing(FILES)), "stands twice"),
        (pack(content=b"nonsense"), "expected path,sha256,bits"),
        (pack(content=listing(FILES).replace(b",64", b",65")), "expected path,sha256,bits"),
        (pack(content=b"\xff"), "not UTF-8"),
        (pack({"a/client.py": b""}), "it has no pyproject.toml"),
        (pack({"pyproject.toml": b"= ="}), "is not TOML"),
        (pack({"pyproject.toml": b"tool = 3"}), "tool should be a table"),
        (pack({"pyproject.toml": PROJECT.replace(b"a.client:app", b"a.client")}), "module:attribute"),
        (pack({"pyproject.toml": PROJECT.replace(b'name = "a"', b"name = 3")}), "should be texts"),
        (pack({"pyproject.toml": PROJECT.replace(b"steps = 1", b"steps = [1]")}), "'steps' should be"),
        (b"", "no zip"),
        (b"PK" * 50, "no zip"),
        (pack()[:-30], "no zip"),
        (bytes(10 << 20) + b"x", "at most 10485760 bytes"),
        (_with_entry("../up.py"), "no part . or .."),
        (_with_entry("/etc/passwd"), "no empty part"),
        (_with_entry("a\\b.py"), "control character"),
        (_with_entry("A/Client.py"), "in case"),
        (_with_entry("a/"), "regular file"),
        (_with_entry("link.py", _mode(stat.S_IFLNK | 0o777)), "regular file"),
        (_with_entry("pipe.py", _mode(stat.S_IFIFO | 0o600)), "regular file"),
        (_with_entry("lzma.py", lambda info: setattr(info, "compress_type", zipfile.ZIP_LZMA)), "packed in"),
        (pack({**FILES, **{f"f{number}": b"" for number in range(2001)}}), "at most 2000 files"),
    ],
)
def test_a_bundle_that_breaks_a_rule_is_refused_by_name(raw: bytes, rule: str) -> None:
    assert rule in refused(raw)


def test_a_bundle_without_a_list_is_refused() -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("pyproject.toml", PROJECT)
    assert "it has no .info/CONTENT" in refused(out.getvalue())


def test_an_entry_that_stands_twice_is_refused() -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for name, data in [*FILES.items(), (CONTENT, listing(FILES)), ("a/client.py", b"app = 1\n")]:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    assert "differs from every other" in refused(out.getvalue())


def test_a_bomb_is_refused_by_what_it_says_and_by_what_comes() -> None:
    bomb = pack({**FILES, "zeros.py": bytes(65 << 20)})
    assert len(bomb) < 1 << 20
    assert "at most 67108864 bytes are unpacked" in refused(bomb)
    # The same with sizes that lie: small in the directory, large in the stream.
    size = (65 << 20).to_bytes(4, "little")
    lying = bomb.replace(size, (1).to_bytes(4, "little"))
    assert lying != bomb
    refused(lying)


def test_an_encrypted_entry_is_refused() -> None:
    raw = bytearray(pack())
    place = raw.index(b"PK\x01\x02")
    raw[place + 8] |= 1
    assert "is encrypted" in refused(bytes(raw))


# --- what a plan says of it ---------------------------------------------------------------------------------


def test_a_plan_names_it_by_whole_digest_and_size() -> None:
    bundle = read_bundle(pack())
    check_named(bundle, AppTerms(bundle.sha256, bundle.size, {"steps": 2}))
    for terms in (AppTerms("ab" * 32, bundle.size, {}), AppTerms(bundle.sha256, bundle.size + 1, {})):
        with pytest.raises(Rejected, match="the plan names"):
            check_named(bundle, terms)


def test_parameters_take_the_type_of_the_apps_own_settings() -> None:
    bundle = read_bundle(pack())
    found = run_config(bundle, {"rate": "0.25", "steps": 7, "loud": True, "mode": "y"})
    assert found == {"rate": 0.25, "steps": 7, "loud": True, "mode": "y", "inner.depth": 3}
    assert run_config(bundle, {"rate": 2})["rate"] == 2.0
    assert typed_parameters(bundle, {"rate": "0.1", "steps": "3", "loud": "true", "mode": "3"}) == {
        "rate": "0.1",
        "steps": 3,
        "loud": True,
        "mode": "3",
    }


@pytest.mark.parametrize(
    "given", [{"speed": 1}, {"steps": "2"}, {"steps": True}, {"rate": "fast"}, {"rate": True}, {"mode": 1}]
)
def test_a_parameter_of_another_name_or_type_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as caught:
        run_config(read_bundle(pack()), given)
    assert caught.value.code == "E_APP"
