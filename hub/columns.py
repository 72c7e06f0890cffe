"""The kinds of columns that the hub's tables are made of, and how their constraints are named."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, LargeBinary
from sqlmodel import Field, SQLModel

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def moment(**rules: Any) -> Any:
    """A column of seconds since 1970, or of another number that may pass 2^31."""
    return Field(sa_type=BigInteger, **rules)


def digest(**rules: Any) -> Any:
    """A column of one hex SHA-256."""
    return Field(max_length=64, **rules)


def octets() -> Any:
    """A column of raw bytes."""
    return Field(sa_column=Column(LargeBinary, nullable=False))


def listed(*, nullable: bool = False) -> Any:
    """A column of a JSON list or object."""
    column: Column[Any] = Column(JSON(none_as_null=True), nullable=nullable)
    return Field(default=None, sa_column=column) if nullable else Field(sa_column=column)
