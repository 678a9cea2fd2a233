"""Speed against what a user would pick instead, correctness first: `python -m benchmarks --help`."""
