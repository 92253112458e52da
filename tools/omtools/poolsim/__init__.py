"""A pool of thousands of nodes in one process: the machines of :mod:`mig.pool` on a virtual network, in virtual time, from a seed."""
