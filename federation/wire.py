"""Requests and answers of the hub's API, as its clients and its routes both see them.

Every model refuses unknown members. Bytes travel as base64 text, digests as lower-case hex SHA-256, times as
``YYYY-MM-DDThh:mm:ssZ``. Signed documents travel as the text of their bundle (``storage.signing``).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_EVENTS = 256  # of one request
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?$")]
Role = Literal["operator", "owner", "lab", "firm", "auditor"]
RunState = Literal["starting", "running", "finished", "stopped", "cancelled"]


class Wire(BaseModel):
    """A message that says exactly its fields and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- the hub and who is in it ---------------------------------------------------------------------------


class HubInfo(Wire):
    origin: str
    operator: Name
    operator_pin: Digest
    log_key: str
    version: str
    fleet: str  # host:port that lab agents reach
    fleet_ca: str  # PEM
    log_base: str  # URL of the folder with checkpoint and tile/


class InvitationRequest(Wire):
    institution: Name
    role: Role
    valid_hours: int = Field(default=72, ge=1, le=720)


class Invitation(Wire):
    """What an invitation code holds; the code is its canonical JSON in unpadded base64url."""

    endpoint: str
    origin: str
    log_key: str
    operator: Name
    operator_pin: Digest
    fleet_ca: str
    institution: Name
    role: Role
    secret: str


class EnrolRequest(Wire):
    institution: Name
    secret: str
    roots: list[str] = Field(min_length=1, max_length=64)  # base64 of N.root.json, in order
    statement: str  # keyring/v1 bundle
    contact: str = ""


class Institution(Wire):
    name: Name
    role: Role
    state: Literal["pending", "approved", "suspended"]
    pin: Digest
    ring_version: int
    joined_at: str
    status_until: str | None = None


class KeyRingUpdate(Wire):
    root: str
    statement: str


class SiteRequest(Wire):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    public_key: str  # PEM SubjectPublicKeyInfo of the site's Flower node key


class Site(Wire):
    institution: Name
    name: str
    key_hint: Digest
    online: bool
    last_seen: str | None = None


class AccessToken(Wire):
    access_token: str
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int


class WhoAmI(Wire):
    institution: Name
    role: Role
    by: Literal["access", "personal"]
    scopes: list[str]
    key_role: Literal["targets", "snapshot"] | None = None


class PersonalTokenRequest(Wire):
    name: str = Field(min_length=1, max_length=64)
    scopes: list[Literal["read", "write"]] = Field(min_length=1)
    valid_days: int = Field(default=90, ge=1, le=366)


class PersonalToken(Wire):
    id: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str
    last_used_at: str | None = None
    token: str | None = None  # only in the answer that creates it


# --- signed statements --------------------------------------------------------------------------------------


class StatementPost(Wire):
    bundle: str
    attachments: dict[str, str] = Field(default_factory=dict)  # file name -> base64, e.g. croissant.json
    announces: "UploadRequest | None" = None  # a file that it speaks of, and that has yet to be sent


class StatementRecord(Wire):
    id: Digest
    index: int
    kind: str
    issuer: Name
    bundle: str
    upload: "Upload | None" = None  # of the file that was announced with it


class StatementPage(Wire):
    items: list[StatementRecord]
    next: str | None = None


# --- bytes --------------------------------------------------------------------------------------------------


class UploadRequest(Wire):
    sha256: Digest
    size: int = Field(ge=0)
    # Digests of the 32 MiB parts. Without them all of it goes in one request: at most 5 GiB.
    parts: list[Digest] | None = None
    plan: Digest | None = None  # an update or an aggregate of this plan's run


class UnhashedRequest(Wire):
    size: int = Field(ge=0)


class SmallFile(Wire):
    sha256: Digest
    data: str = Field(max_length=200_000)  # base64


class SmallFiles(Wire):
    files: list[SmallFile] = Field(min_length=1, max_length=500)


class UploadOrder(Wire):
    part: int  # 0: the whole file in one request; else the part's number from 1
    method: Literal["PUT"]
    url: str
    headers: dict[str, str]
    expires: str
    trailer: bool = False  # the body goes in chunks, and its digest after them (``storage.aws_chunked``)


class Upload(Wire):
    id: str
    state: Literal["open", "checking", "stored"]
    one_stream: bool = False  # the store takes a large file in one stream as quickly as in several
    orders: list[UploadOrder] = Field(default_factory=list)
    done_parts: list[int] = Field(default_factory=list)
    file: str | None = None  # for the coordinator: where it may leave it, if the store is a folder there


class UnhashedUpload(Wire):
    id: str
    order: UploadOrder


class UnhashedAnswer(Wire):
    upload: UnhashedUpload | None  # none: hash the file first, and announce it by its digest


class UnhashedEnd(Wire):
    sha256: Digest


class UploadParts(Wire):
    etags: dict[int, str] = Field(default_factory=dict)  # part number -> ETag that the store answered


class WeightsLocation(Wire):
    sha256: Digest
    size: int
    url: str
    parts: list[Digest] | None = None
    # For the coordinator only:
    receipts: list[Digest] = Field(default_factory=list)  # logged ones of this update
    file: str | None = None  # where it lies, checked, on the hub's machine, if the store is a folder there


class UpdatesRequest(Wire):
    digests: list[Digest] = Field(min_length=1, max_length=1000)


class Updates(Wire):
    updates: list[WeightsLocation]  # of those asked for that are in the store


class StoredFile(Wire):
    """A file in the store, by what it is."""

    sha256: Digest
    size: int = Field(ge=1)


# --- models, datasets ---------------------------------------------------------------------------------------


class VersionPost(Wire):
    manifest: str  # base64 of manifest.json
    oms: str  # bundle
    asset: str  # bundle
    provenance: str | None = None  # bundle
    tags: list[str] = Field(default_factory=list)


class ModelFile(Wire):
    name: str
    sha256: Digest
    size: int
    parts: list[Digest] | None = None


class ModelVersion(Wire):
    name: str
    version: int
    asset_id: Digest
    statement: Digest
    license: str | None = None
    plan: Digest | None = None
    released: bool = False
    tags: list[str]
    files: list[ModelFile]
    created_at: str


class Model(Wire):
    name: str
    owner: Name
    visibility: Literal["public", "gated", "private"]
    versions: list[ModelVersion]


class NewestVersion(Wire):
    """The newest version of a listed model, without its files."""

    version: int
    asset_id: Digest
    license: str | None = None
    plan: Digest | None = None
    released: bool = False
    tags: list[str]
    size: int  # bytes of its files together
    created_at: str


class ListedModel(Wire):
    """A model as lists have it; its versions and their files come with the model itself."""

    name: str
    owner: Name
    visibility: Literal["public", "gated", "private"]
    versions: int  # how many it has
    released: int | None = None  # the newest version whose release stands
    newest: NewestVersion | None = None  # None: it has none yet


class Revision(Wire):
    """A draft or version as stock clients see it, for those who sign."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str  # commit id, 40 hex digits
    asset_id: Digest | None = None  # None: no files
    version: int | None = None  # that it is or became; None: a draft
    statement: Digest | None = None
    manifest: str | None = None  # base64 of manifest.json
    newest: int | None = None  # version of the repository
    newest_statement: Digest | None = None


class SharePost(Wire):
    """A signed version of a shared data set."""

    manifest: str  # base64
    asset: str
    croissant: str  # base64


class VisibilityChange(Wire):
    visibility: Literal["public", "gated", "private"]


class Release(Wire):
    """A version that firms may be granted: approved by enough of its participants."""

    name: str
    version: int
    asset_id: Digest
    statement: Digest
    plan: Digest | None = None
    approved_by: list[Name]
    released_at: str


class Approvals(Wire):
    """How far a version is from its release."""

    asset_id: Digest
    plan: Digest | None = None  # without one it cannot be released
    needed: int
    participants: list[Name]
    approved_by: list[Name]
    release: Digest | None = None


class Dataset(Wire):
    name: str
    owner: Name
    version: int
    asset_id: Digest
    croissant: str  # the Croissant file's text
    created_at: str
    license: str | None = None  # SPDX expression
    kept: Literal["site", "hub"] = "site"  # where its files lie
    visibility: str | None = None  # public, gated, private; of a shared one, whose files lie in the hub


class PullRequest(Wire):
    asset_id: Digest
    duo: list[str] = Field(default_factory=list)
    grant: str | None = Field(None, pattern="^[0-9a-f]{8,64}$")  # how the id of the one to lean on begins


class PullFile(ModelFile):
    url: str  # on the download origin; answers 307 to a URL that lives 30 s


class Pull(Wire):
    asset_id: Digest
    name: str
    version: int
    grant: Digest | None = None
    expires_in: int
    files: list[PullFile]
    small: str | None = None  # followed by /0, /1, …: the bytes of each group of small files (small_files.py)


# --- plans and runs -----------------------------------------------------------------------------------------


class PlanPost(Wire):
    bundle: str
    recipe: str  # base64 of recipe.json
    config: str  # base64 of config.json


class Participant(Wire):
    institution: Name
    dataset: Digest
    consent: Digest | None = None
    declined: str | None = None
    site_online: bool = False


class Plan(Wire):
    id: Digest
    issuer: Name
    bundle: str
    recipe: str  # base64
    config: str  # base64
    base_asset: Digest
    rounds: int
    min_participants: int
    approvals: int
    expires: str
    participants: list[Participant]
    run: RunState | None = None


class Decline(Wire):
    reason: str = Field(min_length=1, max_length=500)


class RunStart(Wire):
    plan: Digest


class Round(Wire):
    round: int
    statement: Digest
    aggregate: Digest
    size: int
    seconds: float
    receipts: list[Digest]
    sites: dict[str, dict[str, float | int | str]]  # institution -> metrics of this round
    metrics: dict[str, float | int]  # weighted over the sites


class SiteFigures(Wire):
    """What a site told beside a logged receipt."""

    institution: Name
    dataset: Digest
    receipt: Digest
    figures: str  # figures.json, whose digest the receipt names


class JointStatistics(Wire):
    """By what all sites of a run scale their rows."""

    sha256: Digest
    document: str  # statistics.json
    figures: list[SiteFigures] = Field(default_factory=list)  # for owner, auditors and operator


class Measured(Wire):
    """A share of right answers, and the 95 % interval around it."""

    share: float
    low: float
    high: float


class SiteBenefit(Wire):
    """What a run brought one site, on its held-out rows; figures are those of its receipt."""

    institution: Name
    dataset: Digest
    verdict: Literal["gain", "no clear difference", "loss", "too few rows", "nothing told"]
    rows: int = 0
    federated: Measured | None = None
    local: Measured | None = None
    majority: Measured | None = None
    receipt: Digest | None = None
    figures: str | None = None  # figures.json


class BenefitReport(Wire):
    """The honest report of a run: each site's own model beside the shared one."""

    plan: Digest
    round: int
    aggregate: Digest
    smallest_cohort: int
    statistics: Digest | None = None
    sites: list[SiteBenefit]


class SiteRefusal(Wire):
    institution: Name
    round: int
    code: str
    statement: Digest


class Fault(Wire):
    """What stops or hinders a run, in the words of the one table of causes (``storage.causes``)."""

    code: str
    cause: str
    owner: str  # whose move it is
    step: str  # what that move is
    message: str = ""  # what exactly, as it was told
    site: str | None = None  # whose trouble it is, where it is a site's
    round: int | None = None
    statement: Digest | None = None  # the site's signed refusal


class SiteTrouble(Wire):
    """What keeps a site's agent from its work, as its supervisor sees it."""

    name: str = Field(min_length=1, max_length=63)
    code: str = Field(pattern=r"^E_[A-Z0-9_]{1,60}$")
    message: str = Field(max_length=500)


class Run(Wire):
    plan: Digest
    state: RunState
    reason: str | None = None  # why it stopped, and what to do next
    attempt: int
    rounds_planned: int
    rounds_closed: int
    rounds: list[Round]  # some that follow each other, the newest where no others were asked for
    refusals: list[SiteRefusal]
    started_at: str
    ended_at: str | None = None
    deadline: str | None = None  # of the round in flight
    error: Fault | None = None  # what stopped it, or holds it up now
    faults: list[Fault] = []  # troubles of its sites, newest first


class Event(Wire):
    id: int
    at: str
    plan: Digest
    kind: str  # run.started, round.opened, site.replied, round.closed, site.refused, run.ended, ...
    data: dict[str, str | int | float | None]


# --- the coordinator ----------------------------------------------------------------------------------------


class WorkSite(Wire):
    institution: Name
    dataset: Digest
    node_id: str  # Flower node id, a uint64 in decimal


class Work(Wire):
    """All that a coordinator needs to start or go on with a run."""

    plan: Digest
    attempt: int
    next_round: int
    rounds: int
    min_participants: int
    config: str  # base64 of config.json
    input: WeightsLocation
    sites: list[WorkSite]
    state: dict[str, WeightsLocation] = Field(default_factory=dict)  # the server optimiser's, by slot
    statistics: Digest | None = None  # the joint statistics, once they are made


class OrdersRequest(Wire):
    attempt: int
    round: int = Field(ge=1)
    action: Literal["train", "evaluate", "statistics"]
    input: Digest
    deadline: str


class Orders(Wire):
    orders: dict[str, str]  # dataset asset id -> order bundle


class RoundReport(Wire):
    attempt: int
    round: int = Field(ge=1)
    input: Digest
    aggregate: Digest
    size: int
    receipts: list[Digest] = Field(min_length=1)  # in the order folded in
    seconds: float
    sites: dict[str, dict[str, float | int | str]]
    metrics: dict[str, float | int]
    # what the server optimiser remembers, by slot; empty in the last round
    state: dict[str, StoredFile] = Field(default_factory=dict, max_length=4)


class StatisticsReport(Wire):
    """The sites have told their column statistics; the hub joins them."""

    attempt: int
    receipts: list[Digest] = Field(min_length=1, max_length=1000)  # in the plan's order


class EventReport(Wire):
    attempt: int
    kind: str
    data: dict[str, str | int | float | None]


class EventReports(Wire):
    reports: list[EventReport] = Field(min_length=1, max_length=MAX_EVENTS)  # in order, kept all or none


class RunEnd(Wire):
    attempt: int
    state: Literal["finished", "stopped"]
    reason: str | None = None


# --- errors -------------------------------------------------------------------------------------------------


class Problem(Wire):
    """RFC 9457, with the error's stable code and what to do next."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    field: str | None = None
    cause: str | None = None  # these three from the table of causes, where it has the code
    owner: str | None = None
    step: str | None = None
