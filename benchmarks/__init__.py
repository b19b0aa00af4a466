"""Benchmarks of the operators: `python -m benchmarks --help`.

cases.py says what is measured, providers.py who does the work, runner.py how it is timed, report.py how it is told.
"""
