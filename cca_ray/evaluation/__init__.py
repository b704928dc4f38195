"""A model -> images -> features -> a score under a protocol.

May import `data` and what is above it.
"""
