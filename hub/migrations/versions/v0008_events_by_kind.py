"""The events of one kind are found without walking through all of a run's.

Revision 0008, after 0007.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    op.create_index(op.f("ix_event_plan_kind_id"), "event", ["plan", "kind", "id"], unique=False)


def downgrade() -> None:
    """The same step back."""
    op.drop_index(op.f("ix_event_plan_kind_id"), table_name="event")
