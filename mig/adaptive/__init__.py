"""The adaptive pool: a machine is the pool's only while its owner does not need it.  Deciding and parsing, no I/O."""
