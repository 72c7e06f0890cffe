"""The members that we require of documents whose form others own: OMS, SLSA, in-toto.

Each check takes a predicate and raises ``Rejected`` (``E_STATEMENT``) when a member that our verifier leans
on is missing or malformed. Members that we do not name may stand beside them, as their owners allow.
"""

import re
from collections.abc import Callable
from typing import Any

from storage import members as m
from storage.errors import Rejected

OMS = "https://model_signing/signature/v1.0"
PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
RELEASE = "https://in-toto.io/attestation/release/v0.2"
VERDICT = "https://slsa.dev/verification_summary/v1"

BUILD_TYPE = "https://fedhub.dev/federated-training/v1"
BUILDER = "https://fedhub.dev/coordinator/v1"
LEVELS = ("FEDHUB_APPROVED", "FEDHUB_GRANTED", "FEDHUB_RELEASE", "FEDHUB_SIGNED", "FEDHUB_TRAINED")
CONFIGURATION = ("config", "consent", "dataset")  # names of the digests in a test result's configuration

Check = Callable[[dict[str, Any]], None]
_PURL = re.compile(
    r"pkg:generic/(?P<name>[^@?#]+)@(?P<version>[1-9][0-9]{0,8})\?repository_url=https://(?P<hub>[a-z0-9.-]+)"
)


def _member(value: Any, path: str, check: m.Check) -> Any:
    """The member at a dotted path, after its check."""
    walked = ""
    for name in path.split("."):
        if not isinstance(value, dict):
            raise m.refuse(walked or "predicate", "an object", value)
        if name not in value:
            raise Rejected(m.E, f"{walked or 'predicate'}: member {name} is missing")
        value, walked = value[name], f"{walked}.{name}" if walked else name
    check(value, walked)
    return value


def _is(expected: Any) -> m.Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not type(expected) or value != expected:
            raise m.refuse(name, repr(expected), value)

    return check


def _object(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        raise m.refuse(name, "an object", value)


def _described(value: Any, name: str) -> None:
    """An in-toto resource descriptor that has a SHA-256 digest."""
    _object(value, name)
    digests = value.get("digest")
    if not isinstance(digests, dict):
        raise m.refuse(f"{name}.digest", "an object", digests)
    m.digest(digests.get("sha256"), f"{name}.digest.sha256")


def check_oms_shape(predicate: dict[str, Any]) -> None:
    """``serialization`` and ``resources`` stand; ``storage.manifests.check_oms`` holds them to a manifest."""
    _member(predicate, "serialization", _object)

    def resource(value: Any, name: str) -> None:
        _object(value, name)
        _text(value.get("name"), f"{name}.name")
        m.line(value.get("algorithm"), f"{name}.algorithm")
        m.line(value.get("digest"), f"{name}.digest")

    _member(predicate, "resources", m.list_of(resource, least=1))


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise m.refuse(name, "a text of 1 to 1024 characters", value)


def check_provenance(predicate: dict[str, Any]) -> None:
    """SLSA provenance of a version that a federated run made."""
    _member(predicate, "buildDefinition.buildType", _is(BUILD_TYPE))
    _member(
        predicate,
        "buildDefinition.externalParameters",
        m.exact(m.Member("plan", m.digest, "statement id of the plan")),
    )
    _member(predicate, "buildDefinition.resolvedDependencies", m.list_of(_described, least=1))
    _member(predicate, "runDetails.builder.id", _is(BUILDER))


def check_test_result(predicate: dict[str, Any]) -> None:
    """An evaluation: its result, its metrics as names of tests, and what it was run with."""
    _member(predicate, "result", m.one_of("PASSED", "WARNED", "FAILED"))
    configuration = _member(predicate, "configuration", m.list_of(_described, least=1))
    names = [entry.get("name") for entry in configuration]
    for name in CONFIGURATION:
        if names.count(name) != 1:
            raise m.refuse("configuration", f"one digest named {name}", names)
    for name in ("passedTests", "warnedTests", "failedTests"):
        if name in predicate:
            _member(predicate, name, m.list_of(m.line))


def release_purl(name: str, version: int, hub: str) -> str:
    """The package URL of a release."""
    return f"pkg:generic/{name}@{version}?repository_url=https://{hub}"


def read_purl(purl: Any) -> tuple[str, int, str]:
    """Asset name, version and hub of a release's package URL."""
    match = _PURL.fullmatch(purl) if isinstance(purl, str) else None
    if match is None:
        raise m.refuse("purl", "pkg:generic/<name>@<version>?repository_url=https://<hub>", purl)
    m.asset_name(match["name"], "purl")
    m.institution(match["hub"], "purl")
    return match["name"], int(match["version"]), match["hub"]


def check_release(predicate: dict[str, Any]) -> None:
    """A release names the same asset as package and as package URL."""
    name, _, _ = read_purl(_member(predicate, "purl", _text))
    _member(predicate, "packageId", _is(name))


def check_verdict(predicate: dict[str, Any]) -> None:
    """One institution's opinion of an asset; an approval of a release is one."""
    _member(predicate, "verifier.id", m.line)
    _member(predicate, "timeVerified", m.time)
    _member(predicate, "resourceUri", m.asset_name)
    _member(predicate, "policy.digest.sha256", m.digest)
    _member(predicate, "inputAttestations", m.list_of(_described))
    _member(predicate, "verificationResult", m.one_of("PASSED", "FAILED"))
    levels = _member(predicate, "verifiedLevels", m.list_of(m.one_of(*LEVELS)))
    if len(set(levels)) != len(levels):
        raise m.refuse("verifiedLevels", "each level once", levels)
