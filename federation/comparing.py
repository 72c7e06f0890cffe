"""What changed between two versions: files by digest, tensors by name, type and shape.

Tensors are read from the headers of safetensors files, a few kilobytes of each by ranges; no weights are
fetched. Headers read so are the store's word: nothing but a whole pull proves what a file holds.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from federation.origins import Broken, Peers, origin_of, refusal_of
from storage.errors import Rejected, Unchecked, shown

if TYPE_CHECKING:
    from federation import wire
    from federation.client import HubClient

HEADER_BYTES = 100_000_000  # the limit of the format's own library
FIRST_BYTES = 1 << 16  # in most files the whole header
ATTEMPTS = 3


@dataclass(frozen=True)
class Tensor:
    """A tensor as a header describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Difference:
    """Names by what happened to them, from the first version to the second; each list sorted."""

    files_added: list[str]
    files_removed: list[str]
    files_changed: list[str]
    tensors_added: dict[str, str]
    tensors_removed: dict[str, str]
    tensors_reshaped: dict[str, tuple[str, str]]  # dtype and shape before and after
    tensors_alike: int  # same name, type and shape in both; their values may differ
    unread: list[str]  # safetensors files without a header that could be read

    @property
    def same(self) -> bool:
        """Whether both versions have the same files."""
        return not (self.files_added or self.files_removed or self.files_changed)


def compare(client: "HubClient", before: "wire.ModelVersion", after: "wire.ModelVersion") -> Difference:
    """Compare two versions, of one model or of two, whose files the caller may pull.

    Raises:
        Refused: no grant for one of them; as each pull under a grant it is logged with a receipt.
    """
    unread: list[str] = []
    was, now = (_tensors(client, version, unread) for version in (before, after))
    return difference(before, after, was, now, unread)


def difference(
    before: "wire.ModelVersion",
    after: "wire.ModelVersion",
    was: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    unread: Iterable[str],
) -> Difference:
    """What changed, from the lists of files and the tensors that were read of each version."""
    old = {file.name: file.sha256 for file in before.files}
    new = {file.name: file.sha256 for file in after.files}
    both = was.keys() & now.keys()
    reshaped = {name: (str(was[name]), str(now[name])) for name in both if str(was[name]) != str(now[name])}
    return Difference(
        files_added=sorted(new.keys() - old.keys()),
        files_removed=sorted(old.keys() - new.keys()),
        files_changed=sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
        tensors_added={name: str(now[name]) for name in sorted(now.keys() - was.keys())},
        tensors_removed={name: str(was[name]) for name in sorted(was.keys() - now.keys())},
        tensors_reshaped=dict(sorted(reshaped.items())),
        tensors_alike=len(both) - len(reshaped),
        unread=sorted(set(unread)),
    )


def _tensors(client: "HubClient", version: "wire.ModelVersion", unread: list[str]) -> Mapping[str, Tensor]:
    names = [file.name for file in version.files if holds_tensors(file.name)]
    if not names:
        return {}
    found: dict[str, Tensor] = {}
    peers = Peers()
    try:
        for file in client.pull(version.asset_id).files:
            if file.name in names:
                try:
                    found |= read_header(peers, file.url, file.name, file.size)
                except Rejected:
                    unread.append(f"{version.name}@{version.version}: {file.name}")
    finally:
        peers.close()
    return found


def holds_tensors(name: str) -> bool:
    """Whether a file says by its name that it is a safetensors file."""
    return name.lower().endswith(".safetensors")


def read_header(peers: Peers, url: str, name: str, size: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file at ``url``, from its first bytes.

    Raises:
        Rejected: ``E_TENSORS``; it has no such header.
        Unchecked: ``E_STORE_UNREACHABLE``.
    """
    return read_tensors(name, size, partial(_range, peers, url, name))


def read_tensors(
    name: str, size: int, read: Callable[[int, int], bytes], *, most: int = HEADER_BYTES
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by ``read(offset, length)``; fewer bytes come only at its end.

    Args:
        size: of the file, in bytes.
        most: bytes of a header that are read.
    Raises:
        Rejected: ``E_TENSORS``; it has no such header, or a longer one.
    """
    start = read(0, min(size, FIRST_BYTES))
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > min(most, size - 8):
        raise _no_header(name)
    raw = start[8 : 8 + length]
    if len(raw) < length:
        raw += read(len(start), length - len(raw))
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _no_header(name) from error
    if not isinstance(header, dict):
        raise _no_header(name)
    return {key: _tensor(name, entry) for key, entry in header.items() if key != "__metadata__"}


def _tensor(name: str, entry: Any) -> Tensor:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise _no_header(name)
    if not all(isinstance(one, int) and one >= 0 for one in shape):
        raise _no_header(name)
    return Tensor(dtype[:16], tuple(shape), name)


def _no_header(name: str) -> Rejected:
    return Rejected("E_TENSORS", f"{shown(name)} has no header of a safetensors file")


def _range(peers: Peers, url: str, name: str, offset: int, length: int) -> bytes:
    """Bytes of a file from ``offset``; tried again when the connection breaks."""
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            answer = peers.get(url, {"Range": f"bytes={offset}-{offset + length - 1}"})
            if answer.response.status not in (200, 206):
                raise refusal_of(answer)
            if answer.response.status == 200:
                answer.response.read(offset)  # the store knows no ranges
            data = answer.response.read(length)
            if not answer.response.isclosed():
                peers.close()
            if len(data) == length:
                return data
        except (Broken, HTTPException, OSError) as error:
            failure = error
            peers.close()
    raise Unchecked("E_STORE_UNREACHABLE", f"{shown(name)} from {origin_of(url)}", "try again") from failure


# --- lineage ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ancestor:
    """One version in a line of descent, and how it came from the one before it in the list."""

    version: "wire.ModelVersion | None"
    reference: str  # NAME@VERSION, or an asset's id where nothing else may be known
    how: str  # what the version that it is listed under did with it
    rounds: int | None = None
    participants: Sequence[str] = ()


def lineage(client: "HubClient", version: "wire.ModelVersion", *, most: int = 100) -> list[Ancestor]:
    """A version and those that it came from: by the plans of its runs, else by the version before it.

    Only what the caller may read is told; the rest ends the line with the words why.
    """
    line = [Ancestor(version, f"{version.name}@{version.version}", "")]
    seen = {version.statement}
    current: wire.ModelVersion | None = version
    while current is not None and len(line) < most:
        step = _parent(client, current)
        if step is None or (step.version is not None and step.version.statement in seen):
            break
        line.append(step)
        current = step.version
        if current is not None:
            seen.add(current.statement)
    return line


def _parent(client: "HubClient", version: "wire.ModelVersion") -> Ancestor | None:
    if version.plan is None:
        older = version.version - 1
        if older == 0:
            return None
        return Ancestor(
            client.version(version.name, older), f"{version.name}@{older}", "the version before it"
        )
    try:
        plan = client.plan(version.plan)
    except Unchecked as error:
        if error.code != "E_NOT_FOUND":
            raise
        return Ancestor(None, version.plan, "made by a plan that is not for this institution to read")
    how = f"the base of plan {plan.id[:12]}"
    names = sorted({one.institution for one in plan.participants})
    found = _version_of(client, plan.base_asset)
    reference = plan.base_asset if found is None else f"{found.name}@{found.version}"
    return Ancestor(found, reference, how, plan.rounds, names)


def _version_of(client: "HubClient", asset_id: str) -> "wire.ModelVersion | None":
    for model in _models_of(client, asset_id):
        for version in model.versions:
            if version.asset_id == asset_id:
                return version
    return None


def _models_of(client: "HubClient", asset_id: str) -> "Iterable[wire.Model]":
    from storage.signing import open_envelope
    from storage.statements import read_statement

    for record in client.all_statements(kind="asset", subject=asset_id):
        statement = read_statement(open_envelope(record.bundle.encode()))
        try:
            yield client.model(statement.predicate["name"])
        except Unchecked as error:
            if error.code != "E_NOT_FOUND":
                raise
