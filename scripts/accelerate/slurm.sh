#!/bin/bash
# Several machines under SLURM, one launch on each, every GPU a process: sbatch scripts/accelerate/slurm.sh RECIPE
# --data_dir DATA --output_dir OUT and further arguments of `allspark train`. OUT must be a folder that all machines see.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
set -euo pipefail
export MASTER_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=1  # of each worker
srun bash -c 'exec accelerate launch --config_file scripts/accelerate/two_machines.yaml \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
    --num_processes $((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-1})) \
    --main_process_ip "$MASTER_ADDRESS" --main_process_port "$MASTER_PORT" \
    -m allspark_hf train "$@"' launch "$@"
