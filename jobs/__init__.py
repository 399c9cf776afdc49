"""What runs on compute nodes, one class per kind of job. Thin: they join hpc, trainer and monitoring."""
