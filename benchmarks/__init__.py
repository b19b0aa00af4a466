"""Benchmarks of the operators: `python -m benchmarks --help`.

cases.py says what is measured, providers.py who does the work, timers.py how a call is timed and runner.py how a case
is; environment.py what figures depend on; report.py, terminal.py and plot.py how all is told. compare.py compares two
files of results. encoder.py, with encoder_providers.py and encoder_memory.py, measures whole encoders.
"""
