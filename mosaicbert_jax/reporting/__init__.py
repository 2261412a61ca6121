"""A page about runs: what they did, what they cost, and what is left of them."""
