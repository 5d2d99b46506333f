"""What uninstall.py does with data."""

from __future__ import annotations

from settings.section import Section, setting


class UninstallSettings(Section, title="Uninstalling"):
    """Data that uninstall.py removes as well; else it stays for the next deploy."""

    uninstall_models: bool = setting(
        False, "Whether uninstall.py removes the models as well. Kept, they are there for the next deploy."
    )
    uninstall_logs: bool = setting(False, "Whether uninstall.py removes the logs in /var/log as well.")
    uninstall_history: bool = setting(
        False, "Whether uninstall.py removes the history of measurements, /var/lib/local-llm/samples.db, as well."
    )
