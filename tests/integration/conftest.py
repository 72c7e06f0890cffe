"""The stores that tests of what lies on one run over: a folder behind its server, and every S3 server there is."""

from collections.abc import Iterator

import pytest

from storage.blobs import BlobStore
from tests.servers import StoreMaker, running_store, store_names


@pytest.fixture(scope="module", params=store_names())
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreMaker]:
    """Makes a client of the store; it may be given how far its clock is off, in seconds."""
    with running_store(request.param, tmp_path_factory.mktemp("store")) as maker:
        yield maker


@pytest.fixture
def store(make: StoreMaker) -> BlobStore:
    return make()
