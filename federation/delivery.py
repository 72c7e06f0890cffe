"""How a coordinator's texts reach sites and their answers come back, whatever carries them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Delivery:
    """What came back for one text that was sent: an answer, or why there is none."""

    message: str
    text: str | None
    problem: str = ""


class Exchange(Protocol):
    """Carries texts to nodes and their answers back."""

    def send(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Send texts to node ids (decimal) and give the message id for each node that could be sent to."""

    def collect(self, messages: Sequence[str], *, wait_s: float) -> list[Delivery]:
        """The answers to these messages that have come by now, waiting up to ``wait_s`` for the first."""

    def connected(self) -> dict[str, str]:
        """Node ids that are connected, each with the time it connected, as text to be compared only."""
