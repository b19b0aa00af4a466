"""What torch is told about the operators besides their kernels; importing a file registers it."""
