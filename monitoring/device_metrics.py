"""The metrics of device records: what they are called, in which unit, and what a record says of its samples.

``monitoring/devices.py`` says how each is read.
"""

from __future__ import annotations

# Those of which there is a history; a share is shown in %.
METRICS = {
    "gpu_util": ("GPU use", "%"),
    "power_w": ("power", "W"),
    "gpu_memory_gib": ("GPU memory", "GiB"),
    "temperature_c": ("temperature", "C"),
    "clock_mhz": ("clock", "MHz"),
    "throttled": ("throttled", "%"),
    "cpu_cores": ("CPU cores", ""),
    "memory_gib": ("memory", "GiB"),
    "host_cpu_util": ("node's CPU", "%"),
    "host_memory_gib": ("node's memory", "GiB"),
}
BY_NODE = ("host_cpu_util", "host_memory_gib")  # told by one rank of each node

# What a record says of its samples, where it is not their mean.
COUNTERS = ("energy_j", "ecc_errors", "xid")  # the newest, and all its digits before the point
TOTALS = ("gpu_memory_total_gib", "host_memory_total_gib")  # the newest
PEAKS = ("temperature_c", "gpu_memory_gib", "memory_gib", "host_memory_gib")  # the highest, which is what hurts
