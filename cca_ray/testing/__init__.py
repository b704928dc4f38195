"""What every plug-in must satisfy, as classes of tests for its author to subclass.

May import `training` and what is above it, and pytest, which whoever runs them has.
"""
