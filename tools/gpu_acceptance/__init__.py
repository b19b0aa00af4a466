"""`python -m tools.gpu_acceptance`: on a machine with a GPU, all that only such a machine can do."""
