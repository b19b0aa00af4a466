"""What the CUDA kernels should take on GPUs that nobody has measured them on: modelled, from their machine code.

No GPU is needed.  ``python -m tools.performance_model`` prints it for each case of the benchmarks.
"""
