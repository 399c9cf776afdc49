#!/bin/bash
#SBATCH --chdir=/shared/runs/tiny_moe/20260131-120000-1f2e
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:4
#SBATCH --job-name=tiny_moe
#SBATCH --mem=0
#SBATCH --nodes=24
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=job.log
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#SBATCH --time=2-00:00:00

# EMULATED: no modules or environments, and all nodes are this machine
export HPC_EMULATED=1
export NCCL_IB_RETRY_CNT=10
export NCCL_IB_TIMEOUT=50
export UCX_RC_TIMEOUT=4s
export GLOO_SOCKET_IFNAME=lo
export NCCL_SOCKET_IFNAME=lo
export PYTHONPATH=/shared/runs/tiny_moe/20260131-120000-1f2e/code
trap '' USR2
exec /shared/venv/bin/python -P -u -m hpc.supervise /shared/runs/tiny_moe/20260131-120000-1f2e
