"""What holds for every test."""

from hypothesis import HealthCheck, settings

# No test asserts a time: on a busy machine an example may take as long as it likes.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
