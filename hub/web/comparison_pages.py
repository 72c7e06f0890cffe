"""The page that shows what changed between two versions of a model."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from federation import wire
from federation.comparing import Difference
from hub.api.auth import HubHere, ReadSession
from hub.errors import not_found
from hub.services import differences, registry
from hub.web.rendering import Visitor, page, sign_in_first

SHOWN = 500  # rows of one table

router = APIRouter(include_in_schema=False)
Number = Annotated[int | None, Query(ge=1, lt=1 << 31)]


@dataclass(frozen=True)
class Change:
    """One row of a table: what is called so before and after; empty where it is not there."""

    name: str
    change: str  # added, removed, changed
    before: str | int | None
    after: str | int | None


@router.get("/models/{institution}/{name}/compare", response_class=HTMLResponse)
def comparison(
    request: Request,
    hub: HubHere,
    session: ReadSession,
    actor: Visitor,
    institution: str,
    name: str,
    old: Number = None,
    new: Number = None,
) -> Response:
    """Two versions of a model: ``old`` and ``new`` by number; the newest two when none is named."""
    if not actor.known:
        return sign_in_first(request)
    found = registry.show(hub, session, actor, f"{institution}/{name}")
    before, after = _chosen(found, old, new)
    compared = differences.compare(hub, session, actor, before, after)
    files, tensors = _files(compared.changes, before, after), _tensors(compared.changes)
    return page(
        request,
        hub,
        actor,
        "compare.html",
        model=found,
        before=compared.before,
        after=compared.after,
        changes=compared.changes,
        with_tensors=compared.with_tensors,
        files=files[:SHOWN],
        more_files=max(0, len(files) - SHOWN),
        tensors=tensors[:SHOWN],
        more_tensors=max(0, len(tensors) - SHOWN),
        files_alike=len(before.files) - len(compared.changes.files_removed + compared.changes.files_changed),
        command_text=f"fedhub model diff {found.name}@{before.version} {found.name}@{after.version}",
    )


def _chosen(
    model: wire.Model, old: int | None, new: int | None
) -> tuple[wire.ModelVersion, wire.ModelVersion]:
    """The two versions asked for."""
    by_number = {each.version: each for each in model.versions}
    newest = max(by_number, default=1)
    after = newest if new is None else new
    before = max((number for number in by_number if number < after), default=after) if old is None else old
    for number in (before, after):
        if number not in by_number:
            raise not_found("version", f"{model.name}@{number}")
    return by_number[before], by_number[after]


def _files(changes: Difference, before: wire.ModelVersion, after: wire.ModelVersion) -> list[Change]:
    old = {file.name: file.size for file in before.files}
    new = {file.name: file.size for file in after.files}
    kinds = dict.fromkeys(changes.files_added, "added") | dict.fromkeys(changes.files_removed, "removed")
    kinds |= dict.fromkeys(changes.files_changed, "changed")
    return [Change(name, kinds[name], old.get(name), new.get(name)) for name in sorted(kinds)]


def _tensors(changes: Difference) -> list[Change]:
    rows = [Change(name, "added", None, each) for name, each in changes.tensors_added.items()]
    rows += [Change(name, "removed", each, None) for name, each in changes.tensors_removed.items()]
    rows += [Change(name, "changed", *each) for name, each in changes.tensors_reshaped.items()]
    return sorted(rows, key=lambda row: row.name)
