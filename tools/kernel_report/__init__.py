"""What nvcc made of the CUDA kernels: registers, shared memory and machine code, read from the built library.

No GPU is needed.  ``python -m tools.kernel_report`` prints it, and fails where a kernel is not what it should be.
"""
