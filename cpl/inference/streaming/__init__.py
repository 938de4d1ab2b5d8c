"""A whole image restored exactly in bounded memory: feature maps lie in a workspace, partly on disk, window by window.

workspace  feature maps in memory or in files that vanish with the process, and how much of both is needed
windows    what is computed of a part of a map at a time: convolutions with their border, blocks in two sweeps
walk       the network's order of things; run once without arithmetic, it says what it will need
restore    the plan for a limit, checked before the work, and the work
"""

from cpl.inference.streaming.restore import CLOSE, Plan, about_margin, plan, restore_streaming

__all__ = ["CLOSE", "Plan", "about_margin", "plan", "restore_streaming"]
