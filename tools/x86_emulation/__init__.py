"""A function of a shared library, executed by an emulated x86 CPU that has instructions which this machine may lack."""
