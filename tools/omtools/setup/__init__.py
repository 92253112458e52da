"""What ``make env`` does: packages, virtual environment, compiled helpers, CRIU.

Runs before the virtual environment exists: the standard library only, nothing of the project.  Each step looks first and does nothing
when nothing is missing, so that every other make target can begin with it.
"""
