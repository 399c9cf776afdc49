#!/bin/bash
#SBATCH --chdir=/shared/runs/linly_33b/RUN_ID
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:8
#SBATCH --job-name=linly_33b
#SBATCH --mem=0
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=job.log
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#SBATCH --time=1-00:00:00

export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
export PYTHONPATH=/shared/runs/linly_33b/RUN_ID/code
trap '' USR2
exec /shared/venv/bin/python -P -u -m hpc.supervise /shared/runs/linly_33b/RUN_ID
