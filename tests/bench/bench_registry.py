"""Requests per second of a hub that holds 10,000 models and 100,000 versions, on SQLite and on PostgreSQL.

``python tests/bench/bench_registry.py [--models 10000 --versions 100000] [--seconds 2] [--json FILE]``. The rows are
put straight into the tables (``registry_rows`` says what they are); then ``fedhub hub up`` serves them with one
process, and ``load`` asks over a few keep-alive connections. "per core" is requests per CPU second of the hub's
process; PostgreSQL's own processes and the client are not in it, but all share this machine. No TLS.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.registry_rows import TOKEN, Filled, fill, name_of
from tests.hubs import running_hub
from tests.servers import find_program, free_port, postgres

ROOT = Path(__file__).parents[2]
CONNECTIONS = 8
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    database: str
    what: str
    per_second: float
    per_core: float  # requests per CPU second of the hub
    p50_ms: float
    p99_ms: float


def paths(models: int, each: int) -> dict[str, list[tuple[str, str, bool]]]:
    """What is asked: name of the line -> method, path, whether with a token; spread over all models."""
    spread = random.Random(5).sample(range(models), min(models, 2000))
    public = [n for n in spread if n // 7 % 4 == 1]
    seen = [n for n in spread if n // 7 % 4 != 3]
    return {
        "a route that does nothing": [("GET", "/healthz", False)],
        "Hugging Face info, anonymous": [("GET", f"/api/models/{name_of(n)}", False) for n in public],
        "Hugging Face info, token": [("GET", f"/api/models/{name_of(n)}", True) for n in seen],
        "our info (10 versions), anonymous": [("GET", f"/api/v1/models/{name_of(n)}", False) for n in public],
        "our info (10 versions), token": [("GET", f"/api/v1/models/{name_of(n)}", True) for n in seen],
        "HEAD of a small file at main, anonymous": [
            ("HEAD", f"/{name_of(n)}/resolve/main/config.json", False) for n in public
        ],
        "HEAD of a large file at main, token": [
            ("HEAD", f"/{name_of(n)}/resolve/main/model.safetensors", True) for n in public
        ],
        "HEAD of a small file at a tag, token": [
            ("HEAD", f"/{name_of(n)}/resolve/stable/config.json", True) for n in public
        ],
        "list, search": [
            ("GET", f"/api/v1/models?search={word}", True) for word in ("retina", "wind-ranker")
        ],
        "list, search that finds nothing": [("GET", "/api/v1/models?search=qqqq", True)],
        "Hugging Face list, search": [("GET", "/api/models?search=sepsis-encoder", True)],
        "list, released": [("GET", "/api/v1/models?released=true", True)],
        "list, licence": [("GET", "/api/v1/models?license=cc-by", True)],
        "list, tag": [("GET", "/api/v1/models?tag=stable", True)],
        "web page of a list, search": [("GET", "/models?search=retina", True)],
    }


@contextmanager
def serving(folder: Path, settings: dict[str, str]) -> Iterator[tuple[int, int]]:
    """The hub as ``fedhub hub up`` starts it: port and process id."""
    port = free_port()
    given = {"FEDHUB_PORT": port, "FEDHUB_DOWNLOAD_PORT": free_port(), "FEDHUB_BLOB_PORT": free_port()}
    environment = os.environ | settings | {name: str(value) for name, value in given.items()}
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hub", "hub", "up", "--json"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit((folder / "hub.log").read_text()[-3000:])
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(30)


def cpu_s(process: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def ask(port: int, asked: list[tuple[str, str, bool]], seconds: float) -> dict[str, float]:
    """Run the load generator once."""
    token = f"Authorization: Bearer {TOKEN}\r\nCookie: fedhub_token={TOKEN}\r\n"  # of programs, of pages
    texts = [
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{token if known else ''}\r\n"
        for method, path, known in asked
    ]
    order = {"host": "127.0.0.1", "port": port, "requests": texts, "seconds": seconds, "status": [200, 302]}
    order["connections"] = CONNECTIONS
    answer = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("load.py"))],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=False,
    )
    if answer.returncode:
        raise SystemExit(answer.stderr.decode()[-2000:])
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def measure(
    name: str, folder: Path, database: dict[str, Any], options: argparse.Namespace
) -> tuple[Filled, list[Row]]:
    """Fill one database and measure each line on it."""
    with running_hub(folder, **database) as hub:
        filled = fill(hub.hub, options.models, options.versions)
        hub.hub.ledger.publish()  # else the hub that is measured would publish the filled log meanwhile
        origin, operator = hub.settings.origin, hub.settings.operator
    settings = {
        "FEDHUB_ORIGIN": origin,
        "FEDHUB_OPERATOR": operator,
        "FEDHUB_DATA_DIR": str(folder / "hub"),
        "FEDHUB_OPERATOR_HOME": str(folder / "homes" / "operator"),
        "FEDHUB_SUPERLINK": "off",
        "FEDHUB_REQUESTS_PER_MINUTE": "0",
        **{f"FEDHUB_{key.upper()}": str(value) for key, value in database.items()},
    }
    rows = []
    with serving(folder, settings) as (port, process):
        for what, asked in paths(options.models, options.versions // options.models).items():
            if not asked or (options.only and options.only not in what):
                continue
            ask(port, asked, 0.3)
            before = cpu_s(process)
            found = ask(port, asked, options.seconds)
            used = cpu_s(process) - before
            per_second = found["requests"] / found["seconds"]
            rows.append(
                Row(name, what, per_second, found["requests"] / used, found["p50_ms"], found["p99_ms"])
            )
    return filled, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=100_000, help="of all models together")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--only", default="", help="lines whose name holds this")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-registry-") as name, ExitStack() as stack:
        databases: dict[str, dict[str, Any]] = {"SQLite": {}}
        if find_program("postgres"):
            databases["PostgreSQL"] = {"database_url": stack.enter_context(postgres())}
        else:
            print("PostgreSQL is not installed: SQLite only")
        for database, settings in databases.items():
            folder = Path(name) / database
            folder.mkdir()
            filled, found = measure(database, folder, settings, options)
            rows += found
            print(
                f"{database}: {filled.models} models, {filled.versions} versions, {filled.files} files in {filled.seconds:.0f} s"
            )
    report(rows)
    if options.json:
        said = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(said, indent=2))


def machine() -> str:
    """What it was measured on."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} cores, {platform.machine()}, load {load}, Python {platform.python_version()}"


def report(rows: list[Row]) -> None:
    """Print the table."""
    print(f"{CONNECTIONS} connections, one hub process; {machine()}")
    width = max(len(row.what) for row in rows)
    print(f"{'':10}  {'':{width}}  req/s  per core  p50 ms  p99 ms")
    for row in rows:
        figures = f"{row.per_second:6.0f} {row.per_core:9.0f} {row.p50_ms:7.1f} {row.p99_ms:7.1f}"
        print(f"{row.database:10}  {row.what:{width}} {figures}")


if __name__ == "__main__":
    main()
