"""The conformance kit on real releases, each in an environment of its own: benchmarks/PORTS.md and benchmarks/ports.json."""
