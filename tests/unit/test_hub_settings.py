"""Settings: named by variable when wrong, never showing values, with files for secrets."""

from pathlib import Path

import pytest

from hub.settings import FROM_FILE, PREFIX, Settings, load_settings
from storage.errors import Unchecked


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def test_every_setting_has_a_description_a_unit_and_a_default() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
        assert isinstance(field.json_schema_extra, dict) and field.json_schema_extra["unit"], name
        assert not field.is_required(), name


def test_defaults_are_sqlite_and_a_folder_under_the_data_folder(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    assert settings.database == f"sqlite:///{tmp_path}/fedhub.db"
    assert settings.store == f"file://{tmp_path}/store"
    assert settings.store_public == "http://127.0.0.1:8002"
    assert settings.downloads != settings.public


def test_a_wrong_value_is_named_by_its_variable_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHUB_PORT", "no-port-hunter2")
    with pytest.raises(Unchecked) as caught:
        load_settings()
    assert caught.value.code == "E_SETTING"
    assert "FEDHUB_PORT" in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_an_address_of_the_database_with_a_password_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHUB_DATABASE_URL", "postgresql://fedhub:hunter2@db/fedhub")
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    assert settings.database.endswith("@db/fedhub")


@pytest.mark.parametrize("name", FROM_FILE)
def test_secrets_and_addresses_come_from_files_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "value").write_text("s3+http://store:9000/bucket\n")
    monkeypatch.setenv(f"{PREFIX}{name.upper()}_FILE", str(tmp_path / "value"))
    found = getattr(load_settings(), name)
    assert found.get_secret_value() == "s3+http://store:9000/bucket"


def test_a_secret_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("hunter2")
    monkeypatch.setenv("FEDHUB_STORE_SECRET_KEY", "hunter2")
    monkeypatch.setenv("FEDHUB_STORE_SECRET_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(Unchecked, match="FEDHUB_STORE_SECRET_KEY_FILE") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDHUB_STORE_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(Unchecked, match="FEDHUB_STORE_URL_FILE"):
        load_settings()


def test_the_download_origin_cannot_be_the_api_s_own() -> None:
    with pytest.raises(Unchecked, match="origin of their own"):
        load_settings(port=9000, download_port=9000)


@pytest.mark.parametrize("name", ["download_url", "store_public_url"])
@pytest.mark.parametrize("address", ["https://hub.example", "https://HUB.example:443/files"])
def test_no_address_that_tokens_must_not_reach_is_of_the_api_s_origin(name: str, address: str) -> None:
    with pytest.raises(Unchecked, match=f"FEDHUB_{name.upper()}.*would send"):
        load_settings(public_url="https://hub.example", **{name: address})
    for other in ("http://hub.example", "https://hub.example:8001", "https://files.example"):
        load_settings(public_url="https://hub.example", **{name: other})


@pytest.mark.parametrize("address", ["ftp://hub", "hub.example", "https://hub/?x=1"])
def test_a_public_address_that_is_no_web_address_is_refused(address: str) -> None:
    with pytest.raises(Unchecked, match="FEDHUB_PUBLIC_URL"):
        load_settings(public_url=address)


def test_an_s3_store_is_public_at_its_own_address_unless_told() -> None:
    settings = load_settings(store_url="s3+https://store.example:9000/fedhub")
    assert settings.store_public == "https://store.example:9000"
