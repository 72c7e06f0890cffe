"""The public description of a dataset: valid for ``mlcroissant``, and silent about files, rows and sizes."""

import json
import socket
from pathlib import Path
from typing import Any

import mlcroissant  # type: ignore[import-untyped]
import pytest

from storage.croissant import CONFORMS_TO, DUO_LABELS, make_croissant
from storage.encoding import canonical
from storage.errors import Rejected
from storage.manifests import build_manifest, new_salt

# The parser of mlcroissant uses a class that its library rdflib has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")

NAME = "lab-a.example/digits"
NOW = 1_795_644_000
DUO = ["DUO:0000046", "DUO:0000042"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    (place / "patients").mkdir(parents=True)
    header = "label,p00,date of scan,größe/cm\n"
    (place / "train.csv").write_text(header + "3,0.5,2026-01-01,x\n" * 612, "utf-8")
    (place / "heldout.csv").write_text(header + "4,7,2026-01-02,y\n" * 31, "utf-8")
    (place / "patients" / "Ann-Smith-1977.tsv").write_text("visit\tnote\n1\tsecret-value\n", "utf-8")
    (place / "patients" / "tomography.DCM").write_bytes(b"\x00" * 77)
    (place / "notes.bob-jones").write_text("x")
    (place / "README").write_text("x")
    return place


def described(folder: Path, **options: Any) -> tuple[bytes, dict[str, Any]]:
    settings: dict[str, Any] = {
        "description": "Digits of lab A",
        "license_id": "CC-BY-4.0",
        "duo": DUO,
        "now": NOW,
    }
    manifest = build_manifest(folder, NAME, salt=new_salt())
    raw = make_croissant(folder, manifest, **{**settings, **options})
    return raw, json.loads(raw)


def test_mlcroissant_finds_no_error_and_fetches_nothing(folder: Path) -> None:
    _, document = described(folder)
    dataset = mlcroissant.Dataset(jsonld=document)
    assert dataset.metadata.ctx.issues.errors == set()
    assert dataset.metadata.ctx.is_v1_1()
    assert dataset.metadata.name == NAME
    assert [record.name for record in dataset.metadata.record_sets] == ["table-1", "table-2"]
    first = {field.name: field.data_type for field in dataset.metadata.record_sets[0].fields}
    assert list(first) == ["label", "p00", "date of scan", "größe/cm"]
    assert first["label"] is int


def test_mlcroissant_keeps_everything_that_we_say(folder: Path) -> None:
    _, document = described(folder)
    again = mlcroissant.Dataset(jsonld=document).metadata.to_json()
    assert set(again) == set(document)
    assert [field["dataType"] for field in again["recordSet"][0]["field"]] == [
        "sc:Integer",
        "sc:Float",
        "sc:Date",
        "sc:Text",
    ]


def test_required_members_of_croissant_1_1_stand(folder: Path) -> None:
    _, document = described(folder)
    assert document["conformsTo"] == CONFORMS_TO == "http://mlcommons.org/croissant/1.1"
    assert document["@type"] == "sc:Dataset"
    assert document["description"] == "Digits of lab A"
    assert document["license"] == "https://spdx.org/licenses/CC-BY-4.0"
    assert document["url"] == f"https://fedhub.dev/dataset/{NAME}"
    assert document["creator"] == {"@type": "sc:Organization", "name": "lab-a.example"}
    assert document["datePublished"] == "2026-11-25"


def test_no_file_name_digest_size_value_or_exact_count_leaves(folder: Path) -> None:
    manifest = build_manifest(folder, NAME)
    raw, document = described(folder)
    assert all(resource["@type"] == "cr:FileSet" for resource in document["distribution"])
    text = raw.decode()
    for entry in manifest.files:
        stem = Path(entry.name).name.split(".")[0]
        assert entry.sha256 not in text
        assert stem not in text, stem
    for secret in ("Smith", "bob-jones", "secret-value", "643", "612", "contentSize", "sha256", "2026-01-01"):
        assert secret not in text, secret


def test_tables_are_described_by_columns_and_a_rounded_count(folder: Path) -> None:
    _, document = described(folder)
    assert [record["description"] for record in document["recordSet"]] == [
        "4 columns, about 640 rows.",
        "2 columns, fewer than 10 rows.",
    ]


def test_file_sets_tell_kinds_of_files_only(folder: Path) -> None:
    _, document = described(folder)
    assert {(found["includes"], found["encodingFormat"]) for found in document["distribution"]} == {
        ("**/*.csv", "text/csv"),
        ("**/*.tsv", "text/tab-separated-values"),
        ("**/*.dcm", "application/dicom"),
        ("**/*", "application/octet-stream"),
    }


def test_shared_files_are_described_one_by_one_for_who_has_them(folder: Path) -> None:
    manifest = build_manifest(folder, NAME)  # without salt: they lie in the hub
    raw = make_croissant(folder, manifest, description="Digits", license_id="CC0-1.0", now=NOW)
    document = json.loads(raw)
    files = [found for found in document["distribution"] if found["@type"] == "cr:FileObject"]
    assert {(found["name"], found["contentSize"], found["sha256"]) for found in files} == {
        (entry.name, f"{entry.size} B", entry.sha256) for entry in manifest.files
    }
    assert "stay at the site" not in raw.decode()
    assert mlcroissant.Dataset(jsonld=document).metadata.ctx.issues.errors == set()


def test_terms_of_use_are_duo_terms_in_order(folder: Path) -> None:
    _, document = described(folder)
    assert document["usageInfo"] == [
        {
            "@type": "sc:DefinedTerm",
            "name": "general research use",
            "termCode": "DUO:0000042",
            "url": "duo:0000042",
        },
        {
            "@type": "sc:DefinedTerm",
            "name": "non-commercial use only",
            "termCode": "DUO:0000046",
            "url": "duo:0000046",
        },
    ]
    _, unknown = described(folder, duo=["DUO:9999999"])
    assert unknown["usageInfo"][0]["name"] == "DUO:9999999"
    _, none = described(folder, duo=[])
    assert "usageInfo" not in none
    assert mlcroissant.Dataset(jsonld=none).metadata.ctx.issues.errors == set()


def test_same_data_on_the_same_day_have_the_same_canonical_description(folder: Path) -> None:
    raw, document = described(folder)
    assert raw == described(folder)[0] == canonical(document)


def test_data_without_tables_are_described_by_their_file_sets(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    _, document = described(tmp_path)
    assert "recordSet" not in document
    assert mlcroissant.Dataset(jsonld=document).metadata.ctx.issues.errors == set()


def test_custom_license_stays_as_it_is_written(folder: Path) -> None:
    assert described(folder, license_id="LicenseRef-Site")[1]["license"] == "LicenseRef-Site"
    assert described(folder, license_id="MIT OR Apache-2.0")[1]["license"] == "MIT OR Apache-2.0"


@pytest.mark.parametrize(
    "options",
    [
        {"duo": ["DUO:42"]},
        {"duo": ["general research"]},
        {"license_id": ""},
        {"description": ""},
        {"description": "x" * 5000},
    ],
    ids=lambda options: next(iter(options)),
)
def test_bad_term_license_or_description_is_rejected(folder: Path, options: Any) -> None:
    with pytest.raises(Rejected):
        described(folder, **options)


def test_labels_belong_to_well_formed_codes() -> None:
    assert all(code.startswith("DUO:0000") and len(code) == 11 for code in DUO_LABELS)
