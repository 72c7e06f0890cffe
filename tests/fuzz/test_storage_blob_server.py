"""Whatever a client asks as a range of a stored object: a slice of it, all of it, or 416."""

import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blob_server import BlobServer
from storage.blobs import FolderStore

DATA = bytes(range(200))
SECRET = b"s" * 32
Ask = Callable[[str], httpx.Response]
NUMBERS = st.integers(0, 400) | st.sampled_from(["", "9" * 15, "9" * 400])
RANGES = st.text("bytes=-, 0123456789", max_size=24).map(str.strip) | st.builds(
    "bytes={}-{}".format, NUMBERS, NUMBERS
)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    folder = tmp_path_factory.mktemp("ranges")
    with BlobServer(folder, "127.0.0.1", 0, SECRET) as server:
        store = FolderStore(folder, f"http://127.0.0.1:{server.port}", SECRET)
        store.put("object", DATA)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = store.signed_url("object", expires_s=600)
        with httpx.Client(trust_env=False) as client:
            yield lambda text: client.get(url, headers={"Range": text})
        server.shutdown()
        thread.join()


@settings(max_examples=100)
@given(text=RANGES)
def test_a_range_is_a_slice_of_the_object_or_none(ask: Ask, text: str) -> None:
    answer = ask(text)
    if answer.status_code == 206:
        span, _, size = answer.headers["content-range"].removeprefix("bytes ").partition("/")
        start, end = map(int, span.split("-"))
        assert 0 <= start <= end < int(size) == len(DATA)
        assert answer.content == DATA[start : end + 1]
    elif answer.status_code == 200:
        assert answer.content == DATA
    else:
        assert answer.status_code == 416 and answer.headers["content-range"] == f"bytes */{len(DATA)}"
