"""Large lists: each manifest's files as one text, what was ever released, indexes for the filters.

Revision 0005, after 0004.
"""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BATCH = 1000


def upgrade() -> None:
    """One step forward."""
    op.create_table(
        "file_list",
        sa.Column("asset_id", sa.String(length=64), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("asset_id", name=op.f("pk_file_list")),
    )
    # Not in batches: SQLite would make the table anew, and versions refer to it.
    op.add_column("model", sa.Column("released", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(op.f("ix_model_released_name"), "model", ["released", "name"], unique=False)
    op.create_index(op.f("ix_version_license_name"), "version", ["license", "name"], unique=False)
    op.create_index(op.f("ix_tag_tag_name"), "tag", ["tag", "name"], unique=False)
    connection = op.get_bind()
    tables = sa.MetaData()
    tables.reflect(
        connection, only=("model", "version", "version_file", "file_list", "statement", "statement_subject")
    )
    _list_files(connection, tables)
    _note_releases(connection, tables)


def _list_files(connection: sa.Connection, tables: sa.MetaData) -> None:
    listed, rows = tables.tables["file_list"], []
    for asset_id, files in _by_asset(connection, tables.tables["version_file"]):
        rows.append(
            {"asset_id": asset_id, "files": json.dumps(files, ensure_ascii=False, separators=(",", ":"))}
        )
        if len(rows) == BATCH:
            connection.execute(sa.insert(listed), rows)
            rows = []
    if rows:
        connection.execute(sa.insert(listed), rows)


def _by_asset(connection: sa.Connection, table: sa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each manifest's files in the manifest's order; a page of manifests at a time."""
    after = ""
    while True:
        ids = sa.select(table.c.asset_id).distinct().where(table.c.asset_id > after)
        page = connection.scalars(ids.order_by(table.c.asset_id).limit(BATCH)).all()
        if not page:
            return
        found: dict[str, list[dict[str, Any]]] = {asset_id: [] for asset_id in page}
        within = table.c.asset_id.between(page[0], page[-1])
        for row in connection.execute(sa.select(table).where(within)).all():
            file = {"name": row.name, "sha256": row.sha256, "size": row.size, "parts": row.parts}
            found[row.asset_id].append(file)
        for asset_id, files in found.items():
            yield asset_id, sorted(files, key=lambda file: str(file["name"]).split("/"))
        after = page[-1]


def _note_releases(connection: sa.Connection, tables: sa.MetaData) -> None:
    model, version = tables.tables["model"], tables.tables["version"]
    statement, subject = tables.tables["statement"], tables.tables["statement_subject"]
    released = (
        sa.select(version.c.name)
        .join(subject, subject.c.digest == version.c.asset_id)
        .join(statement, sa.and_(statement.c.id == subject.c.statement, statement.c.kind == "release"))
    )
    connection.execute(sa.update(model).where(model.c.name.in_(released)).values(released=sa.true()))


def downgrade() -> None:
    """The same step back."""
    op.drop_index(op.f("ix_tag_tag_name"), table_name="tag")
    op.drop_index(op.f("ix_version_license_name"), table_name="version")
    op.drop_index(op.f("ix_model_released_name"), table_name="model")
    op.drop_column("model", "released")
    op.drop_table("file_list")
