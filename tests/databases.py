"""Databases for tests: SQLite always, PostgreSQL when ``FEDHUB_TEST_DATABASE_URL`` names a server.

Each test gets a database of its own: a new file, or a new schema of the server that is dropped at the end. What runs
on a server bears the mark ``engines``: ``make test`` leaves it out, ``make test-engines`` runs nothing else.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

SERVER = os.environ.get("FEDHUB_TEST_DATABASE_URL", "")
ON_SERVER = [pytest.param("postgresql", marks=pytest.mark.engines)]
DATABASES = ["sqlite", *(ON_SERVER if SERVER.startswith("postgres") else [])]


@contextmanager
def database_url(kind: str, folder: Path) -> Iterator[str]:
    """The address of an empty database of this kind."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/fedhub.db"
        return
    server = make_url(SERVER).set(drivername="postgresql+psycopg")
    schema = f"t{secrets.token_hex(8)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'CREATE SCHEMA "{schema}"'))
    try:
        yield server.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(
            hide_password=False
        )
    finally:
        with engine.connect() as connection:
            connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
        engine.dispose()
