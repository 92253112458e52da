"""``make demo``: real programs leave a busy node, run elsewhere, and finish as if they had stayed."""
