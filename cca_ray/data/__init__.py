"""Images -> tokens -> the pairs of an epoch.

May import `models` and what is above it.
"""
