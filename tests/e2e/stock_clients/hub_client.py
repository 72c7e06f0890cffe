"""Run by a stock client's own Python: one scenario of ``huggingface_hub`` against the hub in ``HF_ENDPOINT``.

``python hub_client.py SCENARIO FOLDER [NAME=VALUE…]`` prints one JSON object with what it saw. Nothing of the product is
imported, and only calls that versions 0.36 to 2.x share are used.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.utils import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def error(call, *arguments, **options):
    """The name of the exception that a call ends in, and the hub's words."""
    try:
        call(*arguments, **options)
    except (EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as found:
        return [type(found).__name__, found.response.status_code]
    except HfHubHTTPError as found:
        return [type(found).__name__, found.response.status_code]
    except OSError as found:  # plain HTTP errors, and what the client says without an answer of the hub's
        answer = getattr(found, "response", None)
        return [type(found).__name__, 0 if answer is None else answer.status_code]
    return ["nothing", 200]


def write_files(folder: Path, seed: str) -> dict[str, str]:
    """Small files, awkward names, an empty one and one of 12 MB; name -> digest."""
    block = hashlib.sha256(seed.encode()).digest() * 32768  # 1 MiB
    made = {
        "README.md": f"---\nlicense: apache-2.0\n---\n# {seed}\n".encode(),
        "config.json": json.dumps({"seed": seed}).encode(),
        "a folder/näme #1 100%.txt": b"awkward " + seed.encode(),
        "a folder/deep/er/empty.txt": b"",
        "large.dat": b"".join(bytes([n]) + block for n in range(12)),
    }
    for name, data in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in made.items()}


def push(folder: Path, repo: str) -> dict:
    """Everything that a person does with a repository of their own."""
    api = HfApi()
    seen: dict = {"whoami": api.whoami()["name"]}
    seen["url"] = str(api.create_repo(repo))
    seen["again"] = error(api.create_repo, repo)
    api.create_repo(repo, exist_ok=True)
    digests = write_files(folder / "up", "one")
    (folder / "up" / ".gitattributes").write_text("*.dat filter=lfs\n")
    commit = api.upload_folder(repo_id=repo, folder_path=folder / "up", commit_message="first")
    seen["commit_url"], seen["oid"] = commit.commit_url, commit.oid
    info = api.model_info(repo, files_metadata=True)
    seen["info"] = {
        "sha": info.sha,
        "files": sorted(s.rfilename for s in info.siblings),
        "private": info.private,
    }
    seen["large"] = next([s.size, s.lfs["sha256"]] for s in info.siblings if s.rfilename == "large.dat")
    seen["listed"] = [one.id for one in api.list_models(author=repo.partition("/")[0])]
    tree = list(api.list_repo_tree(repo, recursive=True))
    seen["tree"] = sorted(one.path for one in tree)
    seen["flat"] = sorted(one.path for one in api.list_repo_tree(repo))
    seen["folder"] = sorted(one.path for one in api.list_repo_tree(repo, "a folder"))
    seen["no folder"] = error(lambda: list(api.list_repo_tree(repo, "nowhere")))
    seen["paths"] = sorted(
        one.path for one in api.get_paths_info(repo, ["config.json", "a folder", "gone.txt"])
    )
    # again: nothing to do
    seen["unchanged"] = api.upload_folder(repo_id=repo, folder_path=folder / "up", commit_message="same").oid
    # branch, commit there, stale parent, delete
    api.create_branch(repo, branch="round-12")
    seen["branch again"] = error(api.create_branch, repo, branch="round-12")
    side = api.upload_file(
        repo_id=repo, path_or_fileobj=b"round 12", path_in_repo="note.txt", revision="round-12"
    )
    seen["side"] = side.oid
    seen["stale"] = error(
        api.upload_file,
        repo_id=repo,
        path_or_fileobj=b"late",
        path_in_repo="late.txt",
        revision="round-12",
        parent_commit=commit.oid,
    )
    api.upload_file(
        repo_id=repo,
        path_or_fileobj=b"in time",
        path_in_repo="late.txt",
        revision="round-12",
        parent_commit=side.oid,
    )
    api.delete_file("note.txt", repo, revision="round-12")
    api.delete_folder("a folder", repo, revision="round-12")
    seen["round files"] = sorted(api.list_repo_files(repo, revision="round-12"))
    # tags
    api.create_tag(repo, tag="draft-1", revision=commit.oid)
    seen["tag again"] = error(api.create_tag, repo, tag="draft-1")
    seen["tag deleted"] = error(api.delete_tag, repo, tag="draft-1")
    seen["squash"] = error(api.super_squash_history, repo)
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    seen["branches"] = sorted(ref.name for ref in refs.branches)
    seen["tags"] = {ref.name: ref.target_commit for ref in refs.tags}
    seen["log"] = [one.title for one in api.list_repo_commits(repo, revision="round-12")]
    seen["pull request"] = error(
        api.upload_file, repo_id=repo, path_or_fileobj=b"x", path_in_repo="x", create_pr=True
    )
    # back down, at branch, tag and commit
    for name, revision in {"main": "main", "tag": "draft-1", "commit": commit.oid}.items():
        root = Path(snapshot_download(repo, revision=revision, cache_dir=folder / f"cache-{name}"))
        seen[f"down {name}"] = {
            str(path.relative_to(root)): sha256(path) for path in root.rglob("*") if path.is_file()
        } == digests
        seen[f"snapshot {name}"] = root.name
    seen["side file"] = Path(
        hf_hub_download(repo, "late.txt", revision="round-12", cache_dir=folder / "cache-main")
    ).read_text()
    seen["exists"] = [api.file_exists(repo, "config.json"), api.file_exists(repo, "gone.txt")]
    seen["revisions"] = [api.revision_exists(repo, "draft-1"), api.revision_exists(repo, "never")]
    return seen


def read(folder: Path, repo: str, revision: str) -> dict:
    """What a reader does: by revision, wrong names, cached and offline."""
    seen: dict = {}
    root = Path(snapshot_download(repo, revision=revision, cache_dir=folder / "cache"))
    seen["snapshot"] = root.name
    seen["files"] = {str(path.relative_to(root)): sha256(path) for path in root.rglob("*") if path.is_file()}
    seen["no revision"] = error(hf_hub_download, repo, "config.json", revision="never")
    seen["no file"] = error(hf_hub_download, repo, "gone.txt", revision=revision)
    seen["no repository"] = error(hf_hub_download, repo + "-gone", "config.json")
    seen["auth check"] = error(HfApi().auth_check, repo)
    # at the full commit everything is in the cache: nobody is asked
    pinned = hf_hub_download(repo, "config.json", revision=root.name, cache_dir=folder / "cache")
    seen["pinned"] = sha256(pinned)
    return seen


def pinned(folder: Path, repo: str, revision: str) -> dict:
    """A file of the cache at its full commit."""
    return {
        "config": sha256(hf_hub_download(repo, "config.json", revision=revision, cache_dir=folder / "cache"))
    }


def cached(folder: Path, repo: str, revision: str) -> dict:
    """Only what is in the cache, with no request at all."""
    root = snapshot_download(repo, revision=revision, cache_dir=folder / "cache")
    one = hf_hub_download(repo, "config.json", revision=revision, cache_dir=folder / "cache")
    return {"snapshot": Path(root).name, "config": sha256(one), "offline": constants.HF_HUB_OFFLINE}


def refused(folder: Path, repo: str, revision: str) -> dict:
    """A caller who may not read."""
    return {
        "download": error(hf_hub_download, repo, "config.json", revision=revision, cache_dir=folder / "no"),
        "large": error(hf_hub_download, repo, "large.dat", revision=revision, cache_dir=folder / "no"),
        "info": error(HfApi().model_info, repo, revision=revision),
        "create": error(HfApi().create_repo, repo + "-x"),
        "upload": error(
            HfApi().upload_file, repo_id=repo, path_or_fileobj=b"x", path_in_repo="x.txt", commit_message="x"
        ),
        "whoami": error(HfApi().whoami),
    }


def many(folder: Path, repo: str, count: str) -> dict:
    """A folder of more files than the client puts into one commit."""
    api = HfApi()
    api.create_repo(repo)
    (folder / "many").mkdir()
    for number in range(int(count)):
        (folder / "many" / f"{number}.txt").write_text(str(number))
    api.upload_folder(repo_id=repo, folder_path=folder / "many", commit_message="many")
    found = list(api.list_repo_commits(repo))
    return {"titles": [one.title for one in found], "last but one": found[1].commit_id}


def local(folder: Path, repo: str, revision: str) -> dict:
    """Everything of a version in a folder."""
    return {"folder": snapshot_download(repo, revision=revision, local_dir=folder / "local")}


def fetch(folder: Path, repo: str, revision: str, file: str) -> dict:
    """One file, again if the transfer breaks, as often as a person would."""
    tries = 0
    while True:
        tries += 1
        try:
            path = hf_hub_download(repo, file, revision=revision, cache_dir=folder / "fetch")
            return {"tries": tries, "sha256": sha256(path)}
        except Exception as problem:
            if tries == 5:
                return {"tries": tries, "error": repr(problem)}


def dataset(folder: Path, repo: str) -> dict:
    """A shared data set of one csv file."""
    api = HfApi()
    url = api.create_repo(repo, repo_type="dataset", private=True)
    (folder / "rows" / "data").mkdir(parents=True)
    (folder / "rows" / "data" / "train.csv").write_text("a,b\n1,2\n3,4\n")
    oid = api.upload_folder(
        repo_id=repo, repo_type="dataset", folder_path=folder / "rows", commit_message="rows"
    ).oid
    info = api.dataset_info(repo)
    return {"url": str(url), "oid": oid, "sha": info.sha, "private": info.private}


if __name__ == "__main__":
    scenario, where, *rest = sys.argv[1:]
    options = dict(item.split("=", 1) for item in rest)
    result = {"version": huggingface_hub.__version__, "xet": os.environ.get("HF_HUB_DISABLE_XET") != "1"}
    result |= globals()[scenario](Path(where), **options)
    print(json.dumps(result))
