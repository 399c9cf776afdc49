"""The login node: everything between a person and Slurm. Nothing in here imports torch."""

__version__ = "0.1.0"
