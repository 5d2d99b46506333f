"""Checks of a deployed local LLM, run on the host itself.

Needs the distribution's python3 (3.11 or newer), requests and psutil; imports nothing of the deployment.
Entry point: `checks.cli.main`. What is checked: `checks.runner.GROUPS`.
"""

__version__ = "1.0.0"
