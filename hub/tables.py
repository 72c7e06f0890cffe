"""Rows of the hub's database.

Times are whole seconds since 1970 (UTC), digests lower-case hex. Everything that an answer acknowledged is in
here; the in-memory evidence (``ledger``) and the files of the log are made from ``statement`` rows alone.
Sections: identity, statements and log, request bookkeeping; then registry, uploads, plans and runs.
"""

from typing import Any

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlmodel import Field, SQLModel

from hub.columns import digest, listed, moment, octets

# --- identity -----------------------------------------------------------------------------------------------


class InstitutionRow(SQLModel, table=True):
    """A member, or one that waits for approval."""

    __tablename__ = "institution"
    name: str = Field(primary_key=True, max_length=253)
    role: str = Field(max_length=16)
    state: str = Field(max_length=16)  # pending, approved, suspended
    pin: str = digest()  # sha256 of 1.root.json
    contact: str = Field(default="", max_length=500)
    keyring_bundle: bytes | None = Field(
        default=None, sa_column=Column(LargeBinary, nullable=True)
    )  # until approved
    joined_at: int = moment()


class RingRow(SQLModel, table=True):
    """One version of an institution's key ring; in force from its statement's index on."""

    __tablename__ = "ring"
    institution: str = Field(foreign_key="institution.name", primary_key=True, max_length=253)
    version: int = Field(primary_key=True)
    root: bytes = octets()
    statement: str | None = digest(default=None, nullable=True)


class InvitationRow(SQLModel, table=True):
    """One invitation; ``digest`` is that of its secret, which is not kept."""

    __tablename__ = "invitation"
    digest: str = digest(primary_key=True)
    institution: str = Field(max_length=253)
    role: str = Field(max_length=16)
    created_at: int = moment()
    expires_at: int = moment()
    used_at: int | None = moment(default=None, nullable=True)


class SiteRow(SQLModel, table=True):
    """One Flower node key of an institution; ``node_id`` is SuperLink's and changes when that starts anew."""

    __tablename__ = "site"
    __table_args__ = (UniqueConstraint("institution", "name"),)
    key_hint: str = digest(primary_key=True)
    institution: str = Field(foreign_key="institution.name", max_length=253)
    name: str = Field(max_length=63)
    public_key: str = Field(sa_type=Text)
    node_id: str | None = Field(default=None, max_length=20, nullable=True)
    online: bool = False
    last_seen: int | None = moment(default=None, nullable=True)
    created_at: int = moment()


class PersonalTokenRow(SQLModel, table=True):
    """A person's token; ``digest`` is that of the token, which is not kept."""

    __tablename__ = "personal_token"
    id: str = Field(primary_key=True, max_length=32)
    institution: str = Field(foreign_key="institution.name", index=True, max_length=253)
    name: str = Field(max_length=64)
    digest: str = digest(unique=True)
    scopes: str = Field(max_length=64)  # space separated
    created_at: int = moment()
    expires_at: int = moment()
    last_used_at: int | None = moment(default=None, nullable=True)
    revoked_at: int | None = moment(default=None, nullable=True)


class SeenAssertionRow(SQLModel, table=True):
    """A login JWT that was used; kept until it would have expired anyway."""

    __tablename__ = "seen_assertion"
    digest: str = digest(primary_key=True)  # of key hint and jti
    expires_at: int = moment(index=True)


# --- statements and log -------------------------------------------------------------------------------------


class StatementRow(SQLModel, table=True):
    """One logged statement. ``log_index`` has no gaps; row and index are written in one transaction."""

    __tablename__ = "statement"
    id: str = digest(primary_key=True)
    log_index: int = moment(unique=True)
    kind: str = Field(max_length=16, index=True)  # short name, storage.statements.KINDS
    issuer: str = Field(max_length=253, index=True)
    hint: str = digest()  # of the signing key
    plan: str | None = digest(default=None, nullable=True, index=True)
    audience: str = Field(max_length=8)  # members, parties
    issued_at: int | None = moment(default=None, nullable=True)  # standard kinds bear no time
    logged_at: int = moment()
    bundle: bytes = octets()
    leaf: bytes = octets()


class StatementSubjectRow(SQLModel, table=True):
    """A digest that a statement is about."""

    __tablename__ = "statement_subject"
    statement: str = Field(
        sa_column=Column(String(64), ForeignKey("statement.id", ondelete="CASCADE"), primary_key=True)
    )
    digest: str = digest(primary_key=True, index=True)


class StatementPartyRow(SQLModel, table=True):
    """An institution that may read a statement whose audience is its parties."""

    __tablename__ = "statement_party"
    statement: str = Field(
        sa_column=Column(String(64), ForeignKey("statement.id", ondelete="CASCADE"), primary_key=True)
    )
    institution: str = Field(primary_key=True, max_length=253, index=True)


class AttachmentRow(SQLModel, table=True):
    """A small file that a statement names as a subject: Croissant, recipe, config."""

    __tablename__ = "attachment"
    sha256: str = digest(primary_key=True)
    name: str = Field(max_length=255)
    data: bytes = octets()


class LogSequenceRow(SQLModel, table=True):
    """One row (id 1): the next index. Whoever appends locks it, so that indexes follow commits."""

    __tablename__ = "log_sequence"
    id: int = Field(primary_key=True)
    next_index: int = moment()


class LogHeadRow(SQLModel, table=True):
    """One row (id 1): what the published checkpoint says. Whoever publishes locks it."""

    __tablename__ = "log_head"
    id: int = Field(primary_key=True)
    size: int = moment()
    note: str = Field(sa_type=Text)  # the signed checkpoint, empty for size 0
    published_at: int = moment()


# --- request bookkeeping ------------------------------------------------------------------------------------


class AnswerRow(SQLModel, table=True):
    """The answer to a creating request, by its Idempotency-Key."""

    __tablename__ = "answer"
    __table_args__ = (Index(None, "created_at"),)
    caller: str = Field(primary_key=True, max_length=253)
    key: str = digest(primary_key=True)  # of the header's text
    request: str = digest()  # of path and body
    body: bytes | None = Field(
        default=None, sa_column=Column(LargeBinary, nullable=True)
    )  # None: told only once
    created_at: int = moment()


# --- registry, uploads, plans and runs ----------------------------------------------------------------------


class BlobRow(SQLModel, table=True):
    """Bytes that somebody checked against their whole digest. Without a row, an object is nobody's word."""

    __tablename__ = "blob"
    sha256: str = digest(primary_key=True)
    size: int = moment(index=True)
    key: str = Field(max_length=255)  # where they lie in the store
    parts: list[str] | None = listed(nullable=True)  # digests of the 32 MiB parts of a larger file
    checked_by: str = Field(max_length=8)  # store, hub
    content: str | None = Field(
        default=None, max_length=16, nullable=True
    )  # services.formats, once looked at
    created_at: int = moment()


class UploadRow(SQLModel, table=True):
    """Bytes that somebody announced. Stored ones stay: they say who may use the blob."""

    __tablename__ = "upload"
    __table_args__ = (Index(None, "uploader", "sha256"), Index(None, "state", "expires_at"))
    id: str = Field(primary_key=True, max_length=32)
    uploader: str = Field(max_length=253)  # institution, or `coordinator`
    sha256: str = digest(index=True)
    size: int = moment()
    parts: list[str] | None = listed(nullable=True)
    plan: str | None = digest(default=None, nullable=True, index=True)  # an update or aggregate of its run
    key: str = Field(max_length=255)
    multipart: str | None = Field(
        default=None, max_length=1024, nullable=True
    )  # the store's name for the parts
    etags: dict[str, str] = listed()  # part number -> what the store answered
    state: str = Field(max_length=8)  # open, checking, stored, refused
    reason: str | None = Field(default=None, max_length=500, nullable=True)  # why it is refused
    created_at: int = moment()
    expires_at: int = moment()


class ModelRow(SQLModel, table=True):
    """A model's name and who may see it."""

    __tablename__ = "model"
    __table_args__ = (Index(None, "released", "name"),)
    name: str = Field(primary_key=True, max_length=512)  # institution/path
    owner: str = Field(max_length=253, index=True)
    visibility: str = Field(max_length=8)  # public, gated, private
    created_at: int = moment()
    released: bool = False  # a release was logged; whether one still stands is the log's to say


class VersionRow(SQLModel, table=True):
    """One signed, immutable version of a model; a later one may have an earlier one's files, and asset id."""

    __tablename__ = "version"
    __table_args__ = (Index(None, "license", "name"),)
    name: str = Field(foreign_key="model.name", primary_key=True, max_length=512)
    version: int = Field(primary_key=True)
    asset_id: str = digest(index=True)  # sha256 of manifest.json
    statement: str = digest()
    license: str | None = Field(default=None, max_length=128, nullable=True)
    plan: str | None = digest(default=None, nullable=True)  # whose run made it
    size: int = moment()  # bytes of its files together
    created_at: int = moment()


class VersionFileRow(SQLModel, table=True):
    """One file of the versions with one manifest."""

    __tablename__ = "version_file"
    asset_id: str = digest(primary_key=True)
    name: str = Field(primary_key=True, max_length=1024)
    sha256: str = digest(index=True)
    size: int = moment()
    parts: list[str] | None = listed(nullable=True)


class FileListRow(SQLModel, table=True):
    """The files of one manifest as every answer tells them: they never change, and are asked for often."""

    __tablename__ = "file_list"
    asset_id: str = digest(primary_key=True)
    files: str = Field(sa_type=Text)  # JSON, a list of wire.ModelFile


class TagRow(SQLModel, table=True):
    """A name for a version; made once, never moved."""

    __tablename__ = "tag"
    __table_args__ = (Index(None, "tag", "name"),)
    name: str = Field(foreign_key="model.name", primary_key=True, max_length=512)
    tag: str = Field(primary_key=True, max_length=128)
    version: int
    created_at: int = moment()


class CapabilityRow(SQLModel, table=True):
    """One pull's right to ask for addresses; the capability itself is not kept."""

    __tablename__ = "capability"
    capability_digest: str = digest(primary_key=True)
    institution: str = Field(max_length=253)
    asset_id: str = digest()
    grant: str | None = digest(default=None, nullable=True)
    receipt: str | None = digest(default=None, nullable=True)
    duo: list[str] = listed()
    expires_at: int = moment(index=True)


class PlanRow(SQLModel, table=True):
    """One training plan; its statement, recipe and config lie in ``statement`` and ``attachment``, an app in
    the store.
    """

    __tablename__ = "plan"
    id: str = digest(primary_key=True)
    issuer: str = Field(max_length=253, index=True)
    recipe: str = digest()  # the code: of recipe.json, or of the app bundle
    config: str = digest()
    base_asset: str = digest()
    weights: str = digest()  # of the base version's file that travels
    participants: list[str] = listed()  # institutions
    expires_at: int = moment()
    created_at: int = moment()


class DeclineRow(SQLModel, table=True):
    """A participant's no to a plan."""

    __tablename__ = "decline"
    plan: str = Field(foreign_key="plan.id", primary_key=True, max_length=64)
    institution: str = Field(primary_key=True, max_length=253)
    reason: str = Field(max_length=500)
    declined_at: int = moment()


ACTIVE_RUNS = ("starting", "running")


class RunRow(SQLModel, table=True):
    """A plan's one run. Whoever writes to the run, its rounds or events locks this row first."""

    __tablename__ = "run"
    plan: str = Field(foreign_key="plan.id", primary_key=True, max_length=64)
    state: str = Field(max_length=16, index=True)  # starting, running, finished, stopped, cancelled
    reason: str | None = Field(default=None, sa_type=Text, nullable=True)
    attempt: int = 0  # the newest; only its coordinator is answered
    failures: int = 0  # attempts in a row that closed no round
    next_attempt_at: int = moment(default=0)
    started_at: int = moment()
    ended_at: int | None = moment(default=None, nullable=True)
    statistics: str | None = Field(
        default=None, max_length=64, nullable=True
    )  # digest; lies in ``attachment``

    @property
    def active(self) -> bool:
        """Whether it goes on, or shall."""
        return self.state in ACTIVE_RUNS


class AttemptRow(SQLModel, table=True):
    """One Flower run for a plan's run."""

    __tablename__ = "attempt"
    plan: str = Field(foreign_key="run.plan", primary_key=True, max_length=64)
    number: int = Field(primary_key=True)
    flower_run: str | None = Field(default=None, max_length=20, nullable=True)  # uint64 in decimal
    state: str = Field(max_length=8)  # starting, running, leaving (its run is over), ended
    detail: str | None = Field(default=None, max_length=500, nullable=True)  # why it ended
    first_round: int  # the round it began with
    started_at: int = moment()
    heard_at: int | None = moment(default=None, nullable=True)  # last sign of life of its coordinator
    beats: bool = False  # it reports itself alive, so that silence means something
    ended_at: int | None = moment(default=None, nullable=True)


class RoundRow(SQLModel, table=True):
    """One closed round: what its signed statement says, and figures that nobody signed."""

    __tablename__ = "round"
    plan: str = Field(foreign_key="run.plan", primary_key=True, max_length=64)
    round: int = Field(primary_key=True)
    statement: str = digest()
    input: str = digest()
    aggregate: str = digest(index=True)
    size: int = moment()
    seconds: float
    receipts: list[str] = listed()
    sites: dict[str, dict[str, float | int | str]] = listed()
    metrics: dict[str, float | int] = listed()
    closed_at: int = moment()
    # where a server optimiser goes on: slot -> {"sha256", "size"}
    state: dict[str, dict[str, Any]] | None = listed(nullable=True)


class EventRow(SQLModel, table=True):
    """One thing that happened in a run; ids grow in the order of commits."""

    __tablename__ = "event"
    __table_args__ = (
        Index(None, "plan", "id"),
        Index(None, "plan", "kind", "id"),
        {"sqlite_autoincrement": True},
    )
    id: int | None = Field(default=None, primary_key=True)
    plan: str = Field(foreign_key="plan.id", max_length=64)
    at: int = moment()
    kind: str = Field(max_length=32)
    data: dict[str, str | int | float | None] = listed()


class LeaseRow(SQLModel, table=True):
    """Work that one process does at a time."""

    __tablename__ = "lease"
    name: str = Field(primary_key=True, max_length=64)
    holder: str = Field(max_length=64)
    until_ms: int = moment()  # milliseconds since 1970


# --- repositories as stock clients see them: commits, branches, drafts --------------------------------------


class SharedDatasetRow(SQLModel, table=True):
    """A data set whose owner put its files into the hub on purpose; on-site ones are statements only."""

    __tablename__ = "shared_dataset"
    name: str = Field(primary_key=True, max_length=512)  # institution/path
    owner: str = Field(max_length=253, index=True)
    visibility: str = Field(max_length=8)  # public, gated, private
    created_at: int = moment()


class RevisionRow(SQLModel, table=True):
    """One commit: the files of one manifest after a parent; a draft until a statement makes it a version."""

    __tablename__ = "revision"
    __table_args__ = (Index(None, "kind", "name", "asset_id"), Index(None, "kind", "name", "version"))
    kind: str = Field(primary_key=True, max_length=8)  # model, dataset
    name: str = Field(primary_key=True, max_length=512)
    id: str = Field(primary_key=True, max_length=40)
    parent: str | None = Field(default=None, max_length=40, nullable=True)
    asset_id: str | None = digest(default=None, nullable=True)  # sha256 of manifest.json; None: no files
    statement: str | None = digest(default=None, nullable=True)  # the asset statement; None: a draft
    version: int | None = None
    title: str = Field(max_length=1000)
    message: str = Field(default="", sa_type=Text)
    author: str = Field(max_length=253)  # institution
    created_at: int = moment()


class BranchRow(SQLModel, table=True):
    """A name that moves from commit to commit. Whoever commits locks it."""

    __tablename__ = "branch"
    kind: str = Field(primary_key=True, max_length=8)
    name: str = Field(primary_key=True, max_length=512)
    branch: str = Field(primary_key=True, max_length=128)
    revision: str = Field(max_length=40)


class DraftTagRow(SQLModel, table=True):
    """A name for a commit that is no model version; made once, never moved. Versions have ``tag``."""

    __tablename__ = "draft_tag"
    kind: str = Field(primary_key=True, max_length=8)
    name: str = Field(primary_key=True, max_length=512)
    tag: str = Field(primary_key=True, max_length=128)
    revision: str = Field(max_length=40)
    created_at: int = moment()


class GitBlobRow(SQLModel, table=True):
    """What git calls the bytes of a small file: stock clients compare them by this name."""

    __tablename__ = "git_blob"
    sha256: str = digest(primary_key=True)
    oid: str = Field(max_length=40)


class PlainUploadRow(SQLModel, table=True):
    """Bytes of a client that can send no headers: nobody's word until the hub has hashed them."""

    __tablename__ = "plain_upload"
    __table_args__ = (Index(None, "uploader", "sha256"),)
    id: str = Field(primary_key=True, max_length=32)  # secret: whoever knows it may complete it
    uploader: str = Field(max_length=253)
    sha256: str = digest()
    size: int = moment()
    key: str = Field(max_length=255)
    multipart: str = Field(max_length=1024)  # the store's name for the parts
    expires_at: int = moment(index=True)


class UnhashedUploadRow(SQLModel, table=True):
    """Bytes that go to the store while their sender hashes them: without a digest until they are there."""

    __tablename__ = "unhashed_upload"
    id: str = Field(primary_key=True, max_length=32)
    uploader: str = Field(max_length=253, index=True)
    size: int = moment()
    key: str = Field(max_length=255)
    multipart: str | None = Field(default=None, max_length=1024, nullable=True)  # as a store may keep them
    expires_at: int = moment(index=True)


class XorbRow(SQLModel, table=True):
    """Chunks that a Xet client posted and a shard of the same institution may name; kept for hours only."""

    __tablename__ = "xorb"
    owner: str = Field(primary_key=True, max_length=253)
    hash: str = digest(primary_key=True)
    key: str = Field(max_length=255)
    size: int = moment()
    expires_at: int = moment(index=True)
