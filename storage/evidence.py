"""Evidence: signed statements in log order, and the rings whose keys signed them.

One ``Evidence`` serves two readers. The offline verifier fills it from a pack, with statements that passed
steps V6 to V9; the hub keeps one in memory and adds each statement that it admits. The rules (steps V10 to
V15) are functions over it, in ``keys_in_force``, ``status_lists``, ``asset_versions``, ``grants``,
``training_record`` and ``links``, so that what the hub admits is what an auditor accepts.

Adding an entry costs the same however many are there. Nothing here is locked: whoever shares an ``Evidence``
between threads holds a lock around ``add`` and around a rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import Misuse
from storage.keyring import KeyRing
from storage.manifests import Manifest
from storage.signing import Envelope, PublicKey
from storage.statements import KINDS, Statement

NEVER = 1 << 62  # an index that no log reaches


@dataclass(frozen=True)
class Entry:
    """One statement in the log.

    Attributes:
        statement: what it says.
        institution: whose ring holds the key that signed it.
        hint: that key's hint.
        index: its position in the log.
        envelope: the bundle that it came in.
    """

    statement: Statement
    institution: str
    hint: str
    index: int
    envelope: Envelope

    @property
    def id(self) -> str:
        """The statement's id."""
        return self.statement.id

    @property
    def kind(self) -> str:
        """Short name of the statement's kind."""
        return self.statement.kind

    @property
    def subject(self) -> str:
        """Digest of the first subject."""
        return self.statement.subject

    @property
    def says(self) -> dict[str, Any]:
        """The predicate; read-only."""
        return self.statement.predicate

    def __str__(self) -> str:
        return f"{self.kind} {self.id[:12]} of {self.institution}"


class Evidence:
    """Statements of one log in its order, with lookups by id, kind, subject, issuer and plan.

    Attributes:
        hub: origin of the log.
        operator: the institution that runs the hub.
        rings: institution -> its ring, each checked against its pin.
        whole: True when nothing of the log is missing here, as in the hub. A pack is a part of the log,
            so that what is absent from it may have been withheld.
        size: number of entries of the log; what is logged next gets this index.
        manifests: asset id -> manifest, for the assets whose files the reader may see.
    """

    def __init__(self, hub: str, operator: str, rings: dict[str, KeyRing], *, whole: bool = False) -> None:
        self.hub = hub
        self.operator = operator
        self.rings = rings
        self.whole = whole
        self.size = 0
        self.manifests: dict[str, Manifest] = {}
        self._by_id: dict[str, Entry] = {}
        self._by_kind: dict[str, list[Entry]] = {}
        self._related: dict[tuple[str, str, str], list[Entry]] = {}
        self._nonces: dict[tuple[str, str], str] = {}
        self._keys: dict[str, tuple[str, PublicKey]] = {}
        self._void_from: dict[str, int] | None = {}

    def add(self, entry: Entry) -> None:
        """Take in the next statement of the log.

        Raises:
            Misuse: it is not logged after all that are here, or it is here already.
        """
        if entry.index < self.size or entry.id in self._by_id:
            raise Misuse("E_MISUSE", f"{entry}: entries are added once each, in log order")
        self.size = entry.index + 1
        self._by_id[entry.id] = entry
        self._by_kind.setdefault(entry.kind, []).append(entry)
        relations = [("subject", entry.subject), ("issuer", entry.institution)]
        plan = plan_of(entry)
        if plan is not None:
            relations.append(("plan", plan))
        for relation, value in relations:
            self._related.setdefault((entry.kind, relation, value), []).append(entry)
        if KINDS[entry.kind].own:
            self._nonces.setdefault((entry.institution, entry.says["nonce"]), entry.id)
        if entry.kind == "revocation" and entry.says["target"] == "key":
            self._void_from = None

    def fork(self) -> "Evidence":
        """A copy that grows on its own: what may yet be undone is added there and not here."""
        copy = Evidence(self.hub, self.operator, dict(self.rings), whole=self.whole)
        copy.size = self.size
        copy.manifests = dict(self.manifests)
        copy._by_id = dict(self._by_id)
        copy._by_kind = {kind: list(entries) for kind, entries in self._by_kind.items()}
        copy._related = {relation: list(entries) for relation, entries in self._related.items()}
        copy._nonces = dict(self._nonces)
        copy._void_from = None if self._void_from is None else dict(self._void_from)
        return copy

    # --- lookups --------------------------------------------------------------------------------------------

    def get(self, statement_id: str) -> Entry | None:
        """The entry with this id, whether or not it still counts."""
        return self._by_id.get(statement_id)

    def by_kind(self, kind: str) -> Sequence[Entry]:
        """All entries of one kind in log order, whether or not they still count."""
        return self._by_kind.get(kind, [])

    def standing(self, statement_id: object, kind: str) -> Entry | None:
        """The entry with this id, when it is of this kind and its signature counts."""
        entry = self._by_id.get(statement_id) if isinstance(statement_id, str) else None
        return entry if entry and entry.kind == kind and not self.is_void(entry) else None

    def find(
        self, kind: str, *, subject: str | None = None, issuer: str | None = None, plan: str | None = None
    ) -> list[Entry]:
        """Entries of one kind whose signatures count, in log order.

        Args:
            subject: only those about this digest.
            issuer: only those of this institution.
            plan: only those that name this plan.
        """
        wanted = {"subject": subject, "issuer": issuer, "plan": plan}
        lists = [
            self._related.get((kind, relation, value), ())
            for relation, value in wanted.items()
            if value is not None
        ]
        shortest = min(lists, key=len) if lists else self.by_kind(kind)
        return [
            entry
            for entry in shortest
            if (subject is None or entry.subject == subject)
            and (issuer is None or entry.institution == issuer)
            and (plan is None or plan_of(entry) == plan)
            and not self.is_void(entry)
        ]

    def used_nonce(self, institution: str, nonce: str) -> str | None:
        """Id of the statement in which this institution used this nonce first."""
        return self._nonces.get((institution, nonce))

    def find_key(self, hint: str) -> tuple[str, PublicKey] | None:
        """The institution whose ring holds this key in any role or version, and the key."""
        if hint not in self._keys:
            # rings may have been replaced by newer ones since the last look
            self._keys = {
                known: (name, key)
                for name, ring in self.rings.items()
                for version in ring.versions.values()
                for keys in version.roles.values()
                for known, key in keys.items()
            }
        return self._keys.get(hint)

    # --- keys taken back ------------------------------------------------------------------------------------

    def is_void(self, entry: Entry) -> bool:
        """True when the key that signed this entry was revoked from an index at or before it."""
        return entry.index >= self.void_from(entry.hint)

    def void_from(self, hint: str) -> int:
        """The log index from which signatures of this key are void; ``NEVER`` while nobody revoked it.

        A revocation counts when the key is in the ring of the institution that signed it. The last ones are
        read first: a revocation signed by a stolen key is void itself once the theft is revoked from before
        it.
        """
        if self._void_from is None:
            found: dict[str, int] = {}
            for entry in reversed(self.by_kind("revocation")):
                if entry.says["target"] != "key" or entry.index >= found.get(entry.hint, NEVER):
                    continue
                holder = self.find_key(entry.subject)
                if holder and holder[0] == entry.institution:
                    start = entry.says.get("fromIndex", entry.index)
                    found[entry.subject] = min(start, found.get(entry.subject, NEVER))
            self._void_from = found
        return self._void_from.get(hint, NEVER)


def plan_of(entry: Entry) -> str | None:
    """Id of the plan that a statement is about, when it names one."""
    says = entry.says
    if entry.kind == "grant":
        found = says["conditions"].get("plan")
    elif entry.kind == "provenance":
        found = says["buildDefinition"]["externalParameters"]["plan"]
    elif entry.kind == "verdict":
        found = says["policy"]["digest"]["sha256"]
    elif entry.kind in ("asset", "receipt", "refusal", "round"):
        found = says.get("plan")
    else:
        found = None
    return found if isinstance(found, str) else None
