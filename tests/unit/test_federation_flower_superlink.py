"""What SuperLink's command line says about the names in its certificate."""

import pytest

from federation.flower.superlink import parse

LINE = ["--folder", "f", "--token-file", "t", "--fleet", "0.0.0.0:8003"]


@pytest.mark.parametrize(
    ("more", "hosts"),
    [
        ([], ("0.0.0.0",)),
        (["--public", "fleet.example:8003"], ("fleet.example",)),
        (["--public", "[2001:db8::1]:443"], ("2001:db8::1",)),
        (["--host", "superlink", "--public", "fleet.example:443"], ("superlink", "fleet.example")),
    ],
)
def test_the_certificate_names_where_labs_reach_the_port(more: list[str], hosts: tuple[str, ...]) -> None:
    assert parse([*LINE, *more]).hosts == hosts


@pytest.mark.parametrize("public", ["fleet.example", "fleet.example:", ":8003", "fleet.example:65536"])
def test_a_public_address_needs_host_and_port(public: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([*LINE, "--public", public])
    assert "expected HOST:PORT" in capsys.readouterr().err
