"""What a run on GPUs will need, found out without them."""
