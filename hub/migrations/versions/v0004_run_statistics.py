"""A run names the joint statistics by which its sites scale their rows.

Revision 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("statistics", sa.String(length=64), nullable=True))


def downgrade() -> None:
    """The same step back."""
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_column("statistics")
