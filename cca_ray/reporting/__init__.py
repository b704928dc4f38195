"""What a study left -> results, verdicts, figures, one page.

May import `terminal` and what is above it.
"""
