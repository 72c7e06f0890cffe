"""How property tests run: no example has to be quick, since machines are not. And the two ways of a fetch.

Where ``CI`` is set, hypothesis draws the same examples each time, so that a change is judged by what it changes.
"""

import sys

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("fedhub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedhub")


@pytest.fixture(params=["spliced", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a fetch brings goes to its file inside the kernel, as Linux can, or through our memory."""
    if request.param == "copied":
        monkeypatch.setattr("federation.fetching.can_splice", lambda file: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux splices")
    return str(request.param)
