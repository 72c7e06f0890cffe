"""How a page tells ways to pull: one command per client."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """One way to pull: what to type."""

    title: str
    about: str
    text: str
