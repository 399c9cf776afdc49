#!/bin/bash
# No Slurm: what hpc submit starts on this machine, with its output in job.log

export GLOO_SOCKET_IFNAME=lo
export NCCL_SOCKET_IFNAME=lo
export PYTHONPATH=/shared/runs/tiny_moe/RUN_ID/code
trap '' USR2
exec /shared/venv/bin/python -P -u -m hpc.supervise /shared/runs/tiny_moe/RUN_ID
