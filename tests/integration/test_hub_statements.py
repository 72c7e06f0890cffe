"""Statements through the API: who may log, who may read, pages, attachments, packs, the public log."""

import base64
import io
import json
import time
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from federation.client import HubClient
from federation.home import Home
from federation.joining import post_status
from hub.tables import AttachmentRow
from storage.encoding import canonical, format_time, sha256_hex
from storage.errors import FedhubError, Refused, Rejected, Unchecked
from storage.pack import unzip_pack, write_pack
from storage.signing import open_envelope, sign
from storage.statements import KINDS, compose, read_statement
from storage.verify import verify
from tests.databases import DATABASES, database_url
from tests.hubs import HubInProcess, running_hub


@pytest.fixture(scope="module", params=DATABASES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubInProcess]:
    folder = tmp_path_factory.mktemp("hub")
    with (
        database_url(request.param, folder) as url,
        running_hub(folder, database_url=url, page_size=5) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def lab(hub: HubInProcess) -> Home:
    return hub.enrol("lab-a.example")


@pytest.fixture(scope="module")
def firm(hub: HubInProcess) -> Home:
    return hub.enrol("firm.example", "firm")


@pytest.fixture(scope="module")
def auditor(hub: HubInProcess) -> Home:
    return hub.enrol("auditor.example", "auditor")


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def dataset(home: Home, name: str, croissant: bytes = b"{}", **changes: Any) -> bytes:
    subjects = [("manifest.json", digest(home.institution + name)), ("croissant.json", sha256_hex(croissant))]
    members = {"type": "dataset", "name": f"{home.institution}/{name}", "version": 1, **changes}
    return home.sign("asset", subjects, members)


def grant(home: Home, name: str, grantee: str, **changes: Any) -> bytes:
    now = int(time.time())
    terms = {
        "grantee": grantee,
        "actions": ["evaluate"],
        "conditions": {},
        "notBefore": format_time(now),
        "expires": format_time(now + 3600),
        "depth": 0,
        **changes,
    }
    return home.sign("grant", [("manifest.json", digest(home.institution + name))], terms)


def post(hub: HubInProcess, home: Home, raw: bytes, files: dict[str, bytes] | None = None) -> str:
    with hub.client(home) as client:
        return client.post_statement(raw, files).id


# --- posting ------------------------------------------------------------------------------------------------


def test_a_statement_is_answered_with_its_place_in_the_log_and_a_repeat_with_the_same(
    hub: HubInProcess, lab: Home
) -> None:
    raw = dataset(lab, "posted")
    with hub.client(lab) as client:
        first, again = client.post_statement(raw), client.post_statement(raw)
        assert first == again == client.statement(first.id)
    assert first.bundle.encode() == raw and first.kind == "asset" and first.issuer == lab.institution


def test_a_statement_signed_twice_is_one_statement(hub: HubInProcess, lab: Home) -> None:
    """The id does not cover the signature: the (r, n-s) twin of a signature is answered with the first."""
    raw = dataset(lab, "malleable")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    bundle = json.loads(raw)
    signature = bundle["dsseEnvelope"]["signatures"][0]
    r, s = decode_dss_signature(base64.b64decode(signature["sig"]))
    signature["sig"] = base64.b64encode(encode_dss_signature(r, order - s)).decode()
    twin = canonical(bundle)
    with hub.client(lab) as client:
        first, second = client.post_statement(raw), client.post_statement(twin)
    assert twin != raw and first == second


def test_nobody_posts_another_s_statement(hub: HubInProcess, lab: Home, firm: Home) -> None:
    raw = dataset(lab, "others")
    with hub.client(firm) as client:
        with pytest.raises(Refused, match="only for its owner"):
            client.post_statement(raw)
        with pytest.raises(Unchecked):
            client.statement(open_envelope(raw).id)
    with hub.client() as client, pytest.raises(Unchecked, match="login"):
        client.post_statement(raw)


def test_a_standard_kind_is_its_signer_s_whoever_posts_it(hub: HubInProcess, lab: Home, firm: Home) -> None:
    """Standard kinds name no issuer: the ring that holds the key decides, after the signature was checked."""
    post(hub, lab, dataset(lab, "judged"))
    members = {
        "verifier": {"id": f"https://{lab.institution}"},
        "timeVerified": format_time(int(time.time())),
        "resourceUri": f"{lab.institution}/judged",
        "policy": {"digest": {"sha256": digest("trust")}},
        "inputAttestations": [],
        "verificationResult": "PASSED",
        "verifiedLevels": ["FEDHUB_SIGNED"],
    }
    raw = lab.sign("verdict", [("manifest.json", digest(lab.institution + "judged"))], members)
    with hub.client(firm) as client, pytest.raises(FedhubError):
        client.post_statement(raw)
    with hub.client(lab) as client, pytest.raises(Unchecked):
        client.statement(open_envelope(raw).id)


def test_a_personal_token_that_writes_may_bring_a_signed_statement_and_one_that_reads_may_not(
    hub: HubInProcess, lab: Home
) -> None:
    with hub.client(lab) as client:
        reader = client.create_token("r", ["read"]).token
        writer = client.create_token("w", ["write"]).token
    raw = dataset(lab, "by-token")
    with hub.client(token=reader) as client, pytest.raises(Refused) as caught:
        client.post_statement(raw)
    assert caught.value.code == "E_SCOPE"
    with hub.client(token=writer) as client:
        assert client.post_statement(raw).kind == "asset"


@pytest.mark.parametrize("kind", ["keyring", "order"])
def test_kinds_with_a_way_of_their_own_are_sent_there(hub: HubInProcess, lab: Home, kind: str) -> None:
    now = format_time(int(time.time()) + 60)
    members = {
        "keyring": {"version": 2},
        "order": {
            "plan": "0" * 64,
            "site": "0" * 64,
            "action": "train",
            "round": 1,
            "input": "0" * 64,
            "deadline": now,
        },
    }[kind]
    names = {"keyring": "2.root.json", "order": "weights"}
    raw = lab.sign(kind, [(names[kind], "0" * 64)], members)
    with hub.client(lab) as client, pytest.raises(Refused) as caught:
        client.post_statement(raw)
    assert (caught.value.code, caught.value.field) == ("E_KIND_ELSEWHERE", "bundle")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda raw: raw[:-1], "E_BUNDLE"),
        (lambda raw: raw.replace(b'"keyid":""', b'"keyid":"x"'), "E_BUNDLE"),
        (lambda raw: raw.replace(b'"sig":"ME', b'"sig":"MF'), "E_SIGNATURE"),
        (lambda raw: b"", "E_BUNDLE"),
        (lambda raw: b"[]", "E_BUNDLE"),
    ],
)
def test_a_damaged_bundle_is_rejected_by_the_rule_it_breaks(
    hub: HubInProcess, lab: Home, change: Any, code: str
) -> None:
    raw = change(dataset(lab, f"damaged-{code}-{len(code)}"))
    with hub.client(lab) as client, pytest.raises((Rejected, Refused)) as caught:
        client.post_statement(raw)
    assert caught.value.code in (code, "E_BUNDLE", "E_FIELD")


def test_a_key_of_the_wrong_role_signs_nothing(hub: HubInProcess, lab: Home) -> None:
    subjects = [("manifest.json", digest("r")), ("croissant.json", digest("r"))]
    members = {"type": "dataset", "name": f"{lab.institution}/role", "version": 1}
    payload = compose("asset", subjects, members, issuer=lab.institution, hub=lab.hub)
    with hub.client(lab) as client, pytest.raises(Rejected) as caught:
        client.post_statement(sign(lab.key("snapshot"), payload))
    assert caught.value.code == "E_KEY_ROLE"


def test_a_statement_for_another_hub_is_refused(hub: HubInProcess, lab: Home) -> None:
    subjects = [("manifest.json", digest("h")), ("croissant.json", digest("h"))]
    members = {"type": "dataset", "name": f"{lab.institution}/h", "version": 1}
    payload = compose("asset", subjects, members, issuer=lab.institution, hub="other.example")
    with hub.client(lab) as client, pytest.raises(Rejected) as caught:
        client.post_statement(sign(lab.key("targets"), payload))
    assert caught.value.code == "E_HUB"


# --- attachments --------------------------------------------------------------------------------------------


def test_an_attachment_must_be_a_subject_by_name_and_digest(hub: HubInProcess, lab: Home) -> None:
    croissant = b'{"@type":"sc:Dataset"}'
    raw = dataset(lab, "with-croissant", croissant)
    with hub.client(lab) as client:
        for files in ({"croissant.json": b"other"}, {"other.json": croissant}):
            with pytest.raises(Refused) as caught:
                client.post_statement(raw, files)
            assert caught.value.field == "attachments"
        with pytest.raises(Unchecked):
            client.statement(open_envelope(raw).id)  # nothing half done
        client.post_statement(raw, {"croissant.json": croissant})
    with hub.hub.database.session_scope(write=False) as session:
        assert session.get_one(AttachmentRow, sha256_hex(croissant)).data == croissant


def test_an_attachment_that_is_too_large_or_no_base64_is_refused(hub: HubInProcess, lab: Home) -> None:
    big = b"x" * (hub.settings.attachment_limit + 1)
    with hub.client(lab) as client, pytest.raises(Refused) as caught:
        client.post_statement(dataset(lab, "big", big), {"croissant.json": big})
    assert (caught.value.status, caught.value.field) == (413, "attachments")
    with hub.client(lab) as client:
        token = client.create_token("raw", ["write"]).token
    body = {"bundle": dataset(lab, "b64").decode(), "attachments": {"croissant.json": "*"}}
    with hub.http(token=token) as http:
        answer = http.post("/api/v1/statements", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "attachments")


# --- reading ------------------------------------------------------------------------------------------------


def test_a_grant_is_read_by_its_parties_auditors_and_the_operator_alone(
    hub: HubInProcess, lab: Home, firm: Home, auditor: Home
) -> None:
    other = hub.enrol("other.example", "firm")
    post(hub, lab, dataset(lab, "granted"))
    one = post(hub, lab, grant(lab, "granted", firm.institution))
    subject = digest(lab.institution + "granted")
    for home in (lab, firm, auditor, hub.operator):
        with hub.client(home) as client:
            assert client.statement(one).kind == "grant"
            assert one in [record.id for record in client.all_statements(kind="grant", subject=subject)]
    with hub.client(other) as client:
        with pytest.raises(Unchecked) as caught:
            client.statement(one)
        assert caught.value.code == "E_NOT_FOUND"
        assert list(client.all_statements(kind="grant", subject=subject)) == []
        assert len(list(client.all_statements(kind="asset", subject=subject))) == 1


def test_pages_follow_the_log_without_gap_or_repetition(hub: HubInProcess, lab: Home) -> None:
    for number in range(12):
        post(hub, lab, dataset(lab, f"page{number}"))
    with hub.client(lab) as client:
        pages, cursor = [], None
        while True:
            page = client.statements(kind="asset", issuer=lab.institution, cursor=cursor)
            assert len(page.items) <= 5
            pages.append([record.index for record in page.items])
            cursor = page.next
            if cursor is None:
                break
        flat = [index for page in pages for index in page]
        assert len(pages) >= 3 and flat == sorted(set(flat))
        assert flat == [
            record.index for record in client.all_statements(kind="asset", issuer=lab.institution)
        ]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("kind=poem", "kind"),
        ("cursor=-1", "cursor"),
        ("cursor=x", "cursor"),
        ("cursor=" + "9" * 30, "cursor"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_by_name(
    hub: HubInProcess, lab: Home, query: str, field: str
) -> None:
    with hub.client(lab) as client:
        token = client.create_token("q", ["read"]).token
    with hub.http(token=token) as http:
        answer = http.get(f"/api/v1/statements?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_every_logged_kind_can_be_asked_for(hub: HubInProcess, lab: Home) -> None:
    with hub.client(lab) as client:
        for kind in KINDS:
            assert isinstance(client.statements(kind=kind).items, list)


@pytest.mark.parametrize("name", ["0" * 64, "nothing", "..%2f..%2fetc", "A" * 64])
def test_a_statement_that_is_not_there_is_not_found(hub: HubInProcess, lab: Home, name: str) -> None:
    with hub.client(lab) as client, pytest.raises(Unchecked) as caught:
        client.statement(name)
    assert caught.value.code == "E_NOT_FOUND"


# --- packs --------------------------------------------------------------------------------------------------


def test_a_pack_of_a_dataset_verifies_offline(
    hub: HubInProcess, lab: Home, firm: Home, tmp_path: Path
) -> None:
    post(hub, lab, dataset(lab, "packed"))
    for home in (lab, hub.operator):
        with hub.client(home) as client:
            post_status(home, client, next_update=int(time.time()) + 3600)
    asset = digest(lab.institution + "packed")
    with hub.client(firm) as client:
        raw = client.pack(asset)
    write_pack(tmp_path / "pack", unzip_pack(raw))
    lab.pin(firm.institution, firm.ring.pin)
    report = verify(tmp_path / "pack", lab.trust, now=int(time.time()))
    assert report.ok, report


def test_a_pack_proves_that_the_log_continues_the_one_that_was_saved(
    hub: HubInProcess, lab: Home, tmp_path: Path
) -> None:
    asset = digest(lab.institution + "packed2")
    post(hub, lab, dataset(lab, "packed2"))
    with hub.client(lab) as client:
        first = unzip_pack(client.pack(asset))
        size = int(first["checkpoint"].split(b"\n")[1])
        post(hub, lab, dataset(lab, "packed3"))
        second = unzip_pack(client.pack(asset, from_size=size))
        assert "consistency.json" not in first and "consistency.json" in second
        with pytest.raises(Refused) as caught:
            client.pack(asset, from_size=10_000)
    assert caught.value.field == "from_size"


def test_a_pack_shows_no_grant_of_another_asset(hub: HubInProcess, lab: Home, firm: Home) -> None:
    post(hub, lab, dataset(lab, "one"))
    post(hub, lab, dataset(lab, "two"))
    secret = post(hub, lab, grant(lab, "two", firm.institution))
    with hub.client(lab) as client:
        names = zipfile.ZipFile(io.BytesIO(client.pack(digest(lab.institution + "one")))).namelist()
    assert not any(secret in name for name in names)


@pytest.mark.parametrize("asset", ["0" * 64, "nothing"])
def test_there_is_no_pack_of_an_asset_that_is_not_there(hub: HubInProcess, lab: Home, asset: str) -> None:
    with hub.client(lab) as client, pytest.raises(Unchecked) as caught:
        client.pack(asset)
    assert caught.value.code == "E_NOT_FOUND"


# --- the public log -----------------------------------------------------------------------------------------


def test_the_log_is_read_by_anybody_as_files_that_never_change(hub: HubInProcess, lab: Home) -> None:
    made = hub.hub.ledger.publish()
    assert made is not None
    with hub.http() as http:
        head = http.get("/log/checkpoint")
        assert head.content == made.note and head.headers["cache-control"] == "no-cache"
        width = f".p/{made.size}" if made.size < 256 else ""
        for path in (f"checkpoints/{made.size}", f"tile/0/000{width}", f"tile/entries/000{width}"):
            answer = http.get(f"/log/{path}")
            assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"], path
            assert answer.headers["x-content-type-options"] == "nosniff"
            head_only = http.head(f"/log/{path}")
            assert head_only.status_code == 200 and not head_only.content
        ring = http.get(f"/keyrings/{lab.institution}/1.root.json")
        assert sha256_hex(ring.content) == lab.ring.pin


@pytest.mark.parametrize(
    "path",
    [
        "/log/tile/0/999",
        "/log/../statements/00/x",
        "/log/%2e%2e/statements/aa/x.sigstore.json",
        "/log/statements/aa",
        "/log/checkpoints/x",
        "/log/tile/entries/0000",
        "/keyrings/lab-a.example/%2e%2e%2f%2e%2e%2flog/checkpoint",
        "/keyrings/lab-a.example/2.root.json",
        "/log/",
        "/keyrings/",
    ],
)
def test_nothing_but_the_log_is_public(hub: HubInProcess, path: str) -> None:
    with hub.http() as http:
        answer = http.get(path)
    assert answer.status_code == 404 and "E_NOT_FOUND" in answer.text


def test_a_logged_statement_is_what_was_sent(hub: HubInProcess, lab: Home) -> None:
    raw = dataset(lab, "same-bytes")
    one = post(hub, lab, raw)
    assert read_statement(open_envelope(raw)).id == one


def test_a_client_sees_the_same_records_as_the_rows(hub: HubInProcess, lab: Home) -> None:
    with hub.client(hub.operator) as client:
        assert isinstance(client, HubClient)
        records = list(client.all_statements())
    assert [record.index for record in records] == list(range(len(records)))
