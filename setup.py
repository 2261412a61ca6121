"""Packages configs/ as mosaicbert_jax/configs; all else is in pyproject.toml."""

from setuptools import find_packages, setup

CONFIGS = "mosaicbert_jax.configs"

setup(
    packages=[*find_packages(include=["mosaicbert_jax*", "pallas_kernels*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
)
