"""The page that `report.py` writes on the control machine: every host's report of its last days in one HTML file."""
