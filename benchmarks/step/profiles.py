"""Where the time of a step goes: its kernels, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

TOP = 25
LONGEST_NAME = 160  # templates go on for pages


def of(call: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Of one call: all kernels' time and number, and the TOP kernels by time. On a CPU: operators, without those that
    they call."""
    cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    call()
    with torch.profiler.profile(activities=[activity]) as profiler:
        call()
        if cuda:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    found = [
        {
            "name": event.key[:LONGEST_NAME],
            "calls": event.count,
            "us": event.self_device_time_total if cuda else event.self_cpu_time_total,
        }
        for event in profiler.key_averages()
        if event.device_type == wanted and not getattr(event, "is_user_annotation", False)
    ]
    found.sort(key=lambda row: -row["us"])
    return {
        "us": sum(row["us"] for row in found),
        "calls": sum(row["calls"] for row in found),
        "top": found[:TOP],
    }
