"""A version knows how large its files are together: lists say so without reading any.

Revision 0007, after 0006.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    # Not in batches: SQLite would make the table anew, and other tables refer to it.
    op.add_column("version", sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"))
    version, file = (
        sa.table(name, sa.column("asset_id"), sa.column("size", sa.BigInteger()))
        for name in ("version", "version_file")
    )
    total = sa.select(sa.func.coalesce(sa.func.sum(file.c.size), 0)).where(
        file.c.asset_id == version.c.asset_id
    )
    op.execute(sa.update(version).values(size=total.scalar_subquery()))


def downgrade() -> None:
    """The same step back."""
    op.drop_column("version", "size")
