"""Side-by-side timings against peers: ``python -m experiments.benchmarks NAME``."""
