"""The training engine. Knows nothing of Slurm, Hydra or the monitor: it is handed ``stop()`` and ``record``."""
