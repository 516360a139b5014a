#!/bin/bash
# A family on 4 nodes of 8 GPUs, put back in the queue when its time is over: sbatch examples/slurm.sh family.yaml
#SBATCH --job-name=kinfolk
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -uo pipefail

family=${1:?usage: sbatch slurm.sh FAMILY}
run=${RUN:-runs/$(basename "$family" .yaml)}
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head_node:29500" \
    -m -- kinfolk build "$family" --run "$run" --replicas "$SLURM_NNODES"
status=$?

# torchrun's own exit code does not say whether a signal was the reason; the ledger's last line does.
if [ $status -ne 0 ] && tail -n 1 "$run/ledger.jsonl" | grep -q '"event": *"interrupted"'; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
