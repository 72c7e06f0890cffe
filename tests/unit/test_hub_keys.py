"""The hub's own secrets: made once, private, bound to the origin."""

from pathlib import Path

import pytest

from hub.keys import open_keys
from storage.errors import Unchecked


def test_keys_are_made_once_and_read_again(tmp_path: Path) -> None:
    first, second = open_keys(tmp_path / "keys", "hub.example"), open_keys(tmp_path / "keys", "hub.example")
    assert first.log.vkey == second.log.vkey
    assert first.token_secret == second.token_secret and len(first.token_secret) == 32
    assert first.coordinator_file.read_text().strip() == first.coordinator_token


def test_every_secret_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    open_keys(tmp_path / "keys", "hub.example")
    files = sorted(path.name for path in (tmp_path / "keys").iterdir())
    assert files == ["blob.secret", "control.token", "coordinator.token", "log.key", "token.secret"]
    for name in files:
        assert (tmp_path / "keys" / name).stat().st_mode & 0o777 == 0o600, name


@pytest.mark.parametrize(
    "name", ["blob.secret", "control.token", "coordinator.token", "log.key", "token.secret"]
)
def test_a_secret_that_others_can_read_is_refused(name: str, tmp_path: Path) -> None:
    open_keys(tmp_path, "hub.example")
    (tmp_path / name).chmod(0o644)
    with pytest.raises(Unchecked, match="0600"):
        open_keys(tmp_path, "hub.example")


def test_a_damaged_secret_is_named_and_not_shown(tmp_path: Path) -> None:
    open_keys(tmp_path, "hub.example")
    (tmp_path / "token.secret").write_text("hunter2")
    with pytest.raises(Unchecked, match=r"token\.secret") as caught:
        open_keys(tmp_path, "hub.example")
    assert "hunter2" not in str(caught.value)


def test_a_log_keeps_its_name(tmp_path: Path) -> None:
    open_keys(tmp_path, "hub.example")
    with pytest.raises(Unchecked, match="FEDHUB_ORIGIN"):
        open_keys(tmp_path, "other.example")


def test_secrets_do_not_show_in_the_object_s_text(tmp_path: Path) -> None:
    keys = open_keys(tmp_path, "hub.example")
    for secret in (keys.coordinator_token, keys.control_token, keys.blob_secret, keys.token_secret.hex()):
        assert secret not in repr(keys)


def test_derived_secrets_differ_by_purpose(tmp_path: Path) -> None:
    keys = open_keys(tmp_path, "hub.example")
    assert len({keys.derive("a"), keys.derive("b"), keys.token_secret}) == 3
