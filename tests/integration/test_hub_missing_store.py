"""A hub whose store is not there: the first start makes one, no later start does."""

import os
import secrets
from pathlib import Path

import pytest

from hub.api.app import open_hub
from hub.commands.care import restore_hub
from hub.ledger import has_entries
from hub.settings import Settings
from storage.errors import FedhubError, Unchecked
from storage.stores import open_store
from tests.hubs import HubInProcess, running_hub

SERVERS = os.environ.get("FEDHUB_TEST_S3_URL", "").split()


def elsewhere(settings: Settings, url: str) -> Settings:
    """The settings of a hub with a store that was never its own."""
    return Settings.model_validate({**settings.model_dump(), "store_url": url})


def founded(folder: Path, **given: str) -> Settings:
    """The settings of a hub that has one entry, and stands still."""
    with running_hub(folder, **given) as hub:
        hub.hub.ledger.publish()
        assert has_entries(hub.hub.database)
        return hub.settings


def test_a_hub_whose_folder_is_gone_makes_no_other_and_says_so(tmp_path: Path) -> None:
    settings, other = founded(tmp_path), tmp_path / "other"
    for start in (open_hub, lambda given: restore_hub(given, None, replace=False)):
        with pytest.raises(Unchecked, match=f"E_STORE: the store's folder {other} is not there") as caught:
            start(elsewhere(settings, f"file://{other}"))
        assert "FEDHUB_STORE_URL" in caught.value.hint and not other.exists()
    HubInProcess(tmp_path).close()


def test_a_home_of_another_operator_is_found_out_before_a_store_is_made(tmp_path: Path) -> None:
    with running_hub(tmp_path / "a", operator="other.example") as hub:
        home = hub.settings.operator_folder
    with pytest.raises(Unchecked, match="E_SETTING: FEDHUB_OPERATOR_HOME"):
        HubInProcess(tmp_path / "b", operator_home=home)
    assert not (tmp_path / "b" / "hub" / "store").exists()


@pytest.mark.engines
@pytest.mark.parametrize("server", SERVERS)
def test_a_start_that_a_forked_log_stops_makes_no_bucket(server: str, tmp_path: Path) -> None:
    keys = {
        "store_access_key": os.environ["FEDHUB_TEST_S3_ACCESS_KEY"],
        "store_secret_key": os.environ["FEDHUB_TEST_S3_SECRET_KEY"],
    }
    bucket = f"s3+{server}/test-{secrets.token_hex(8)}"
    settings = founded(tmp_path, store_url=bucket, **keys)
    for _ in range(2):
        with pytest.raises(FedhubError, match=r"E_STORE: the S3 store has no bucket .*-other"):
            open_hub(elsewhere(settings, f"{bucket}-other"))
    with pytest.raises(Unchecked, match="has no bucket"):
        open_store(f"{bucket}-other", None, keys["store_access_key"], keys["store_secret_key"], make=False)
    open_hub(settings).database.close()
