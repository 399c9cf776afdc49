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

module load lang/Python/3.11.5-GCCcore-13.2.0
module load system/CUDA/12.4.0
export NCCL_IB_RETRY_CNT=10
export NCCL_IB_TIMEOUT=50
export UCX_RC_TIMEOUT=4s
export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
export PYTHONPATH=/shared/runs/tiny_moe/20260131-120000-1f2e/code
trap '' USR2
exec /usr/bin/python3 -P -u -m hpc.supervise /shared/runs/tiny_moe/20260131-120000-1f2e
# ranks: srun --nodes=24 --ntasks=96 --ntasks-per-node=4 --cpus-per-task=32 --distribution=block --export=ALL --input=none --kill-on-bad-exit=1 --wait=60 --unbuffered --open-mode=append --output=/shared/runs/tiny_moe/20260131-120000-1f2e/attempts/0/rank-%t.log '--container-image=nvcr.io#nvidia/pytorch:25.01-py3' --container-mounts=/shared/runs:/shared/runs,/shared/data/de:/shared/data/de,/scratch:/tmp /bin/sh -c 'trap "" USR2; exec "$@"' rank python3 -P -u -m submitit.core._submit /shared/runs/tiny_moe/20260131-120000-1f2e
