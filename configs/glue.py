"""GLUE's eight tasks (all but WNLI), MNLI first, with MosaicBERT's recipe.

Command:   python train.py --config=configs/glue.py --workdir=runs/glue \\
               --config.init_from=runs/mosaicbert_base --config.data.path=GLUE
           GLUE: the folder of GLUE's archive (MNLI/train.tsv, …), or tfds:glue for what
           tensorflow-datasets has prepared. --config.tasks=rte,cola for some;
           --config.recipes.rte.seeds='(19,)' and the like for another recipe.
Hardware:  one GPU or several: all share each run, or with --config.processes=8 eight runs go
           side by side, each on a GPU of its own.
Quoted:    the original PyTorch implementation, MosaicBERT-Base after 70,000 batches: mean 84.28;
           83.2 after 4.6 h of pretraining on 8 A100-80GB, to which BERT-Base takes 11.5 h.
Measured:  not yet.
"""

from mosaicbert_jax.finetuning.configuration import glue


def get_config():
    """Epochs, learning rates, batches and seeds of the original."""
    return glue().lock()
