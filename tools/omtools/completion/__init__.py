"""Completion of the words of all commands in bash, zsh and fish.

:mod:`~omtools.completion.model` takes the commands' own parsers apart, a module a shell writes the script; ``python -m omtools.manual``
puts the three scripts beside this file, so that `mosctl completion SHELL` has only to print one.
"""
