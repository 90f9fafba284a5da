"""What the scripted experts of all suites share: running an episode, moving the hand, and noise on the actions.

What an expert knows about the objects of a suite is in that suite's own package.
"""
