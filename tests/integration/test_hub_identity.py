"""Logins, access tokens and personal tokens against a whole hub."""

import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import pytest
from sqlmodel import select

from federation.home import Home
from federation.rotation import finish_rotation, prepare_rotation
from hub.services.identity import ASSERTION_TYPE
from hub.tables import InstitutionRow, PersonalTokenRow, SeenAssertionRow
from storage.errors import Refused, Unchecked
from storage.signing import key_hint, new_private_key
from tests.databases import DATABASES, database_url
from tests.hubs import ORIGIN, HubInProcess, running_hub

Answer = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module", params=DATABASES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubInProcess]:
    folder = tmp_path_factory.mktemp("hub")
    with (
        database_url(request.param, folder) as url,
        running_hub(folder, database_url=url, logins_per_minute=0) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def lab(hub: HubInProcess) -> Home:
    return hub.enrol("lab-a.example")


def assertion(
    home: Home, *, role: str = "targets", header: dict[str, Any] | None = None, **claims: Any
) -> str:
    now, key = int(time.time()), home.key(role)
    named = {
        "iss": home.institution,
        "sub": home.institution,
        "aud": ORIGIN,
        "exp": now + 50,
        "jti": jwt_id(),
    }
    named.update(claims)
    named = {name: value for name, value in named.items() if value is not None}
    head = {"kid": key_hint(key.public_key()), **(header or {})}
    return jwt.encode(named, key, algorithm="ES256", headers=head)


def jwt_id() -> str:
    return sha256(str(time.perf_counter_ns()).encode()).hexdigest()[:32]


def log_in(hub: HubInProcess, assertion: str, **form: str) -> Answer:
    sent = {
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
        **form,
    }
    with hub.http() as http:
        answer = http.post("/api/v1/token", data=sent)
    return answer.status_code, answer.json()


def whoami(hub: HubInProcess, token: str) -> Answer:
    with hub.http(token=token) as http:
        answer = http.get("/api/v1/whoami")
    return answer.status_code, answer.json()


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_a_ring_key_in_force_gets_a_token_that_says_its_role(hub: HubInProcess, lab: Home, role: str) -> None:
    status, granted = log_in(hub, assertion(lab, role=role))
    assert (status, granted["token_type"]) == (200, "Bearer") and granted["expires_in"] <= 300
    status, me = whoami(hub, granted["access_token"])
    assert status == 200
    assert (me["institution"], me["role"], me["by"], me["key_role"]) == (
        "lab-a.example",
        "lab",
        "access",
        role,
    )


@pytest.mark.parametrize("role", ["root", "timestamp"])
def test_root_and_status_keys_cannot_log_in(hub: HubInProcess, lab: Home, role: str) -> None:
    status, problem = log_in(hub, assertion(lab, role=role))
    assert (status, problem["code"]) == (401, "E_LOGIN") and role in problem["detail"]


@pytest.mark.parametrize(
    ("claims", "word"),
    [
        ({"aud": "other.example"}, "audience"),
        ({"aud": [ORIGIN, "other.example"]}, "audience"),
        ({"iss": "owner.example"}, "iss"),
        ({"sub": "owner.example"}, "sub"),
        ({"exp": int(time.time()) + 3600}, "expire"),
        ({"exp": int(time.time()) - 1}, "expire"),
        ({"exp": None}, "expire"),
        ({"exp": "soon"}, "expire"),
        ({"jti": None}, "jti"),
        ({"jti": "short"}, "jti"),
        ({"jti": ["x" * 20]}, "jti"),
    ],
)
def test_an_assertion_that_breaks_a_rule_is_refused_by_that_rule(
    hub: HubInProcess, lab: Home, claims: dict[str, Any], word: str
) -> None:
    if isinstance(claims.get("iss"), str):
        # PyJWT refuses to write some of these itself; all of those here it writes.
        assert claims["iss"] != lab.institution
    status, problem = log_in(hub, assertion(lab, **claims))
    assert (status, problem["code"]) == (401, "E_LOGIN")
    assert word in problem["detail"], problem


def test_an_assertion_is_good_only_once(hub: HubInProcess, lab: Home) -> None:
    once = assertion(lab)
    assert log_in(hub, once)[0] == 200
    status, problem = log_in(hub, once)
    assert status == 401 and "used before" in problem["detail"]


def test_a_used_assertion_is_remembered_until_it_would_have_expired(hub: HubInProcess, lab: Home) -> None:
    log_in(hub, assertion(lab))
    with hub.hub.database.session_scope() as session:
        session.add(SeenAssertionRow(digest="0" * 64, expires_at=1))
    log_in(hub, assertion(lab))
    with hub.hub.database.session_scope(write=False) as session:
        rows = session.exec(select(SeenAssertionRow)).all()
    assert all(row.expires_at > time.time() - 5 for row in rows) and len(rows) >= 2


def test_a_key_of_no_ring_is_refused(hub: HubInProcess, lab: Home) -> None:
    stranger = new_private_key()
    now = int(time.time())
    claims = {"iss": lab.institution, "sub": lab.institution, "aud": ORIGIN, "exp": now + 50, "jti": jwt_id()}
    own_hint = jwt.encode(
        claims, stranger, algorithm="ES256", headers={"kid": key_hint(stranger.public_key())}
    )
    lab_hint = jwt.encode(
        claims, stranger, algorithm="ES256", headers={"kid": key_hint(lab.key("targets").public_key())}
    )
    assert "no key of a ring" in log_in(hub, own_hint)[1]["detail"]
    assert "signature" in log_in(hub, lab_hint)[1]["detail"]


def test_an_unsigned_or_symmetric_assertion_is_refused(hub: HubInProcess, lab: Home) -> None:
    now, hint = int(time.time()), key_hint(lab.key("targets").public_key())
    claims = {"iss": lab.institution, "sub": lab.institution, "aud": ORIGIN, "exp": now + 50, "jti": jwt_id()}
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": hint})
    symmetric = jwt.encode(claims, "x" * 40, algorithm="HS256", headers={"kid": hint})
    for forged in (unsigned, symmetric):
        status, problem = log_in(hub, forged)
        assert status == 401 and "ES256" in problem["detail"]


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "x" * 5000, "e30.e30.", "W10.W10.x", "Wzw.e30.x"])
def test_what_is_no_jwt_is_refused_and_not_shown(hub: HubInProcess, lab: Home, text: str) -> None:
    status, problem = log_in(hub, text)
    assert (status, problem["code"]) == (401, "E_LOGIN")


def test_a_header_nested_a_thousand_levels_deep_is_only_a_bad_login(hub: HubInProcess) -> None:
    import base64

    deep = base64.urlsafe_b64encode(b"[" * 2900).decode().rstrip("=")
    assert log_in(hub, f"{deep}.{deep[:8]}.x")[0] == 401
    assert whoami(hub, f"{deep}.{deep[:8]}.x")[0] == 401


@pytest.mark.parametrize(
    "form", [{"grant_type": "password"}, {"client_assertion_type": "urn:x"}], ids=["grant", "assertion"]
)
def test_another_kind_of_login_is_refused_by_its_field(
    hub: HubInProcess, lab: Home, form: dict[str, str]
) -> None:
    status, problem = log_in(hub, assertion(lab), **form)
    assert (status, problem["field"]) == (422, next(iter(form)))


def test_a_login_that_is_no_form_is_refused(hub: HubInProcess) -> None:
    with hub.http() as http:
        answer = http.post("/api/v1/token", json={"grant_type": "client_credentials"})
    assert (answer.status_code, answer.json()["field"]) == (422, "Content-Type")


def test_an_institution_that_waits_for_approval_cannot_log_in(hub: HubInProcess) -> None:
    waiting = hub.enrol("waiting.example", approve=False)
    assert log_in(hub, assertion(waiting))[0] == 401


def test_a_suspended_member_s_tokens_end_at_once(hub: HubInProcess) -> None:
    firm = hub.enrol("firm-x.example", "firm")
    with hub.client(firm) as client:
        token = client.create_token("cli", ["read"]).token
        assert token is not None and client.whoami().role == "firm"
    with hub.hub.database.session_scope() as session:
        member = session.get_one(InstitutionRow, "firm-x.example")
        member.state = "suspended"
        session.add(member)
    assert whoami(hub, token)[0] == 401
    assert log_in(hub, assertion(firm))[0] == 401


def test_a_rotated_key_logs_in_and_its_predecessor_no_longer_does(hub: HubInProcess) -> None:
    home = hub.enrol("rotating.example")
    old = assertion(home, jti=jwt_id())
    root, statement = prepare_rotation(home, "targets")
    with hub.client(home) as client:
        assert client.update_keyring(home.institution, root, statement).ring_version == 2
    finish_rotation(home, "targets")
    assert log_in(hub, old)[0] == 401
    assert log_in(hub, assertion(home))[0] == 200


def test_a_revoked_key_no_longer_logs_in(hub: HubInProcess) -> None:
    home = hub.enrol("robbed.example")
    hint = key_hint(home.key("snapshot").public_key())
    bundle = home.sign("revocation", [("key.pem", hint)], {"target": "key", "reason": "compromised"})
    assert log_in(hub, assertion(home, role="snapshot"))[0] == 200
    with hub.client(home) as client:
        client.post_statement(bundle)
    assert log_in(hub, assertion(home, role="snapshot"))[0] == 401
    assert log_in(hub, assertion(home))[0] == 200


# --- access tokens ------------------------------------------------------------------------------------------


def test_an_access_token_ends_by_the_hub_s_clock(
    hub: HubInProcess, lab: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = log_in(hub, assertion(lab))[1]["access_token"]
    later = time.time() + 301
    monkeypatch.setattr(hub.hub.ledger, "_clock", lambda: later)
    status, problem = whoami(hub, token)
    assert (status, problem["code"]) == (401, "E_TOKEN") and "expired" in problem["detail"]


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_a_forged_access_token_is_refused(hub: HubInProcess, lab: Home) -> None:
    good = log_in(hub, assertion(lab))[1]["access_token"]
    claims = jwt.decode(good, options={"verify_signature": False})
    forged = [
        jwt.encode({**claims, "sub": "operator.example"}, "x" * 32, algorithm="HS256"),
        jwt.encode({**claims, "aud": "other/api"}, hub.hub.keys.token_secret, algorithm="HS256"),
        jwt.encode({**claims, "iss": "other"}, hub.hub.keys.token_secret, algorithm="HS256"),
        jwt.encode(claims, hub.hub.keys.token_secret, algorithm="HS512"),
        jwt.encode(claims, "", algorithm="none"),
        good[:-2] + ("AA" if good[-2:] != "AA" else "BB"),
    ]
    for token in forged:
        assert whoami(hub, token)[0] == 401


@pytest.mark.parametrize(
    "header", ["Basic eDp5", "Bearer", "Bearer short", "Bearer " + "x" * 5000, "fhp_" + "x" * 43]
)
def test_what_is_no_bearer_token_is_refused(hub: HubInProcess, header: str) -> None:
    with hub.http() as http:
        answer = http.get("/api/v1/whoami", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["code"]) == (401, "E_TOKEN")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_nobody_known_is_told_to_log_in(hub: HubInProcess) -> None:
    with hub.http() as http:
        answer = http.get("/api/v1/whoami")
    assert (answer.status_code, answer.json()["code"]) == (401, "E_LOGIN")


# --- personal tokens ----------------------------------------------------------------------------------------


def test_a_personal_token_acts_for_its_institution_within_its_scopes(hub: HubInProcess, lab: Home) -> None:
    with hub.client(lab) as client:
        made = client.create_token("laptop", ["read"])
    assert made.token is not None and made.token.startswith("fhp_") and len(made.token) >= 40
    status, me = whoami(hub, made.token)
    assert (status, me["by"], me["scopes"]) == (200, "personal", ["read"]) and me.get("key_role") is None
    with hub.client(token=made.token) as client, pytest.raises(Refused) as caught:
        client.create_token("more", ["read", "write"])
    assert caught.value.code == "E_SCOPE"


def test_a_token_cannot_make_a_stronger_one(hub: HubInProcess, lab: Home) -> None:
    with hub.client(lab) as client:
        writer = client.create_token("writer", ["write"]).token
    with hub.client(token=writer) as client, pytest.raises(Refused) as caught:
        client.create_token("more", ["read", "write"])
    assert (caught.value.code, caught.value.field) == ("E_SCOPE", "scopes")


def test_only_a_digest_of_a_personal_token_is_stored(hub: HubInProcess, lab: Home) -> None:
    with hub.client(lab) as client:
        token = client.create_token("secret", ["read"]).token
    assert token is not None
    with hub.hub.database.session_scope(write=False) as session:
        row = session.exec(select(PersonalTokenRow).where(PersonalTokenRow.name == "secret")).one()
        assert row.digest == sha256(token.encode()).hexdigest()
    for path in hub.folder.rglob("fedhub.db*"):
        assert token.encode() not in path.read_bytes()


def test_a_revoked_or_expired_token_is_refused_by_name(
    hub: HubInProcess, lab: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub.client(lab) as client:
        made, other = (
            client.create_token("old laptop", ["read"]),
            client.create_token("short", ["read"], valid_days=1),
        )
        client.revoke_token(made.id)
        assert made.token and other.token
        assert made.id not in [token.id for token in client.list_tokens()]
        with pytest.raises(Unchecked):
            client.revoke_token(made.id)
    status, problem = whoami(hub, made.token)
    assert status == 401 and "old laptop" in problem["detail"] and "revoked" in problem["detail"]
    monkeypatch.setattr(hub.hub.ledger, "_clock", lambda: time.time() + 86_401)
    assert "expired" in whoami(hub, other.token)[1]["detail"]


def test_tokens_are_told_and_revoked_by_their_own_institution_alone(hub: HubInProcess, lab: Home) -> None:
    other = hub.enrol("other-lab.example")
    with hub.client(lab) as client:
        made = client.create_token("mine", ["read"])
        listed = client.list_tokens()
    assert all(token.token is None for token in listed)
    with hub.client(other) as client:
        assert made.id not in [token.id for token in client.list_tokens()]
        with pytest.raises(Unchecked):
            client.revoke_token(made.id)


def test_the_last_use_of_a_token_is_known_to_the_minute(hub: HubInProcess, lab: Home) -> None:
    with hub.client(lab) as client:
        made = client.create_token("used", ["read"])
        assert made.token is not None
        whoami(hub, made.token)
        listed = {token.id: token for token in client.list_tokens()}
    assert listed[made.id].last_used_at is not None


def test_the_coordinator_s_token_is_no_member_s(hub: HubInProcess) -> None:
    status, problem = whoami(hub, hub.hub.keys.coordinator_token)
    assert (status, problem["code"]) == (403, "E_ACCESS")


def test_guessing_logins_is_slowed_down(tmp_path: Path) -> None:
    with running_hub(tmp_path, logins_per_minute=5) as hub:
        statuses = [log_in(hub, "a.b.c")[0] for _ in range(8)]
        assert statuses == [401] * 5 + [429] * 3
        with hub.client(hub.operator) as client:
            assert client.whoami().role == "operator"  # whoever shares the address is not shut out


def test_a_token_is_revoked_also_while_the_store_is_away(
    hub: HubInProcess, lab: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise Unchecked("E_STORE_AWAY", "the store cannot be reached")

    with hub.client(lab) as client:
        made = client.create_token("leaked", ["read"], valid_days=1)
        monkeypatch.setattr(hub.hub.store, "put", away)
        client.revoke_token(made.id)
    assert whoami(hub, str(made.token))[0] == 401
