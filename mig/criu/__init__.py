"""CRIU as we use it: one-shot workers driven by RPC, a dump helper, the few images that we edit, and what this machine's CRIU can do."""
