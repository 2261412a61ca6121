"""Pretrains a BERT: python train.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE]."""

import sys

from mosaicbert_jax.training.command import main

if __name__ == "__main__":
    sys.exit(main())
