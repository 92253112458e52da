"""A simulator of a pool of unequal machines that runs the product's own decisions (:mod:`mig.economy`) on seeded streams of jobs."""
