"""The machine that tests run on is shared: a slow example is no wrong one."""

from hypothesis import settings

settings.register_profile("monitoring", deadline=None)
settings.load_profile("monitoring")
