"""A round names the state that its server optimiser ended with, so that a run goes on from it on any machine.

Revision 0003, after 0002.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.add_column(sa.Column("state", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """The same step back."""
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.drop_column("state")
