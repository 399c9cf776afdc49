#!/bin/bash
#SBATCH --chdir=/shared/runs/llammlein_120m/RUN_ID
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --gres=gpu:l40:2
#SBATCH --job-name=llammlein_120m
#SBATCH --mem=0
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=job.log
#SBATCH --partition=l40
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#SBATCH --time=2-00:00:00

export NCCL_IB_DISABLE=1
export PYTHONPATH=/shared/runs/llammlein_120m/RUN_ID/code
trap '' USR2
exec /shared/venv/bin/python -P -u -m hpc.supervise /shared/runs/llammlein_120m/RUN_ID
