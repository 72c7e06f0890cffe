"""A hub process and its store: one secret for both, a quick second start, an address for each side."""

import hashlib
from pathlib import Path

from federation import sending
from tests.e2e import test_hub_serve as serve


def test_a_folder_store_and_its_server_share_the_secret_of_the_settings(tmp_path: Path) -> None:
    content = tmp_path / "file"
    content.write_bytes(b"bytes")
    for _ in range(2):
        with serve.hub_process(tmp_path, STORE_SECRET_KEY="a secret of the operator's own") as hub:
            told = hub.ready()
            with serve.operator(told, tmp_path) as client:
                assert sending.send_file(client, content).state == "stored"
            assert hub.end() == 0
    stored = [
        path.read_bytes() for path in (tmp_path / "hub" / "store" / "blobs").rglob("*") if path.is_file()
    ]
    assert [hashlib.sha256(each).hexdigest() for each in stored] == [hashlib.sha256(b"bytes").hexdigest()]
