#!/bin/bash
#SBATCH --account=hpc-prf-lola
#SBATCH --chdir=/shared/runs/tiny_moe/20260131-120000-1f2e
#SBATCH --constraint=fast
#SBATCH --cpus-per-task=32
#SBATCH --exclude=n2gpu1203
#SBATCH --exclusive
#SBATCH --gpus-per-node=a100:4
#SBATCH --job-name=tiny_moe
#SBATCH --mem=200G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=job.log
#SBATCH --partition=gpu
#SBATCH --qos=cont
#SBATCH --requeue
#SBATCH --reservation=lola_production_run
#SBATCH --signal=B:USR2@120
#SBATCH --time=10:00:00

module load lang/Python/3.11.5-GCCcore-13.2.0
module load system/CUDA/12.4.0
export NCCL_IB_RETRY_CNT=10
export NCCL_IB_TIMEOUT=50
export UCX_RC_TIMEOUT=4s
export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
export PYTHONPATH=/shared/runs/tiny_moe/20260131-120000-1f2e/code
trap '' USR2
exec /shared/venv/bin/python -P -u -m hpc.supervise /shared/runs/tiny_moe/20260131-120000-1f2e
