"""Many files: one bad file does not stop the rest, and an interrupted run goes on where it was.

jobs       find_images, plan: which inputs, which outputs, in which order
pipeline   run: reading, restoring and writing overlap, at most IN_FLIGHT images at a time
record     Record: what made each output, kept beside them; by it a finished file is known by content
processes  Processes: each process of accelerate's or torchrun's takes its share, one report at the end
"""

from cpl.inference.folder.jobs import Job, find_images, natural_order, plan
from cpl.inference.folder.pipeline import IN_FLIGHT, Interrupted, Report, run
from cpl.inference.folder.processes import Processes
from cpl.inference.folder.record import Record, model_digest

__all__ = [
    "IN_FLIGHT",
    "Interrupted",
    "Job",
    "Processes",
    "Record",
    "Report",
    "find_images",
    "model_digest",
    "natural_order",
    "plan",
    "run",
]
