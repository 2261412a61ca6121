#!/bin/bash
# A preparation on N nodes of a SLURM cluster, by Ray:
#
#   sbatch --nodes=8 launch/prepare_slurm.sh --input '/shared/c4/c4-train.*.json.gz' \
#       --tokenizer /shared/vocab.txt --keep-duplicates --output /shared/data/c4
#
# What follows the script's name goes to `mosaicbert prepare`. Inputs and output lie on a file system
# that all nodes share; so does the virtual environment .venv, installed with the extra `cluster`, or it
# is the same on each node. When the time is up or the first node is lost, the same command resumes.

#SBATCH --job-name=prepare
# One Ray a node, which runs a task on each of these CPUs.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
# A quarter of it goes to what tasks hand each other.
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
# A node that is lost costs its blocks, and not the job.
#SBATCH --no-kill
#SBATCH --output=%x-%j.log

set -u

port=${RAY_PORT:-6379}  # set another where two of these jobs may share their first node
head=$(hostname --ip-address | cut -d' ' -f1)  # this script runs on the first node
export head port
# Ray runs what it is sent: without a token, by anyone who reaches its ports.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(.venv/bin/python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# Ray on each node. It is started until it could be, as the first one takes a while.
# shellcheck disable=SC2016  # the variables are those of the nodes
srun --kill-on-bad-exit=0 --no-kill bash -c '
    if [ "$SLURM_NODEID" -eq 0 ]; then
        role="--head --node-ip-address=$head --port=$port --include-dashboard=false"
    else
        role="--address=$head:$port"
    fi
    until .venv/bin/ray start $role --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats --block
    do sleep 5; done' &
nodes=$!

until (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; do sleep 2; done
.venv/bin/mosaicbert prepare --cluster "$head:$port" "$@"
status=$?
kill "$nodes" 2>/dev/null
wait 2>/dev/null
exit "$status"
