"""The home that a command acts for. Apart from ``hub.terminal``, which the verifier uses and stays bare."""

from typing import TYPE_CHECKING

from hub.terminal import Terminal

if TYPE_CHECKING:
    from federation.home import Home


def home_of(terminal: Terminal) -> "Home":
    """The home that ``--home`` or FEDHUB_HOME names, else ./.fedhub, opened afresh."""
    from federation.home import Home

    return Home.open(terminal.home_folder)
