"""Seconds for one large file: our verified pull and push beside curl, cp + sha256, the minio client and ``hf``.

``python tests/bench/bench_transfer.py [--mib 1024] [--repeat 2]``. Server and client share this machine, the source
is in the page cache, there is no TLS. The folder store's blob server always runs; Versity S3 Gateway runs too where
it is installed. Best of ``--repeat``; "of sha256" is the rate beside SHA-256 on one thread. A second table has whole
commands against a hub process, and what its small files take (``transfers_of_hub``).
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from federation.transfer import fetch, send_file
from storage.blobs import BlobStore, FolderStore, store_secret
from storage.manifests import PART_BYTES, hash_file
from tests.bench.transfers_of_hub import measure_hub
from tests.servers import S3Server, StoreHub, blob_server, find_program, s3_server

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
    for streams in (1, 2, 4):

        def pull(count: int = streams) -> None:
            fetch(url, target, sha256, size, parts, parts_are_signed=True, streams=count)

        rows.append(
            (f"{name}: our fetch, every part checked, {streams} at a time", best(repeat, pull, clear))
        )

    def pull_unsigned() -> None:
        fetch(url, target, sha256, size, parts)

    def pull_durable() -> None:
        fetch(url, target, sha256, size, parts, parts_are_signed=True, durable=True)

    rows.append((f"{name}: the same, 4 at a time, the whole checked too", best(repeat, pull_unsigned, clear)))
    rows.append((f"{name}: every part checked, 4 at a time, then fsync", best(repeat, pull_durable, clear)))
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

    The hub hashes nothing that went whole, so neither does this. A manifest needs the digest of each part: ours
    hashes the file by parts, curl's user by ``sha256``.
    """
    count, hashed = iter(range(1000)), hash_file(source)

    def put(sha256: str) -> None:
        store, key = make(), f"push/{next(count)}"
        order = store.order(key, sha256, hashed[1])
        headers = [item for pair in order.headers.items() for item in ("--header", ": ".join(pair))]
        curl("--upload-file", str(source), "--header", "Expect:", *headers, "--output", os.devnull, order.url)
        store.sync(key)
        store.delete(key)

    def push(known: bool) -> None:
        hub = StoreHub(make(), f"push/{next(count)}")
        hub.checks = 0
        assert send_file(hub, source, hashed=hashed if known else None).state == "stored"
        hub.store.sync(hub.key)
        hub.store.delete(hub.key)

    return [
        (f"{name}: curl PUT of a known digest", best(repeat, lambda: put(hashed[0]))),
        (f"{name}: our push of a hashed file", best(repeat, lambda: push(True))),
        (f"{name}: sha256, then curl PUT", best(repeat, lambda: put(sha256_of(source)))),
        (f"{name}: our push, hashing included", best(repeat, lambda: push(False))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file in MiB")
    parser.add_argument("--repeat", type=int, default=2, help="runs of which the best counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as name, ExitStack() as stack:
        folder = Path(name)
        source = folder / "source"
        with source.open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(CHUNK))
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
        rows += measure("folder", ours, None, "", source, options.repeat)
        rows += measure_push("folder", lambda: ours, source, options.repeat)
        if find_program("versitygw"):
            from storage.blobs_minio import MinioStore

            server = stack.enter_context(s3_server("versitygw"))
            s3 = MinioStore(server.url, server.url, "bench", server.access, server.secret)
            s3.make_bucket()
            from minio import Minio

            Minio(
                server.url.removeprefix("http://"),
                access_key=server.access,
                secret_key=server.secret,
                secure=False,
            ).fput_object("bench", "bench", str(source))
            rows += measure("versitygw", s3, server, "bench", source, options.repeat)
            rows += measure_push("versitygw", lambda: s3, source, options.repeat)
        else:
            print("versitygw is not installed: no S3 server measured")
        report(rows, options.mib, options.repeat)
        measure_hub(folder / "hub", source, options.repeat)


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
