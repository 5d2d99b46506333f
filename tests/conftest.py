"""For all tests: generated examples without a time limit each, and the same ones in every CI run."""

import os

from hypothesis import settings

settings.register_profile("local-llm", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("local-llm")
