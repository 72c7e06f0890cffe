"""Files that go to the store while they are hashed; whether one of a size is there is found by an index.

Revision 0009, after 0008.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    op.create_table(
        "unhashed_upload",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("uploader", sa.String(length=253), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("multipart", sa.String(length=1024), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unhashed_upload")),
    )
    op.create_index(op.f("ix_unhashed_upload_uploader"), "unhashed_upload", ["uploader"], unique=False)
    op.create_index(op.f("ix_unhashed_upload_expires_at"), "unhashed_upload", ["expires_at"], unique=False)
    op.create_index(op.f("ix_blob_size"), "blob", ["size"], unique=False)


def downgrade() -> None:
    """The same step back."""
    op.drop_index(op.f("ix_blob_size"), table_name="blob")
    op.drop_table("unhashed_upload")
