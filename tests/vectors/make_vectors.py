"""Makes our own vectors: a bundle of every kind and a key ring with one rotation. Same bytes every time.

``EXAMPLES`` holds one good document per kind, which other tests break in one place at a time.
"""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from storage.encoding import format_time, sha256_hex
from storage.keyring import read_ring
from storage.ringmaker import make_ring
from storage.signing import PrivateKey, sign
from storage.standard import BUILD_TYPE, BUILDER, release_purl
from storage.statements import KINDS, compose, compose_standard

HERE = Path(__file__).parent
# The key of RFC 6979, appendix A.2.5. Everybody knows it.
KEY = ec.derive_private_key(
    0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721, ec.SECP256R1()
)
ISSUER, HUB = "lab-a.example", "hub.example"
NOW = 1_795_644_000  # 2026-11-25T22:00:00Z
NONCE = "01c562fd75a2906b28c2629775c4b168"


def digest(number: int) -> str:
    """A recognisable digest."""
    return f"{number:064x}"


def at(seconds: int) -> str:
    """A time so many seconds after the signing of every example."""
    return format_time(NOW + seconds)


DAY = 86_400
MANIFEST = [("manifest.json", digest(1))]
CONSENT = {
    "code": digest(2),
    "plan": digest(3),
    "maxRounds": 10,
    "minParticipants": 3,
    "epsilon": "4",
    "delta": "0.00001",
}

# short name of the kind -> subjects, members (the whole predicate for standard kinds)
EXAMPLES: dict[str, tuple[list[tuple[str, str]], dict[str, Any]]] = {
    "keyring": ([("2.root.json", digest(4))], {"version": 2}),
    "asset": (
        MANIFEST,
        {
            "type": "model",
            "name": "lab-a.example/m",
            "version": 2,
            "previous": digest(5),
            "oms": digest(6),
            "license": "Apache-2.0",
            "plan": digest(3),
        },
    ),
    "grant": (
        MANIFEST,
        {
            "grantee": "owner.example",
            "actions": ["evaluate", "train"],
            "conditions": CONSENT,
            "notBefore": at(0),
            "expires": at(30 * DAY),
            "depth": 0,
        },
    ),
    "revocation": (
        [("key.pem", digest(7))],
        {"target": "key", "reason": "compromised", "fromIndex": 1830},
    ),
    "status": (
        [("1.root.json", digest(4))],
        {
            "sequence": 41,
            "nextUpdate": at(DAY // 2),
            "revoked": [digest(8), digest(9)],
            "keys": [{"hint": digest(7), "fromIndex": 1830}],
        },
    ),
    "plan": (
        [("recipe.json", digest(2)), ("manifest.json", digest(1)), ("config.json", digest(10))],
        {
            "rounds": 10,
            "minParticipants": 2,
            "approvals": 2,
            "strategy": "FedAvg",
            "epsilon": "8",
            "delta": "0.00001",
            "participants": [
                {"institution": "lab-a.example", "dataset": digest(11)},
                {"institution": "lab-b.example", "dataset": digest(12)},
                {"institution": "lab-c.example", "dataset": digest(13)},
            ],
            "expires": at(30 * DAY),
        },
    ),
    "order": (
        [("weights", digest(14))],
        {
            "plan": digest(3),
            "site": digest(11),
            "action": "train",
            "round": 1,
            "input": digest(14),
            "deadline": at(600),
        },
    ),
    "round": (
        [("weights", digest(15))],
        {
            "plan": digest(3),
            "round": 2,
            "input": digest(14),
            "receipts": [digest(18), digest(16), digest(17)],
            "previous": digest(19),
        },
    ),
    "refusal": (
        [("weights", digest(14))],
        {"order": digest(20), "plan": digest(3), "round": 1, "code": "E_CONSENT"},
    ),
    "receipt": (
        [("update", digest(21))],
        {
            "action": "train",
            "grant": digest(22),
            "plan": digest(3),
            "round": 2,
            "input": digest(14),
            "examples": 1200,
            "epsilon": "2.5",
            "delta": "0.00001",
            "previous": digest(18),
        },
    ),
    "oms": (
        [("m", digest(23))],
        {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
            "resources": [{"name": "model.safetensors", "algorithm": "sha256", "digest": digest(24)}],
        },
    ),
    "provenance": (
        MANIFEST,
        {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"plan": digest(3)},
                "resolvedDependencies": [
                    {"name": "receipt", "digest": {"sha256": digest(18)}},
                    {"name": "round", "digest": {"sha256": digest(19)}},
                ],
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    ),
    "test-result": (
        MANIFEST,
        {
            "result": "PASSED",
            "configuration": [
                {"name": "config", "digest": {"sha256": digest(10)}},
                {"name": "dataset", "digest": {"sha256": digest(11)}},
                {"name": "consent", "digest": {"sha256": digest(22)}},
            ],
            "passedTests": ["auc>=0.90 (0.913) n=120"],
            "failedTests": [],
        },
    ),
    "release": (
        MANIFEST,
        {"purl": release_purl("lab-a.example/m", 2, HUB), "packageId": "lab-a.example/m"},
    ),
    "verdict": (
        MANIFEST,
        {
            "verifier": {"id": "https://fedhub.dev/verifier/v1"},
            "timeVerified": at(0),
            "resourceUri": "lab-a.example/m",
            "policy": {"digest": {"sha256": digest(3)}},
            "inputAttestations": [{"digest": {"sha256": digest(25)}}],
            "verificationResult": "PASSED",
            "verifiedLevels": ["FEDHUB_RELEASE"],
        },
    ),
}


def example_payload(kind: str, subjects: list[tuple[str, str]] | None = None, **changes: Any) -> bytes:
    """The payload of a kind's example with other subjects or members; None takes a member away."""
    usual, members = EXAMPLES[kind]
    members = {name: value for name, value in {**members, **changes}.items() if value is not None}
    files = usual if subjects is None else subjects
    if not KINDS[kind].own:
        return compose_standard(kind, files, members)
    return compose(kind, files, members, issuer=ISSUER, hub=HUB, now=NOW, nonce=NONCE)


def keys_of_ring(first: int) -> dict[str, list[PrivateKey]]:
    """Keys whose private numbers count up from ``first``: two root keys, one of each other role."""
    keys = [ec.derive_private_key(first + index, ec.SECP256R1()) for index in range(5)]
    return {"root": keys[:2], "targets": [keys[2]], "snapshot": [keys[3]], "timestamp": [keys[4]]}


def make_statements() -> str:
    """The text of ``statements.json``."""
    bundles = {kind: json.loads(sign(KEY, example_payload(kind))) for kind in EXAMPLES}
    return json.dumps(bundles, indent=1, sort_keys=True) + "\n"


def make_keyring() -> list[bytes]:
    """``1.root.json`` and ``2.root.json``: the second has new targets and root keys and a threshold of 2."""
    old, new = keys_of_ring(1), keys_of_ring(11)
    first = make_ring(ISSUER, old, version=1, expires_at=NOW + 366 * DAY, signers=old["root"][:1])
    keys = {**old, "root": new["root"], "targets": new["targets"]}
    second = make_ring(
        ISSUER,
        keys,
        version=2,
        expires_at=NOW + 366 * DAY,
        signers=[old["root"][0], *new["root"]],
        root_threshold=2,
        before=read_ring(ISSUER, [first], sha256_hex(first)).newest,
    )
    return [first, second]


if __name__ == "__main__":
    (HERE / "statements.json").write_text(make_statements())
    (HERE / "keyring").mkdir(exist_ok=True)
    for number, raw in enumerate(make_keyring(), start=1):
        (HERE / "keyring" / f"{number}.root.json").write_bytes(raw)
