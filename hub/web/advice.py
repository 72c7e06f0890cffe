"""Whose move it is after a stop, and what it is: one table for the troubles that a run's page shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """Who can mend it, and the next step."""

    owner: str
    step: str


SITE, OWNER, OPERATOR = "the site", "the plan's owner", "the operator"

_CODES: dict[str, Advice] = {
    "E_CONSENT": Advice(SITE, "Look at the plan and decide: fedhub site approve PLAN"),
    "E_REVOKED": Advice(SITE, "It took its consent back. Go on without it, or ask why."),
    "E_PLAN": Advice(OWNER, "The order does not fit the plan. Submit a new plan and ask for consent."),
    "E_BUDGET": Advice(SITE, "Its budget for this data set is spent. Go on without it, or ask it for more."),
    "E_DATASET_CHANGED": Advice(SITE, "Describe the data again: fedhub data describe. A new plan names it."),
    "E_DATASET_UNKNOWN": Advice(SITE, "Describe the data at this site: fedhub data describe FOLDER"),
    "E_DATA": Advice(SITE, "The rows do not fit the recipe. Its own log names file and column."),
    "E_SIGNATURE": Advice(OPERATOR, "The order's signature does not hold at the site. Compare the pins."),
    "E_ISSUER": Advice(OPERATOR, "The order is not the operator's whom the site pins. Compare the pins."),
    "E_KEY_UNKNOWN": Advice(OPERATOR, "The site does not know this key. Compare ring and pin by phone."),
    "E_ORDER": Advice(OPERATOR, "The order breaks a rule; the site's log says which."),
    "E_ORDER_LATE": Advice(OPERATOR, "The order came after its deadline. Compare the clocks."),
    "E_TIME": Advice(OPERATOR, "Compare the clocks of hub and site."),
    "E_RECIPE": Advice(OWNER, "The site cannot run this recipe. Compare versions, or plan another one."),
    "E_RECIPE_SOURCE": Advice(SITE, "The recipe's code there is not what the plan names. Update fedhub."),
    "E_NOT_FINITE": Advice(OWNER, "The update has NaN or infinity. Lower the learning rate in a new plan."),
    "E_TENSORS": Advice(SITE, "The update has other tensors than the model. Update fedhub at the site."),
    "E_LAYOUT": Advice(SITE, "The update has other tensors than the model. Update fedhub at the site."),
    "E_EXAMPLES": Advice(SITE, "It reported an impossible number of rows. Ask the site."),
    "E_RECEIPT": Advice(SITE, "The receipt does not hold. Its own log says why."),
    "E_LATE": Advice(SITE, "It did not answer in time. Is its agent running? fedhub site status"),
    "E_SITE_GONE": Advice(SITE, "Its agent is not connected. Start it: fedhub site up"),
    "E_SITE_DISK": Advice(SITE, "Its disk is full. Make room, then start the agent: fedhub site up"),
    "E_SITE_IO": Advice(SITE, "It could not read or write a file. Its own log names it."),
    "E_DISK_FULL": Advice(OPERATOR, "A disk is full. Make room, then: fedhub run resume PLAN"),
    "E_EXTRA": Advice(SITE, "A library is missing there. Install fedhub[lab] at the site."),
    "E_STORE_UNREACHABLE": Advice(OPERATOR, "The object store cannot be reached: fedhub hub doctor"),
    "E_HUB_UNREACHABLE": Advice(OPERATOR, "The hub cannot be reached from there: fedhub hub doctor"),
    "E_ATTEMPTS": Advice(OPERATOR, "Mend the last error, then the owner goes on: fedhub run resume PLAN"),
    "E_CONTROL": Advice(OPERATOR, "SuperLink refuses. Look at its log, then: fedhub hub doctor"),
    "E_SUPERLINK_AWAY": Advice(OPERATOR, "Start SuperLink, then the owner goes on: fedhub run resume PLAN"),
}
_UNKNOWN = Advice(SITE, "The site's own log says more about this code.")


def advice_on(code: str) -> Advice:
    """Who can mend what this code says, and how; codes that are not in the table stand in the site's log."""
    return _CODES.get(code, _UNKNOWN)
