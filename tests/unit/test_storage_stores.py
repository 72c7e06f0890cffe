"""Which store a URL names, and which URLs name none."""

from pathlib import Path

import pytest

from storage.blobs import FolderStore
from storage.errors import Unchecked
from storage.stores import folder_of, open_store

PUBLIC = "http://127.0.0.1:8002"


def test_file_url_names_a_folder_which_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    store = open_store(f"file://{tmp_path}/a%20b", PUBLIC)
    assert isinstance(store, FolderStore)
    store.put("x/y", b"data")
    assert (folder / "x" / "y").read_bytes() == b"data"
    assert store.signed_url("x/y", expires_s=9).startswith(f"{PUBLIC}/x/y?expires=")


def test_given_secret_signs_and_otherwise_the_folders_own(tmp_path: Path) -> None:
    given = open_store(f"file://{tmp_path}/one", PUBLIC, None, "secret")
    assert not (tmp_path / "one" / ".secret").exists()
    own = open_store(f"file://{tmp_path}/two", PUBLIC)
    assert (tmp_path / "two" / ".secret").exists()
    headers = [store.order("k", "0" * 64, 1).headers["x-fedhub-signature"] for store in (given, own)]
    assert headers[0] != headers[1]


def test_folder_is_known_without_opening_it() -> None:
    assert folder_of("file:///srv/store") == Path("/srv/store")
    assert folder_of("s3+http://127.0.0.1:9000/bucket") is None


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("", PUBLIC),
        ("/srv/store", PUBLIC),
        ("file://host/srv", PUBLIC),
        ("file:srv", PUBLIC),
        ("file:///srv?x=1", PUBLIC),
        ("http://127.0.0.1:9000/bucket", PUBLIC),
        ("s3://bucket", PUBLIC),
        ("s3+http://127.0.0.1:9000", PUBLIC),
        ("s3+http:///bucket", PUBLIC),
        ("s3+http://127.0.0.1:9000/a/b", PUBLIC),
        ("s3+http://key:pw@127.0.0.1:9000/bucket", PUBLIC),
        ("s3+http://127.0.0.1:9000/bucket", "http://127.0.0.1:9000/bucket"),
        ("s3+http://127.0.0.1:9000/bucket", "127.0.0.1:9000"),
        ("s3+http://127.0.0.1:9000/bucket", "ftp://127.0.0.1"),
        ("file:///srv/store", None),
    ],
)
def test_url_that_names_no_store_is_refused(url: str, public: str | None) -> None:
    with pytest.raises(Unchecked, match=r"E_STORE_URL") as error:
        open_store(url, public, "access", "secret")
    assert "pw" not in str(error.value)


def test_s3_store_without_keys_is_refused() -> None:
    with pytest.raises(Unchecked, match=r"needs an access key and a secret key"):
        open_store("s3+http://127.0.0.1:9/bucket", None)


def test_s3_store_that_is_away_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import storage.blobs_minio

    monkeypatch.setattr(storage.blobs_minio, "RETRIES", 0)
    with pytest.raises(Unchecked, match=r"E_STORE: the S3 store did not answer"):
        open_store("s3+http://127.0.0.1:9/bucket", None, "access", "secret")
