"""How fast npembed is beside its peers: `python -m benchmarks` prints one table of ratios. README.md says what it measures."""
