"""A network looked at from outside: which prompts it chooses for which degradation, and what wrong ones would do.

measure  photos degraded and restored, with the right prompts and with wrong ones
usage    prompt usage per degradation and level; which degradation a photo's choices look like
charts   heat map, distances and examples as PNG
report   all of it as files and one page
"""

from cpl.inference.inspect.measure import CLEAN, Inspected, Inspection, inspect_model
from cpl.inference.inspect.report import FILES, summary, write_report
from cpl.inference.inspect.usage import Likely, Usage, read_usage, router_fingerprint

__all__ = [
    "CLEAN",
    "FILES",
    "Inspected",
    "Inspection",
    "Likely",
    "Usage",
    "inspect_model",
    "read_usage",
    "router_fingerprint",
    "summary",
    "write_report",
]
