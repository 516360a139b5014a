#!/bin/bash
# A job for each member of a family, in one run directory that all nodes see. The largest comes first: it walks the trunk.
#   sbatch --array=0-3 examples/slurm_members.sh family.yaml 8b 4b 2b 1b
# One GPU a job. For more, call torchrun as in slurm.sh; its exit code then does not say whether a signal was the reason.
#SBATCH --job-name=kinfolk-members
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -uo pipefail

family=${1:?usage: sbatch --array=0-N slurm_members.sh FAMILY MEMBER...}
members=("${@:2}")
run=${RUN:-runs/$(basename "$family" .yaml)}

srun kinfolk build "$family" --run "$run" --only "${members[$SLURM_ARRAY_TASK_ID]:?has no member}"
status=$?

# 143: stopped by SIGTERM, after saving. It goes on where it was, or where another job has brought its stages meanwhile.
if [ $status -eq 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit $status
