# For a CPU:  docker build -t mosaicbert . && docker run --rm mosaicbert --help
FROM python:3.12-slim

WORKDIR /opt/mosaicbert
COPY requirements.txt pyproject.toml setup.py README.md ./
COPY mosaicbert_jax mosaicbert_jax
COPY pallas_kernels pallas_kernels
COPY configs configs
# Ranges are in requirements.txt.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[embedded]" && useradd --create-home --uid 1000 runner

USER 1000
WORKDIR /home/runner
ENTRYPOINT ["mosaicbert"]
CMD ["--help"]
