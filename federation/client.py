"""A hub's API as methods: one per endpoint, answers as ``federation.wire`` types.

How requests are made, tried again and refused is ``federation.connection``'s.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from federation import wire
from federation.connection import HubConnection, read_answer
from storage.errors import Unchecked

PACK_LIMIT = 1 << 30  # bytes of one pack


class HubClient(HubConnection):
    """The endpoints of one hub, called as one institution; see ``HubConnection`` for how to make one."""

    # --- the hub and who is in it ---------------------------------------------------------------------------

    def hub(self) -> wire.HubInfo:
        """What the hub says of itself; believe nothing of it that the invitation did not say."""
        return self._get("hub", wire.HubInfo, login=False)

    def whoami(self) -> wire.WhoAmI:
        """As whom the hub sees this client."""
        return self._get("whoami", wire.WhoAmI)

    def create_token(self, name: str, scopes: Sequence[str], *, valid_days: int = 90) -> wire.PersonalToken:
        """A new personal token; its text is in this answer only."""
        body = {"name": name, "scopes": list(scopes), "valid_days": valid_days}
        return self._post("tokens", body, wire.PersonalToken)

    def list_tokens(self) -> list[wire.PersonalToken]:
        """The institution's personal tokens, without their texts."""
        return self._list("tokens", wire.PersonalToken)

    def revoke_token(self, token_id: str) -> None:
        """End a personal token at once."""
        self._call("DELETE", f"tokens/{_part(token_id)}")

    def invite(self, institution: str, role: str, *, valid_hours: int = 72) -> wire.Invitation:
        """A single-use invitation (operator)."""
        body = {"institution": institution, "role": role, "valid_hours": valid_hours}
        return self._post("invitations", body, wire.Invitation)

    def enrol(self, request: wire.EnrolRequest) -> wire.Institution:
        """Ask to join with an invitation's secret and a key ring; the operator approves later."""
        return self._post("institutions", request, wire.Institution, login=False)

    def institutions(self) -> list[wire.Institution]:
        """All members."""
        return self._list("institutions", wire.Institution)

    def institution(self, name: str) -> wire.Institution:
        """One member."""
        return self._get(f"institutions/{_part(name)}", wire.Institution)

    def approve(self, name: str) -> wire.Institution:
        """Let a pending institution in: its ring's statement is logged (operator, targets key)."""
        return self._post(f"institutions/{_part(name)}/approve", None, wire.Institution)

    def keyring(self, name: str) -> list[str]:
        """The roots of an institution's ring, oldest first, base64; check them against your own pin."""
        raw = self._call("GET", f"institutions/{_part(name)}/keyring", login=False)
        return read_answer(raw, dict[str, list[str]], "keyring").get("roots", [])

    def update_keyring(self, name: str, root: bytes, statement: bytes) -> wire.Institution:
        """Add the next ring version with its ``keyring`` statement (own institution, targets key)."""
        body = wire.KeyRingUpdate(root=_b64(root), statement=statement.decode())
        return self._post(f"institutions/{_part(name)}/keyring", body, wire.Institution)

    def register_site(self, name: str, public_key: str) -> wire.Site:
        """Register a site's Flower node key, PEM (snapshot key); a repeat changes nothing."""
        return self._post("sites", {"name": name, "public_key": public_key}, wire.Site)

    def tell_trouble(self, trouble: wire.SiteTrouble) -> None:
        """Say what keeps this institution's agent from its work (snapshot key)."""
        self._call("POST", "sites/trouble", trouble)

    def sites(self) -> list[wire.Site]:
        """All sites and whether they are connected."""
        return self._list("sites", wire.Site)

    # --- statements -----------------------------------------------------------------------------------------

    def post_statement(
        self,
        bundle: bytes | str,
        attachments: Mapping[str, bytes] | None = None,
        *,
        announces: wire.UploadRequest | None = None,
    ) -> wire.StatementRecord:
        """Have a signed statement logged; a repeat answers with the first's index.

        Args:
            bundle: text of the statement's bundle.
            attachments: file name -> content of small files it names as subjects (``croissant.json``).
            announces: a file that it speaks of, as for ``upload``: the answer has orders for it.
        """
        files = {name: _b64(data) for name, data in (attachments or {}).items()}
        posted = wire.StatementPost(bundle=_text(bundle), attachments=files, announces=announces)
        return self._post("statements", posted, wire.StatementRecord)

    def statements(
        self,
        *,
        kind: str | None = None,
        subject: str | None = None,
        issuer: str | None = None,
        plan: str | None = None,
        cursor: str | None = None,
    ) -> wire.StatementPage:
        """One page of logged statements in log order, of those this caller may read."""
        asked = {"kind": kind, "subject": subject, "issuer": issuer, "plan": plan, "cursor": cursor}
        return self._get("statements", wire.StatementPage, asked)

    def all_statements(
        self,
        *,
        kind: str | None = None,
        subject: str | None = None,
        issuer: str | None = None,
        plan: str | None = None,
    ) -> Iterator[wire.StatementRecord]:
        """Every page of ``statements``, one record after the other."""
        cursor: str | None = None
        while True:
            page = self.statements(kind=kind, subject=subject, issuer=issuer, plan=plan, cursor=cursor)
            yield from page.items
            if page.next is None:
                return
            cursor = page.next

    def statement(self, statement_id: str) -> wire.StatementRecord:
        """One logged statement by its id."""
        return self._get(f"statements/{_part(statement_id)}", wire.StatementRecord)

    def pack(self, asset_id: str, *, from_size: int = 0) -> bytes:
        """A zip of the pack that an auditor needs for one asset.

        Args:
            from_size: size of the checkpoint that the auditor saved; the pack then proves consistency with
                it.
        """
        return self._call("GET", f"packs/{_part(asset_id)}", asked={"from_size": from_size}, limit=PACK_LIMIT)

    # --- bytes ----------------------------------------------------------------------------------------------

    def upload(
        self, sha256: str, size: int, *, parts: Sequence[str] | None = None, plan: str | None = None
    ) -> wire.Upload:
        """Announce a file by digest and size; the orders fit those bytes only."""
        body = wire.UploadRequest(
            sha256=sha256, size=size, parts=None if parts is None else list(parts), plan=plan
        )
        return self._post("uploads", body, wire.Upload)

    def upload_orders(self, upload_id: str, etags: Mapping[int, str] | None = None) -> wire.Upload:
        """Fresh orders for the parts not done, telling which are."""
        body = wire.UploadParts(etags=dict(etags or {}))
        return self._post(f"uploads/{_part(upload_id)}/orders", body, wire.Upload)

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> wire.Upload:
        """Say that all bytes are in the store."""
        body = wire.UploadParts(etags=dict(etags or {}))
        return self._post(f"uploads/{_part(upload_id)}/complete", body, wire.Upload)

    def upload_unhashed(self, size: int) -> wire.UnhashedUpload | None:
        """Announce a file whose digest will follow; None: the hub wants the digest first."""
        return self._post("unhashed-uploads", wire.UnhashedRequest(size=size), wire.UnhashedAnswer).upload

    def unhashed_complete(self, upload_id: str, sha256: str) -> wire.Upload:
        """Say that all bytes are in the store, and what their digest is."""
        body = wire.UnhashedEnd(sha256=sha256)
        return self._post(f"unhashed-uploads/{_part(upload_id)}/complete", body, wire.Upload)

    def upload_small(self, files: Sequence[wire.SmallFile]) -> None:
        """Give the hub small files, bytes and all; it hashes each."""
        self._call("POST", "small-files", wire.SmallFiles(files=list(files)))

    # --- models and datasets --------------------------------------------------------------------------------

    def models(
        self, search: str | None = None, *, asset_id: str | None = None, released: bool = False
    ) -> list[wire.ListedModel]:
        """The models this caller may see, without their versions: ``model`` has those.

        Args:
            search: only those with this in their names, in any case.
            asset_id: only those with a version of this asset id.
            released: only those with a version whose release stands.
        """
        asked = {"search": search, "asset_id": asset_id, "released": released or None}
        return self._list("models", wire.ListedModel, asked)

    def model(self, name: str) -> wire.Model:
        """A model by ``institution/name`` with its versions."""
        return self._get(f"models/{_name(name)}", wire.Model)

    def version(self, name: str, version: int) -> wire.ModelVersion:
        """One version of a model."""
        return self._get(f"models/{_name(name)}/versions/{version}", wire.ModelVersion)

    def push_version(self, name: str, post: wire.VersionPost) -> wire.ModelVersion:
        """Make uploaded files a signed version; all of it or nothing."""
        return self._post(f"models/{_name(name)}/versions", post, wire.ModelVersion)

    def revision(self, kind: str, name: str, revision: str) -> wire.Revision:
        """A draft or version of a ``model`` or ``dataset`` by branch, tag, number or commit id."""
        return self._get(
            f"repositories/{_part(kind)}/{_name(name)}/revisions/{_part(revision)}", wire.Revision
        )

    def share_dataset(self, name: str, post: wire.SharePost) -> wire.Revision:
        """Make a draft of a shared data set a signed version."""
        return self._post(f"shared-datasets/{_name(name)}/versions", post, wire.Revision)

    def tag(self, name: str, tag: str, version: int) -> wire.ModelVersion:
        """Give a version a new tag."""
        raw = self._call("PUT", f"models/{_name(name)}/tags/{_part(tag)}", {"version": version})
        return read_answer(raw, wire.ModelVersion, "tag")

    def set_visibility(self, name: str, visibility: str) -> wire.Model:
        """Say who may see a model: ``public``, ``gated`` or ``private``; to open it takes the targets key."""
        raw = self._call("PUT", f"models/{_name(name)}/visibility", {"visibility": visibility})
        return read_answer(raw, wire.Model, "visibility")

    def set_dataset_visibility(self, name: str, visibility: str) -> None:
        """Say who may see a shared data set: ``public``, ``gated`` or ``private``."""
        self._call("PUT", f"shared-datasets/{_name(name)}/visibility", {"visibility": visibility})

    def approvals(self, name: str, version: int) -> wire.Approvals:
        """How far a version is from its release, as the hub counts it."""
        return self._get(f"models/{_name(name)}/versions/{version}/approvals", wire.Approvals)

    def releases(self) -> list[wire.Release]:
        """Released versions, newest first."""
        return self._list("releases", wire.Release)

    def manifest(self, name: str, version: int) -> bytes:
        """``manifest.json`` of a version; its digest must be the asset id you expect."""
        return self._call("GET", f"models/{_name(name)}/versions/{version}/manifest")

    def datasets(self, kept: str = "site", *, search: str | None = None) -> list[wire.Dataset]:
        """The data sets that members described (``site``), or shared with their files (``hub``)."""
        return self._list("datasets", wire.Dataset, {"kept": kept, "search": search})

    def dataset(self, asset_id: str) -> wire.Dataset:
        """One data set by its asset id."""
        return self._get(f"datasets/{_part(asset_id)}", wire.Dataset)

    def pull(self, asset_id: str, duo: Sequence[str] = (), *, grant: str | None = None) -> wire.Pull:
        """Addresses of a version's files, decided by grant; the hub logs a receipt when one is used.

        Args:
            duo: terms (``DUO:nnnnnnn``) that the puller accepts for this use.
            grant: the first 8 digits or more of the id of the grant to lean on; None: the hub finds one.
        """
        asked = wire.PullRequest(asset_id=asset_id, duo=sorted(duo), grant=grant)
        return self._post("pulls", asked, wire.Pull)

    # --- plans and runs -------------------------------------------------------------------------------------

    def submit_plan(self, bundle: bytes | str, recipe: bytes, config: bytes) -> wire.Plan:
        """Log a signed plan with the two files it names."""
        body = wire.PlanPost(bundle=_text(bundle), recipe=_b64(recipe), config=_b64(config))
        return self._post("plans", body, wire.Plan)

    def plans(self) -> list[wire.Plan]:
        """The plans this caller takes part in."""
        return self._list("plans", wire.Plan)

    def plan(self, plan_id: str) -> wire.Plan:
        """One plan with its consents."""
        return self._get(f"plans/{_part(plan_id)}", wire.Plan)

    def decline(self, plan_id: str, reason: str) -> wire.Plan:
        """Say no to a plan, with a reason that its owner sees."""
        return self._post(f"plans/{_part(plan_id)}/decline", {"reason": reason}, wire.Plan)

    def app(self, sha256: str) -> wire.WeightsLocation:
        """Where an app bundle can be read now, by its digest: an own one, or one that a plan names."""
        return self._get(f"apps/{_part(sha256)}", wire.WeightsLocation)

    def start_run(self, plan_id: str) -> wire.Run:
        """Start the one run of a plan."""
        return self._post("runs", {"plan": plan_id}, wire.Run)

    def runs(self) -> list[wire.Run]:
        """The runs this caller takes part in."""
        return self._list("runs", wire.Run)

    def run(self, plan_id: str, *, newest: int | None = None, before: int | None = None) -> wire.Run:
        """The run of a plan, with its newest rounds.

        Args:
            newest: at most so many rounds, where fewer than the hub gives are enough.
            before: rounds before this one.
        """
        return self._get(f"runs/{_part(plan_id)}", wire.Run, {"newest": newest, "before": before})

    def whole_run(self, plan_id: str) -> wire.Run:
        """The run of a plan with all its rounds, asked for in pages."""
        run = self.run(plan_id)
        rounds = run.rounds
        while rounds and rounds[0].round > 1:
            earlier = self.run(plan_id, before=rounds[0].round).rounds
            if not earlier or earlier[-1].round != rounds[0].round - 1:
                first = rounds[0].round
                raise Unchecked("E_HUB_ANSWER", f"run {plan_id}: the hub gives no round before {first}")
            rounds = earlier + rounds
        return run.model_copy(update={"rounds": rounds})

    def cancel_run(self, plan_id: str) -> wire.Run:
        """End a run; its last aggregate is kept."""
        return self._post(f"runs/{_part(plan_id)}/cancel", None, wire.Run)

    def resume_run(self, plan_id: str) -> wire.Run:
        """Go on with a stopped run from its last aggregate."""
        return self._post(f"runs/{_part(plan_id)}/resume", None, wire.Run)

    def events(self, plan_id: str, *, after: int = 0) -> list[wire.Event]:
        """What happened in a run after event ``after``."""
        return self._list(f"runs/{_part(plan_id)}/events", wire.Event, {"after": after})

    def weights(self, plan_id: str, sha256: str) -> wire.WeightsLocation:
        """Where weights of a run can be read now; they must have this digest."""
        return self._get(f"runs/{_part(plan_id)}/weights/{_part(sha256)}", wire.WeightsLocation)

    def statistics(self, plan_id: str) -> wire.JointStatistics:
        """By what the sites of a run scale their rows; the digest is to be compared with a signed one."""
        return self._get(f"runs/{_part(plan_id)}/statistics", wire.JointStatistics)

    def report(self, plan_id: str) -> wire.BenefitReport:
        """What a run brought each site, as the hub tells it."""
        return self._get(f"runs/{_part(plan_id)}/report", wire.BenefitReport)

    # --- the coordinator ------------------------------------------------------------------------------------

    def updates(self, plan_id: str, digests: Sequence[str]) -> dict[str, wire.WeightsLocation]:
        """Where updates of sites can be read now, by digest, with the receipts logged about each."""
        body = wire.UpdatesRequest(digests=list(digests))
        found = self._post(f"runs/{_part(plan_id)}/updates", body, wire.Updates)
        return {one.sha256: one for one in found.updates}

    def join_statistics(self, plan_id: str, report: wire.StatisticsReport) -> wire.JointStatistics:
        """Have the hub join what the sites told."""
        return self._post(f"runs/{_part(plan_id)}/statistics", report, wire.JointStatistics)

    def work(self, plan_id: str) -> wire.Work:
        """What a coordinator needs to start or go on."""
        return self._get(f"runs/{_part(plan_id)}/work", wire.Work)

    def orders(self, plan_id: str, request: wire.OrdersRequest) -> wire.Orders:
        """The hub's signed orders for one round, by dataset."""
        return self._post(f"runs/{_part(plan_id)}/orders", request, wire.Orders)

    def report_round(self, plan_id: str, report: wire.RoundReport) -> wire.StatementRecord:
        """Close a round; the answer is the hub's signed round statement."""
        return self._post(f"runs/{_part(plan_id)}/rounds", report, wire.StatementRecord)

    def report_events(self, plan_id: str, *reports: wire.EventReport) -> None:
        """Tell those who watch what happened, in order; all of it is kept or none."""
        self._call("POST", f"runs/{_part(plan_id)}/events", wire.EventReports(reports=list(reports)))

    def end_run(self, plan_id: str, end: wire.RunEnd) -> wire.Run:
        """The attempt is over."""
        return self._post(f"runs/{_part(plan_id)}/end", end, wire.Run)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(bundle: bytes | str) -> str:
    return bundle if isinstance(bundle, str) else bundle.decode()


def _part(text: str) -> str:
    """One path segment; the hub sees exactly this text."""
    if text in ("", ".", ".."):
        raise Unchecked("E_USAGE", f"{text!r}: not a name")
    return quote(text, safe="")


def _name(name: str) -> str:
    """``institution/name`` as two path segments; a model's own name may hold more slashes, escaped."""
    institution, slash, rest = name.partition("/")
    if not slash or not rest:
        raise Unchecked("E_USAGE", f"{name!r}: a model is named institution/name")
    return f"{_part(institution)}/{_part(rest)}"
