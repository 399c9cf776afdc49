"""The Hydra tree. Every file in it is checked against the dataclasses of hpc/config.py."""
