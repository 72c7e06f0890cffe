"""How MLflow calls a model: its names hold no ``/``, ours do.

``owner.example/digits`` is ``owner.example.digits`` there. A dotted name is cut behind an institution of this
alliance. Where two fit (``owner.example`` and ``owner.example.eu``) it is refused, whether or not either has
such a model: else a name would change its meaning with somebody's new model, or with a grant that ended.
``owner.example--digits`` always means one model, since no model's name holds ``--``.
"""

from collections.abc import Iterable

from sqlmodel import Session, col, select

from hub.errors import bad_field
from hub.services.revisions import SEGMENT, repo_not_found
from hub.tables import InstitutionRow

SEPARATOR = "--"


def model_name(session: Session, text: str) -> str:
    """``institution/name`` of a name as MLflow says it.

    Raises:
        Refused: ``E_FIELD``; it fits two institutions.
        Unchecked: ``E_REPOSITORY``; it fits none.
    """
    institution, separator, name = text.rpartition(SEPARATOR)
    if separator:
        return _whole(institution, name, text)
    owners = _owners(session, text)
    if len(owners) > 1:
        clear = " or ".join(f"{owner}{SEPARATOR}{text[len(owner) + 1 :]}" for owner in owners)
        raise bad_field("name", f"{text!r} could be a model of {' or of '.join(owners)}", f"Say {clear}.")
    if not owners:
        raise repo_not_found(text)
    return _whole(owners[0], text[len(owners[0]) + 1 :], text)


def _whole(institution: str, name: str, text: str) -> str:
    if not institution or not SEGMENT.fullmatch(name):
        raise repo_not_found(text)
    return f"{institution}/{name}"


def mlflow_names(session: Session, names: Iterable[str]) -> dict[str, str]:
    """The names under which MLflow finds these models, by ours: dotted where that is clear."""
    found = {}
    for name in names:
        institution, _, segment = name.partition("/")
        dotted = f"{institution}.{segment}"
        clear = SEPARATOR not in dotted and _owners(session, dotted) == [institution]
        found[name] = dotted if clear else f"{institution}{SEPARATOR}{segment}"
    return found


def _owners(session: Session, text: str) -> list[str]:
    """Institutions of the alliance whose name, and a dot, begin this one; approved ever, so for good."""
    parts = text.split(".")
    starts = [".".join(parts[:count]) for count in range(1, len(parts))][:64]
    query = select(InstitutionRow.name).where(
        col(InstitutionRow.name).in_(starts), InstitutionRow.state != "pending"
    )
    return sorted(session.exec(query))
