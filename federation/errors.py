"""What can go wrong in a round besides what ``storage.errors`` knows. Both kinds name the site.

FedhubError
└── Rejected
    └── UpdateRejected   one site's update cannot be folded in; the round may go on without it
"""

from storage.errors import Rejected


class UpdateRejected(Rejected):
    """One site's update breaks a rule: layout, a value that is no number, or its count of examples.

    Attributes:
        site: whose update it is, as the caller named it.
    """

    def __init__(self, code: str, message: str, hint: str = "", *, site: str) -> None:
        super().__init__(code, message, hint)
        self.site = site
