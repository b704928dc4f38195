"""What every plug-in must satisfy, as classes of tests for its author to subclass.

May import everything above the verbs, and pytest, which whoever runs them has.
"""
