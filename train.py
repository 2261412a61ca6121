"""Trains a BERT: python train.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE]."""

from mosaicbert_jax.commands.train import main

if __name__ == "__main__":
    main()
