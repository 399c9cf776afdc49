#!/bin/bash
#SBATCH --chdir=/shared/runs/olmoe_1b_7b/RUN_ID
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --gpus-per-node=h100:8
#SBATCH --job-name=olmoe_1b_7b
#SBATCH --mem=0
#SBATCH --nodes=32
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=job.log
#SBATCH --partition=h100
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#SBATCH --time=2-00:00:00

export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
export PYTHONPATH=/shared/runs/olmoe_1b_7b/RUN_ID/code
trap '' USR2
exec /shared/venv/bin/python -P -u -m hpc.supervise /shared/runs/olmoe_1b_7b/RUN_ID
