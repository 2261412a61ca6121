#!/bin/bash
# A training run on N nodes of a SLURM cluster:
#
#   sbatch --nodes=8 launch/slurm.sh --config=configs/mosaicbert_base.py --workdir=/shared/runs/base \
#       --config.data.path=/shared/c4
#
# What follows the script's name goes to train.py. Workdir and data lie on a file system that all
# nodes share; the virtual environment .venv of the README does, or is the same on each node.

#SBATCH --job-name=mosaicbert
# One process a node, which has all GPUs of the node. Then the parts of a model that fsdp and tensor
# divide stay within a node, and its data is read once.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
# For the process and its data workers.
#SBATCH --cpus-per-task=16
# When the time is up, the job starts again and resumes; choose what your queue likes.
#SBATCH --time=24:00:00
# SIGTERM to the processes two minutes before: time to end the step and to save.
#SBATCH --signal=TERM@120
# The job may be started again, by SLURM after preemption or by the end of this script.
#SBATCH --requeue
# All starts write into one log.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u

# SIGTERM may come to this shell too. It must outlive the processes, to see how they ended.
trap true TERM

# Processes find each other by SLURM's own variables. If one fails, JAX ends the others; SLURM must
# not kill those that are saving.
srun --kill-on-bad-exit=0 .venv/bin/python train.py "$@" &
step=$!
wait "$step"
status=$?
# A signal ends `wait`, and not the step.
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    status=$?
done

# 75: the run was stopped and has saved. Anything else is the end, or a mistake that would repeat.
if [ "$status" -eq 75 ]; then
    echo "Stopped with a checkpoint; starting job $SLURM_JOB_ID again."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
