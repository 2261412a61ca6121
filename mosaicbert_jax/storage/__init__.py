"""A model on disk: the folder of a run, its checkpoints, and opening what is at a path."""
