"""The program that PAM calls; see ``mospam.c``."""
