"""Write every host's report of its last days to report.html: `pyinfra -y inventory.py report.py`, exit 1 on a FAIL.

`--data report_file=FILE` names another file, `--data report_days=N` another number of days.
"""

from tasks import report
from tasks.hosts import become_root

become_root()
report.collect()
