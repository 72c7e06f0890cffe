"""The table of all signed documents: what each is called, whose key signs it, and which members it has.

Own kinds (``https://fedhub.dev/``) have the header and exactly the members listed here. Standard kinds
belong to others; for them a check names the members that we require and leaves the rest to their owners.
The order of the table is that of docs/trust.md, section "Kinds".
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from storage import members as m
from storage import standard
from storage.encoding import parse_time
from storage.errors import Rejected, shown
from storage.members import Member

NAMESPACE = "https://fedhub.dev/"
MAX_WINDOW_S = 366 * 86_400
MAX_STATUS_S = 24 * 3_600
ROLES = ("root", "targets", "snapshot", "timestamp")
SITE_ACTIONS = ("evaluate", "statistics", "train")
STATISTICS = "statistics.json"  # by which all sites scale their rows
FIGURES = "figures.json"  # what a site measured


class Subject(NamedTuple):
    """One file that a statement speaks about."""

    name: str
    digest: str


Subjects = tuple[Subject, ...]
Whole = Callable[[Subjects, dict[str, Any]], None]


@dataclass(frozen=True)
class Kind:
    """One kind of signed document.

    Attributes:
        name: short name, unique.
        uri: the in-toto predicateType.
        role: the key ring role whose key must sign it.
        own: True for kinds of this project, which carry the header and are canonical.
        text: what the document is.
        subject: what the first subject is.
        members: members beside the header; empty for standard kinds.
        whole: the rules that take several members, or subjects and members, together.
        logged: False for documents that never enter the transparency log.
    """

    name: str
    uri: str
    role: str
    own: bool
    text: str
    subject: str
    members: tuple[Member, ...]
    whole: Whole
    logged: bool = True


HEADER: tuple[Member, ...] = (
    Member("issuer", m.institution, "the institution whose ring holds the key"),
    Member("hub", m.institution, "the origin of the log"),
    Member("issuedAt", m.time, "when it was signed"),
    Member("nonce", m.nonce, "random, unique per issuer"),
)

_RING_FILE = re.compile(r"[1-9][0-9]{0,8}\.root\.json")
_CODE_FILE = re.compile(r"recipe\.json|[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.fab")


def _wrong(rule: str, found: object) -> Rejected:
    return Rejected("E_STATEMENT", f"{rule}, found {shown(found)}")


def _subjects(subjects: Subjects, *names: str) -> None:
    """Exactly these subjects in this order; an empty name lets the file be called anything."""
    if len(subjects) != len(names) or any(n and n != s.name for s, n in zip(subjects, names, strict=True)):
        wanted = " and ".join(name or "one file" for name in names)
        raise _wrong(f"subject: expected {wanted}", [subject.name for subject in subjects])


def _with_file(subjects: Subjects, first: str, second: str) -> None:
    """One subject, or this one and then the small file ``second``."""
    _subjects(subjects, *((first, second) if len(subjects) == 2 else (first,)))


def _later(predicate: dict[str, Any], first: str, second: str, most_s: int) -> None:
    gap = parse_time(predicate[second]) - parse_time(predicate[first])
    if not 0 < gap <= most_s:
        raise _wrong(f"member {second}: expected 1 to {most_s} seconds after {first}", f"{gap} s")


# --- own kinds: rules over the whole document -----------------------------------------------------


def _keyring(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _subjects(subjects, f"{predicate['version']}.root.json")


def _asset(subjects: Subjects, predicate: dict[str, Any]) -> None:
    dataset = predicate["type"] == "dataset"
    _subjects(subjects, *(("manifest.json", "croissant.json") if dataset else ("manifest.json",)))
    if ("previous" in predicate) != (predicate["version"] > 1):
        raise _wrong("member previous: expected exactly when version > 1", predicate["version"])
    if not dataset and "oms" not in predicate:
        raise Rejected("E_STATEMENT", "predicate: member oms is missing; a model needs its OMS statement")


def _grant(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _subjects(subjects, "manifest.json")
    m.check_conditions(predicate["conditions"], predicate["actions"])
    _later(predicate, "notBefore", "expires", MAX_WINDOW_S)


def _revocation(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _subjects(subjects, "key.pem" if predicate["target"] == "key" else "")


def _status(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _subjects(subjects, "")
    if _RING_FILE.fullmatch(subjects[0].name) is None:
        raise _wrong("subject: expected the newest N.root.json", subjects[0].name)
    _later(predicate, "issuedAt", "nextUpdate", MAX_STATUS_S)
    hints = [key["hint"] for key in predicate["keys"]]
    if any(a >= b for a, b in itertools.pairwise(hints)):
        raise _wrong("member keys: expected strictly ascending hints", hints)


def _plan(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _subjects(subjects, "", "manifest.json", "config.json")
    if _CODE_FILE.fullmatch(subjects[0].name) is None:
        raise _wrong("subject: expected recipe.json or a .fab file first", subjects[0].name)
    m.both_or_neither(predicate)
    pairs = [(entry["institution"], entry["dataset"]) for entry in predicate["participants"]]
    if any(a >= b for a, b in itertools.pairwise(pairs)):
        raise _wrong("member participants: expected strictly ascending institution and dataset", pairs)
    if predicate["minParticipants"] > len(pairs):
        raise _wrong(f"member minParticipants: expected at most {len(pairs)}", predicate["minParticipants"])
    institutions = len({name for name, _ in pairs})
    if predicate["approvals"] > institutions:
        raise _wrong(f"member approvals: expected at most {institutions}", predicate["approvals"])
    if parse_time(predicate["expires"]) <= parse_time(predicate["issuedAt"]):
        raise _wrong("member expires: expected a time after issuedAt", predicate["expires"])


def _order(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _with_file(subjects, "", STATISTICS)
    if len(subjects) > 1 and predicate["action"] == "statistics":
        raise Rejected("E_STATEMENT", "subject: an order for statistics names none that there are already")
    if predicate["input"] != subjects[0].digest:
        raise _wrong("member input: expected the subject's digest", predicate["input"])


def _one_file(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _subjects(subjects, "")


def _round(subjects: Subjects, predicate: dict[str, Any]) -> None:
    _with_file(subjects, "", STATISTICS)


def _receipt(subjects: Subjects, predicate: dict[str, Any]) -> None:
    if predicate["action"] == "train":
        _with_file(subjects, "", STATISTICS)
    elif predicate["action"] == "pull":
        _subjects(subjects, "manifest.json")
    else:
        _with_file(subjects, "manifest.json", FIGURES)
    needed, allowed = ("plan", "round", "input", "examples"), ("epsilon", "delta", "previous")
    if predicate["action"] == "pull":
        extra = [name for name in (*needed, *allowed) if name in predicate]
        if extra:
            raise _wrong("predicate: a receipt of a pull has action and grant only", extra)
        return
    missing = [name for name in needed if name not in predicate]
    if missing:
        raise _wrong("predicate: a receipt under a consent needs plan, round, input and examples", missing)
    m.both_or_neither(predicate)


# --- the tables -----------------------------------------------------------------------------------


def _own(
    name: str, role: str, text: str, subject: str, whole: Whole, *rows: Member, logged: bool = True
) -> Kind:
    return Kind(name, f"{NAMESPACE}{name}/v1", role, True, text, subject, rows, whole, logged)


def _standard(name: str, uri: str, role: str, text: str, subject: str, check: standard.Check) -> Kind:
    def whole(subjects: Subjects, predicate: dict[str, Any]) -> None:
        if subject == "manifest.json" and subjects[0].name != subject:
            raise _wrong(f"subject: expected {subject} first", subjects[0].name)
        check(predicate)

    return Kind(name, uri, role, False, text, subject, (), whole)


_EPSILON = Member("epsilon", m.decimal, "ceiling of the privacy loss, with delta", optional=True)
_DELTA = Member("delta", m.decimal, "stands with epsilon", optional=True)
_PLAN_ID = Member("plan", m.digest, "statement id of the plan")
_ROUND = Member("round", m.integer(1), "number of the round, from 1")

_ALL: tuple[Kind, ...] = (
    _own(
        "keyring",
        "targets",
        "ring version N enters into force",
        "N.root.json",
        _keyring,
        Member("version", m.integer(1), "the ring version"),
    ),
    _own(
        "asset",
        "targets",
        "dataset or model version",
        "manifest.json",
        _asset,
        Member("type", m.one_of("model", "dataset"), "what the asset is"),
        Member("name", m.asset_name, "<issuer>/<path>"),
        Member("version", m.integer(1), "from 1 without gaps"),
        Member("previous", m.digest, "statement id of the version before", optional=True),
        Member("license", m.license_id, "SPDX expression", optional=True),
        Member("oms", m.digest, "statement id of the OMS signature; a model has one", optional=True),
        Member("plan", m.digest, "statement id of the plan whose run made it", optional=True),
    ),
    _own(
        "grant",
        "targets",
        "grant, delegation, consent",
        "manifest.json of the asset",
        _grant,
        Member("grantee", m.institution, "who is allowed"),
        Member("actions", m.ascending(m.one_of("evaluate", "pull", "train"), least=1), "what is allowed"),
        Member("conditions", lambda value, name: None, "the closed set of conditions"),
        Member("notBefore", m.time, "first moment"),
        Member("expires", m.time, "end, at most 366 days after notBefore"),
        Member("depth", m.integer(0, 3), "further delegations allowed"),
        Member("parent", m.digest, "statement id of the grant that this one delegates", optional=True),
    ),
    _own(
        "revocation",
        "targets",
        "revocation of a statement or key",
        "the statement, or key.pem",
        _revocation,
        Member("target", m.one_of("statement", "key"), "what is revoked"),
        Member("reason", m.one_of("withdrawn", "compromised", "superseded", "error"), "why"),
        Member("fromIndex", m.integer(0), "log index from which it is void", optional=True),
    ),
    _own(
        "status",
        "timestamp",
        "status list",
        "newest N.root.json",
        _status,
        Member("sequence", m.integer(0), "grows"),
        Member("nextUpdate", m.time, "at most 24 h after issuedAt"),
        Member("revoked", m.ascending(m.digest), "ids of revoked, unexpired statements"),
        Member(
            "keys",
            m.list_of(
                m.exact(
                    Member("hint", m.digest, "the revoked key"),
                    Member("fromIndex", m.integer(0), "log index from which its signatures are void"),
                )
            ),
            "revoked keys",
        ),
    ),
    _own(
        "plan",
        "targets",
        "training plan",
        "recipe.json or the FAB; then manifest.json; then config.json",
        _plan,
        Member("rounds", m.integer(1), "number of rounds"),
        Member("minParticipants", m.integer(1), "least number of participants in a round"),
        Member("approvals", m.integer(1), "approvals that a release needs"),
        Member("strategy", m.line, "how updates become an aggregate"),
        _EPSILON,
        _DELTA,
        Member(
            "participants",
            m.list_of(
                m.exact(
                    Member("institution", m.institution, "who takes part"),
                    Member("dataset", m.digest, "asset id of its dataset"),
                ),
                least=1,
            ),
            "who takes part with which dataset",
        ),
        Member("expires", m.time, "no round after this"),
    ),
    _own(
        "order",
        "snapshot",
        "the hub's order to one site for one round",
        "the input weights; then statistics.json, if rows are to be scaled by it",
        _order,
        _PLAN_ID,
        Member("site", m.digest, "asset id of the site's dataset"),
        Member("action", m.one_of(*SITE_ACTIONS), "what to do"),
        _ROUND,
        Member("input", m.digest, "digest of the input weights"),
        Member("deadline", m.time, "when the answer must be there"),
        logged=False,
    ),
    _own(
        "round",
        "snapshot",
        "what went into one round's aggregate",
        "the aggregate's weights; then statistics.json, if rows were scaled by it",
        _round,
        _PLAN_ID,
        _ROUND,
        Member("input", m.digest, "digest of the weights that the round started from"),
        Member("receipts", m.list_of(m.digest, least=1), "ids in the order folded in"),
        Member("previous", m.digest, "statement id of the round before", optional=True),
    ),
    _own(
        "refusal",
        "snapshot",
        "a site's signed no to an order",
        "the input weights of the order",
        _one_file,
        Member("order", m.digest, "digest of the order's PAE"),
        _PLAN_ID,
        _ROUND,
        Member("code", m.error_slug, "why"),
    ),
    _own(
        "receipt",
        "snapshot",
        "round receipt, receipt of use",
        "the update sent, then statistics.json; else manifest.json, then figures.json; the second may lack",
        _receipt,
        Member("action", m.one_of("pull", *SITE_ACTIONS), "what was done"),
        Member("grant", m.digest, "statement id of the grant used"),
        Member("plan", m.digest, "statement id of the plan", optional=True),
        Member("round", m.integer(1), "number of the round", optional=True),
        Member("input", m.digest, "digest of the weights received", optional=True),
        Member("examples", m.integer(0), "rows used", optional=True),
        Member("epsilon", m.decimal, "cumulative for this plan, with delta", optional=True),
        _DELTA,
        Member("previous", m.digest, "id of this site's receipt before", optional=True),
    ),
    _standard(
        "oms", standard.OMS, "targets", "OMS model signature", "OMS root digest", standard.check_oms_shape
    ),
    _standard(
        "provenance",
        standard.PROVENANCE,
        "targets",
        "model provenance",
        "manifest.json",
        standard.check_provenance,
    ),
    _standard(
        "test-result",
        standard.TEST_RESULT,
        "snapshot",
        "evaluation result",
        "manifest.json",
        standard.check_test_result,
    ),
    _standard("release", standard.RELEASE, "targets", "release", "manifest.json", standard.check_release),
    _standard("verdict", standard.VERDICT, "targets", "verdict", "manifest.json", standard.check_verdict),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
KIND_OF_URI: dict[str, Kind] = {kind.uri: kind for kind in _ALL}
