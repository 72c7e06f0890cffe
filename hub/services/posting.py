"""A member's own statement on its way into the log, with the file that it announces."""

from federation import wire
from hub.access import Actor
from hub.context import Hub
from hub.services import statements, uploads


def post(hub: Hub, actor: Actor, request: wire.StatementPost) -> wire.StatementRecord:
    """Log a statement and take up what it announces, both or neither; a repeat gets the first record, and
    fresh orders.

    Raises:
        Rejected, Refused: as ``statements.post`` and ``uploads.announce_whole``.
    """
    with hub.database.session_scope() as session:
        record = statements.post(hub, session, actor, request)
        if request.announces is None:
            return record
        upload = uploads.announce_whole(hub, session, actor, request.announces)
    return record.model_copy(update={"upload": uploads.answer(hub, upload)})
