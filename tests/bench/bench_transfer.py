"""Seconds for one large file: our verified pull and push beside curl, cp + sha256, the minio client and ``hf``.

``python tests/bench/bench_transfer.py [--mib 1024] [--repeat 2] [--pushes]``. Server and client share this machine, the source
is in the page cache, there is no TLS. The folder store's blob server always runs; S3 servers run too where they are
installed (Versity S3 Gateway, MinIO, Silo). Best of ``--repeat``; "of sha256" is the rate beside SHA-256 on one thread. A second table has whole
commands against a hub process, and what its small files take (``transfers_of_hub``).
"""

import argparse
import hashlib
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from federation.ahead import ahead
from federation.fetching import READ_STREAMS, fetch
from federation.sending import send_file
from federation.wire import Upload
from storage.blobs import BlobStore, FolderStore, store_secret
from storage.manifests import PART_BYTES, hash_file
from tests.bench.transfers_of_hub import measure_hub
from tests.servers import S3_PROGRAMS, S3Server, StoreHub, blob_server, find_program, s3_server

CHUNK = 1 << 20


def best(repeat: int, work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeat):
        before()
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def curl(*arguments: str) -> None:
    subprocess.run(["curl", "--silent", "--show-error", "--fail", *arguments], check=True)


def measure(
    name: str, store: BlobStore, server: S3Server | None, bucket: str, source: Path, repeat: int
) -> list[tuple[str, float]]:
    """Rows of the table for one store."""
    sha256, size, parts = hash_file(source)
    target = source.with_name("target")
    rows: list[tuple[str, float]] = []

    def clear() -> None:
        target.unlink(missing_ok=True)

    url = store.signed_url("bench", expires_s=3600)
    rows.append((f"{name}: curl to nowhere", best(repeat, lambda: curl("--output", os.devnull, url))))

    def curl_and_hash() -> None:
        curl("--output", str(target), url)
        assert sha256_of(target) == sha256

    rows.append((f"{name}: curl to a file, then sha256", best(repeat, curl_and_hash, clear)))
    for streams in (1, READ_STREAMS):

        def pull(count: int = streams) -> None:
            fetch(url, target, sha256, size, parts, parts_are_signed=True, streams=count)

        rows.append(
            (f"{name}: our fetch, every part checked, {streams} at a time", best(repeat, pull, clear))
        )

    def pull_unsigned() -> None:
        fetch(url, target, sha256, size, parts)

    def pull_durable() -> None:
        fetch(url, target, sha256, size, parts, parts_are_signed=True, durable=True)

    rows.append((f"{name}: the same, the whole checked too", best(repeat, pull_unsigned, clear)))
    rows.append((f"{name}: every part checked, then fsync", best(repeat, pull_durable, clear)))
    if server is not None:
        from minio import Minio

        client = Minio(
            server.url.removeprefix("http://"),
            access_key=server.access,
            secret_key=server.secret,
            secure=False,
        )

        def minio_and_hash() -> None:
            client.fget_object(bucket, "bench", str(target))
            assert sha256_of(target) == sha256

        rows.append((f"{name}: minio client to a file, then sha256", best(repeat, minio_and_hash, clear)))
    clear()
    return rows


def measure_push(
    name: str, make: Callable[[], BlobStore], source: Path, repeat: int
) -> list[tuple[str, float]]:
    """Rows for pushing, each until the bytes are on the disk, under orders whose digests the store checks.

    Some S3 servers answer before that, and so leave a second writing of parts that they join to whoever comes next.
    A hub asks the folder store to write what will stay to the disk as it comes: the second row has the same for
    curl. A manifest needs the digest of each part: ours hashes the file by parts, curl's user by ``sha256``.
    """
    count, hashed = iter(range(1000)), hash_file(source)
    sent: list[tuple[BlobStore, str]] = []

    def clear() -> None:
        for store, key in sent:
            store.delete(key)
        sent.clear()

    def put(sha256: str, *, lasting: bool = False) -> None:
        store, key = make(), f"push/{next(count)}"
        order = store.order(key, sha256, hashed[1], lasting=lasting)
        headers = [item for pair in order.headers.items() for item in ("--header", ": ".join(pair))]
        curl("--upload-file", str(source), "--header", "Expect:", *headers, "--output", os.devnull, order.url)
        store.sync(key)
        os.sync()
        sent.append((store, key))

    def push(known: bool) -> None:
        hub = CheckingHub(make(), f"push/{next(count)}")
        assert send_file(hub, source, hashed=hashed if known else None).state == "stored"
        hub.store.sync(hub.key)
        os.sync()
        sent.append((hub.store, hub.key))

    ways: list[tuple[str, Callable[[], None]]] = [
        ("curl PUT of a known digest", lambda: put(hashed[0])),
        ("the same, to the disk as it comes", lambda: put(hashed[0], lasting=True)),
        ("our push of a hashed file", lambda: push(True)),
        ("sha256, then curl PUT", lambda: put(sha256_of(source))),
        ("our push, hashing included", lambda: push(False)),
    ]
    if not isinstance(make(), FolderStore):
        del ways[1]  # S3 servers write as they like
    times: dict[str, list[float]] = {what: [] for what, _ in ways}
    for turn in range(repeat):  # all of them each time, so that a slower minute meets all of them,
        for what, work in random.Random(turn).sample(ways, len(ways)):  # and each comes after others
            os.sync()  # what the disk still writes of the run before is no part of this one
            times[what].append(best(1, work))
            clear()
    return [(f"{name}: {what}", min(found)) for what, found in times.items()]


class CheckingHub(StoreHub):
    """One that takes files before their digests, and reads a file of parts as a whole before it is stored.

    The product does both.
    """

    def __init__(self, store: BlobStore, key: str) -> None:
        super().__init__(store, key)
        self.unhashed = store.one_stream

    def upload_complete(self, upload_id: str, etags: Mapping[int, str] | None = None) -> Upload:
        upload = super().upload_complete(upload_id, etags)
        if upload.state == "stored":
            return upload
        found = hashlib.sha256()
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(self.store.sync, self.key)
            for chunk in ahead(self.store.stream(self.key), 1):
                found.update(chunk)
            synced.result()
        assert found.hexdigest() == self.announced[0]
        return upload.model_copy(update={"state": "stored"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file in MiB")
    parser.add_argument("--repeat", type=int, default=2, help="runs of which the best counts")
    parser.add_argument("--pushes", action="store_true", help="only the rows of pushes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as name, ExitStack() as stack:
        folder = Path(name)
        source = folder / "source"
        with source.open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(CHUNK))
        os.sync()
        rows = [("sha256 on one thread", best(options.repeat, lambda: sha256_of(source)))]

        def copy_and_hash() -> None:
            shutil.copyfile(source, folder / "copy")
            sha256_of(folder / "copy")

        rows.append(
            (
                "cp, then sha256",
                best(options.repeat, copy_and_hash, lambda: (folder / "copy").unlink(missing_ok=True)),
            )
        )
        (folder / "copy").unlink()
        url = stack.enter_context(blob_server(folder / "store"))
        ours = FolderStore(folder / "store", url, store_secret(folder / "store"))
        shutil.copyfile(source, ours.path("bench"))
        if not options.pushes:
            rows += measure("folder", ours, None, "", source, options.repeat)
        rows += measure_push("folder", lambda: ours, source, options.repeat)
        found = [program for program in S3_PROGRAMS if find_program(program)]
        for program in found:
            rows += measure_s3(program, source, options)
        if not found:
            print(f"none of {', '.join(S3_PROGRAMS)} is installed: no S3 server measured")
        report(rows, options.mib, options.repeat)
        if not options.pushes:
            measure_hub(folder / "hub", source, options.repeat)


def measure_s3(program: str, source: Path, options: argparse.Namespace) -> list[tuple[str, float]]:
    """The rows of an S3 server, started for them."""
    from storage.blobs_minio import MinioStore

    with s3_server(program) as server:
        store = MinioStore(server.url, server.url, "bench", server.access, server.secret)
        store.check_bucket()
        send_file(CheckingHub(store, "bench"), source)
        rows = [] if options.pushes else measure(program, store, server, "bench", source, options.repeat)
        return rows + measure_push(program, lambda: store, source, options.repeat)


def report(rows: list[tuple[str, float]], mib: int, repeat: int) -> None:
    """Print the table with what it was measured on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{mib} MiB in parts of {PART_BYTES >> 20} MiB, best of {repeat}; {os.cpu_count()} cores, {platform.machine()}, load {load}, Python {platform.python_version()}"
    )
    width = max(len(name) for name, _ in rows)
    print(f"{'':{width}}  seconds   MiB/s  of sha256  of cp+sha256")
    for name, seconds in rows:
        print(
            f"{name:{width}}  {seconds:7.2f} {mib / seconds:7.0f} {rows[0][1] / seconds:10.2f} {rows[1][1] / seconds:13.2f}"
        )


if __name__ == "__main__":
    main()
