"""A real, rootless Slurm in the shape of a described cluster, on this machine: slurmctld, a slurmd per node, munge.

``find`` is what everything that starts a Slurm program asks first; ``emulated`` is for tests.
"""

from hpc.emulate.emulation import Emulation, find
from hpc.emulate.lifecycle import busy, down, emulated, up
from hpc.emulate.slurm_conf import Options
from hpc.emulate.state import directories

__all__ = ["Emulation", "Options", "busy", "directories", "down", "emulated", "find", "up"]
