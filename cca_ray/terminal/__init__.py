"""What a person at a terminal sees: lines, progress, one-line errors, the live view.

May import `search` and what is above it.
"""
