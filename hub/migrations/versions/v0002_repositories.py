"""Repositories as stock clients see them: commits, branches, drafts, shared data sets.

Every version that is here already gets its commit, in the order of versions, on the branch main.

Revision 0002, after 0001.
"""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    op.create_table(
        "branch",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("branch", sa.String(length=128), nullable=False),
        sa.Column("revision", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "branch", name=op.f("pk_branch")),
    )
    op.create_table(
        "draft_tag",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("revision", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "tag", name=op.f("pk_draft_tag")),
    )
    op.create_table(
        "git_blob",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("oid", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_git_blob")),
    )
    op.create_table(
        "plain_upload",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("uploader", sa.String(length=253), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("multipart", sa.String(length=1024), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plain_upload")),
    )
    with op.batch_alter_table("plain_upload", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_plain_upload_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_plain_upload_uploader_sha256"), ["uploader", "sha256"], unique=False
        )

    op.create_table(
        "revision",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("parent", sa.String(length=40), nullable=True),
        sa.Column("asset_id", sa.String(length=64), nullable=True),
        sa.Column("statement", sa.String(length=64), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("title", sa.String(length=1000), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("author", sa.String(length=253), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "id", name=op.f("pk_revision")),
    )
    with op.batch_alter_table("revision", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_revision_kind_name_asset_id"), ["kind", "name", "asset_id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_revision_kind_name_version"), ["kind", "name", "version"], unique=False
        )

    op.create_table(
        "shared_dataset",
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("owner", sa.String(length=253), nullable=False),
        sa.Column("visibility", sa.String(length=8), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_shared_dataset")),
    )
    with op.batch_alter_table("shared_dataset", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_shared_dataset_owner"), ["owner"], unique=False)

    op.create_table(
        "xorb",
        sa.Column("owner", sa.String(length=253), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "hash", name=op.f("pk_xorb")),
    )
    with op.batch_alter_table("xorb", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_xorb_expires_at"), ["expires_at"], unique=False)

    _commit_versions(op.get_bind())


def _commit_versions(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    tables.reflect(connection, only=("model", "version", "revision", "branch"))
    model, version = tables.tables["model"], tables.tables["version"]
    revision, branch = tables.tables["revision"], tables.tables["branch"]
    for one in connection.execute(sa.select(model).order_by(model.c.name)).all():
        head = _commit_id(one.name, None, None, None)
        row = {"kind": "model", "name": one.name, "message": "", "author": one.owner}
        first = {"id": head, "title": "initial commit", "created_at": one.created_at}
        rows = [{**row, **first, "parent": None, "asset_id": None, "statement": None, "version": None}]
        query = sa.select(version).where(version.c.name == one.name).order_by(version.c.version)
        for each in connection.execute(query).all():
            made = _commit_id(one.name, head, each.asset_id, each.statement)
            rows.append(
                {
                    **row,
                    "id": made,
                    "title": f"Version {each.version}",
                    "created_at": each.created_at,
                    "parent": head,
                    "asset_id": each.asset_id,
                    "statement": each.statement,
                    "version": each.version,
                }
            )
            head = made
        connection.execute(sa.insert(revision), rows)
        connection.execute(
            sa.insert(branch), [{"kind": "model", "name": one.name, "branch": "main", "revision": head}]
        )


def _commit_id(name: str, parent: str | None, manifest: str | None, asset: str | None) -> str:
    """As ``hub.services.revisions`` computes it; written out, since this step never changes."""
    said = {"repo": f"models/{name}", "parent": parent, "manifest": manifest, "asset": asset}
    members = {key: value for key, value in said.items() if value is not None}
    return hashlib.sha256(json.dumps(members, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[
        :40
    ]


def downgrade() -> None:
    """The same step back."""
    with op.batch_alter_table("xorb", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_xorb_expires_at"))

    op.drop_table("xorb")
    with op.batch_alter_table("shared_dataset", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_shared_dataset_owner"))

    op.drop_table("shared_dataset")
    with op.batch_alter_table("revision", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_revision_kind_name_version"))
        batch_op.drop_index(batch_op.f("ix_revision_kind_name_asset_id"))

    op.drop_table("revision")
    with op.batch_alter_table("plain_upload", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_plain_upload_uploader_sha256"))
        batch_op.drop_index(batch_op.f("ix_plain_upload_expires_at"))

    op.drop_table("plain_upload")
    op.drop_table("git_blob")
    op.drop_table("draft_tag")
    op.drop_table("branch")
