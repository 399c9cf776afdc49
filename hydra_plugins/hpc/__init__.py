"""What Hydra finds of hpc: plugins must lie in this package to be taken. Imported at every start, so kept light."""
