"""Finding models by more than their name: owner, licence, who may read the files, and release."""

from dataclasses import dataclass

from sqlmodel import Session

from federation import wire
from hub.access import Actor, Thing, decide
from hub.context import Hub
from hub.services import registry, revisions

PAGE = 50


@dataclass(frozen=True)
class Wanted:
    """What to look for; an empty text asks for nothing.

    Attributes:
        text: part of the name, in any case.
        owner: an institution.
        license: SPDX expression, or part of one.
        visibility: ``public``, ``gated`` or ``private``.
        released: only models with a released version.
    """

    text: str = ""
    owner: str = ""
    license: str = ""
    visibility: str = ""
    released: bool = False

    def fits(self, model: wire.Model) -> bool:
        """Whether the model has what the database was not asked for."""
        part = self.license.lower()
        return (
            (not self.visibility or model.visibility == self.visibility)
            and (not self.released or any(version.released for version in model.versions))
            and (not part or any(part in (version.license or "").lower() for version in model.versions))
        )


def find(
    hub: Hub, session: Session, actor: Actor, wanted: Wanted, *, cursor: str | None = None
) -> tuple[list[wire.Model], str | None]:
    """Models that the actor may see and that fit, by name, with the cursor of the next page."""
    decide(actor, "list assets", Thing("models"))
    found: list[wire.Model] = []
    while True:
        repos, following = revisions.page(
            hub,
            session,
            actor,
            "model",
            author=wanted.owner or None,
            text=wanted.text or None,
            cursor=cursor,
            limit=PAGE,
        )
        for number, repo in enumerate(repos):
            model = registry.show(hub, session, actor, repo.name)
            if not wanted.fits(model):
                continue
            found.append(model)
            if len(found) == PAGE:
                last = following is None and number == len(repos) - 1
                return found, None if last else repo.name
        if following is None:
            return found, None
        cursor = following
