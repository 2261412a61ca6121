"""Classification, regression or token classification on your own file, from a pretrained model.

Command:   python train.py --config=configs/finetune.py --workdir=runs/reviews \\
               --config.init_from=runs/mine --config.data.path=reviews.csv \\
               --config.data.text=review --config.data.label=stars
           --config.task=regression for numbers.
Hardware:  any.
Time:      seconds for a small model, minutes on a GPU for MosaicBERT-Base and 10,000 examples.
Result:    metrics of the held-out tenth after each epoch, and in results.json.
"""

from mosaicbert_jax.finetuning.configuration import finetuning


def get_config():
    """SST-2's recipe, the task of GLUE that most resembles a labeled file of your own."""
    return finetuning().lock()
