"""What a stock Hugging Face client sends, request by request, over the in-process hub of ``tests.alliances``.

``Stock`` is one caller with one token (or none). Bytes go to the real blob server by the addresses that the hub gives.
"""

import base64
import hashlib
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

import httpx

from tests.alliances import AllianceInProcess


def git_blob(data: bytes) -> str:
    """git's own name of a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Stock:
    """One caller."""

    def __init__(self, alliance: AllianceInProcess, token: str | None) -> None:
        self.alliance = alliance
        self.http = alliance.http(token=token)
        self.downloads = alliance.http(downloads=True)

    @classmethod
    def of(cls, alliance: AllianceInProcess, name: str, *scopes: str) -> "Stock":
        """A caller with a personal token of a member."""
        with alliance.as_(name) as client:
            return cls(alliance, client.create_token("stock", list(scopes or ("read", "write"))).token)

    def create(self, repo: str, kind: str = "model", **members: Any) -> httpx.Response:
        organization, name = repo.split("/")
        body = {"name": name, "organization": organization, "type": kind, **members}
        return self.http.post("/api/repos/create", json=body)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def api(self, repo: str, tail: str = "", *, kind: str = "model", **options: Any) -> httpx.Response:
        """GET below a repository's API path."""
        return self.http.get(f"/api/{kind}s/{repo}{tail}", **options)

    def resolve(
        self, repo: str, revision: str, path: str, *, method: str = "GET", kind: str = "model", **headers: str
    ) -> httpx.Response:
        prefix = "" if kind == "model" else "datasets/"
        where = f"/{prefix}{repo}/resolve/{urllib.parse.quote(revision, safe='')}/{urllib.parse.quote(path)}"
        return self.http.request(method, where, headers=headers)

    def commit(
        self,
        repo: str,
        files: Mapping[str, bytes] | None = None,
        *,
        large: Mapping[str, tuple[str, int]] | None = None,
        delete: tuple[str, ...] = (),
        delete_folders: tuple[str, ...] = (),
        branch: str = "main",
        parent: str | None = None,
        kind: str = "model",
    ) -> httpx.Response:
        header: dict[str, Any] = {"summary": "a commit", "description": ""}
        header |= {"parentCommit": parent} if parent else {}
        lines: list[dict[str, Any]] = [{"key": "header", "value": header}]
        for path, data in (files or {}).items():
            value = {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}
            lines.append({"key": "file", "value": value})
        for path, (oid, size) in (large or {}).items():
            value = {"path": path, "algo": "sha256", "oid": oid, "size": size}
            lines.append({"key": "lfsFile", "value": value})
        lines += [{"key": "deletedFile", "value": {"path": path}} for path in delete]
        lines += [{"key": "deletedFolder", "value": {"path": path}} for path in delete_folders]
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        return self.commit_raw(repo, body, branch=branch, kind=kind)

    def commit_raw(
        self, repo: str, body: bytes, *, branch: str = "main", kind: str = "model"
    ) -> httpx.Response:
        where = f"/api/{kind}s/{repo}/commit/{urllib.parse.quote(branch, safe='')}"
        return self.http.post(where, content=body, headers={"Content-Type": "application/x-ndjson"})

    def batch(
        self,
        repo: str,
        *objects: tuple[str, int],
        kind: str = "model",
        transfers: tuple[str, ...] = ("basic", "multipart"),
    ) -> httpx.Response:
        prefix = "" if kind == "model" else "datasets/"
        listed = [{"oid": oid, "size": size} for oid, size in objects]
        body = {"operation": "upload", "transfers": list(transfers), "objects": listed, "hash_algo": "sha256"}
        return self.http.post(f"/{prefix}{repo}.git/info/lfs/objects/batch", json=body)

    def upload(self, repo: str, data: bytes, *, kind: str = "model") -> tuple[str, int]:
        """A large file, all the way through LFS; its digest and size."""
        oid = hashlib.sha256(data).hexdigest()
        (answer,) = self.batch(repo, (oid, len(data)), kind=kind).json()["objects"]
        if "actions" in answer:
            self.send(answer, data)
            done = answer["actions"]["verify"]["href"]
            assert self.http.post(path_of(done), json={"oid": oid, "size": len(data)}).status_code == 200
        return oid, len(data)

    def send(self, answer: dict[str, Any], data: bytes) -> None:
        """PUT a file's parts to the store, and complete them where there are several."""
        upload = answer["actions"]["upload"]
        chunk = int(upload["header"].get("chunk_size", 0))
        if not chunk:
            assert put(upload["href"], data) == 200
            return
        parts = []
        for number in range(1, -(-len(data) // chunk) + 1):
            piece = data[(number - 1) * chunk : number * chunk]
            assert put(upload["header"][str(number)], piece) == 200
            parts.append({"partNumber": number, "etag": "whatever"})
        bare = self.alliance.http()
        assert (
            bare.post(path_of(upload["href"]), json={"oid": answer["oid"], "parts": parts}).status_code == 200
        )

    def follow(self, location: str, **headers: str) -> httpx.Response:
        """Ask the download origin, then the store that it names."""
        answer = self.downloads.get(path_of(location), headers=headers)
        if answer.status_code != 307:
            return answer
        return httpx.get(answer.headers["location"], headers=headers, trust_env=False)


def put(url: str, data: bytes) -> int:
    return httpx.put(url, content=data, trust_env=False).status_code


def path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]
