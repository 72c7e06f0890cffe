"""Alembic's entry: runs the steps in ``versions/`` on the connection that ``hub.database`` hands over."""

from alembic import context
from sqlmodel import SQLModel

import hub.tables  # noqa: F401 - fills SQLModel.metadata, which autogenerate compares with the database

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite cannot alter a table in place
    compare_type=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
