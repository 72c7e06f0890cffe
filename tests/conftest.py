"""How property tests run: no example has to be quick, since machines are not.

Where ``CI`` is set, hypothesis draws the same examples each time, so that a change is judged by what it changes.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("fedhub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedhub")
