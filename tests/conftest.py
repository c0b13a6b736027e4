"""Of all tests: no example of a property is timed, as a busy machine may take its time, and examples are the same ones
every time."""

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
