"""The study of one size: what runs next, who goes on, how a trial ended, which settings win.

May import `tracking` and what is above it.
"""
