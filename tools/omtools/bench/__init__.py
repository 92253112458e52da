"""The benchmark: pauses, moves and starts, beside runc and plain CRIU.  ``python -m omtools.bench``; docs/benchmarks.md tells how."""
