"""What a site itself insists on, whatever a plan says: the fewest rows that anything may be told of.

Kept in ``site/policy.json`` of the home. The larger of the plan's and the site's smallest cohort holds.
"""

from dataclasses import dataclass

from federation.fields import Schema, integer, problems
from federation.home import Home, write_atomically
from storage.encoding import canonical, read_canonical
from storage.errors import Rejected, Unchecked

POLICY_BYTES = 1 << 12
LARGEST_COHORT = 1_000_000
_POLICY: Schema = {"smallestCohort": integer(1, LARGEST_COHORT)}


@dataclass(frozen=True)
class SitePolicy:
    """A site's own minimum; 1 lets every plan decide."""

    smallest_cohort: int = 1


def read_policy(home: Home) -> SitePolicy:
    """The site's policy; the widest one where none was written.

    Raises:
        Unchecked: ``E_POLICY``: there is a file that cannot be read or is none, so nothing may be told.
    """
    path = home.site / "policy.json"
    try:
        value = read_canonical(path.read_bytes(), code="E_POLICY", limit=POLICY_BYTES)
    except FileNotFoundError:
        return SitePolicy()
    except (OSError, Rejected) as error:
        raise Unchecked("E_POLICY", f"{path}: cannot be read", "write it with: fedhub site policy") from error
    found = problems(value, _POLICY)
    if found:
        raise Unchecked("E_POLICY", f"{path}: {found[0]}", "write it with: fedhub site policy")
    return SitePolicy(value["smallestCohort"])


def write_policy(home: Home, policy: SitePolicy) -> None:
    """Write the site's policy; its agent reads it before the next order."""
    home.site.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(home.site / "policy.json", canonical({"smallestCohort": policy.smallest_cohort}))
