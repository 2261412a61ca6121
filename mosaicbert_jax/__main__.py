"""python -m mosaicbert_jax COMMAND: the same as the console script `mosaicbert`."""

from mosaicbert_jax.commands.cli import main

if __name__ == "__main__":
    main()
