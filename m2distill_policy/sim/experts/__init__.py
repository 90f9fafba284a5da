"""What the scripted experts of all suites share: running an episode, moving the hand, and noise on the actions.

Code that depends on the objects of a suite is in the package of the suite.
"""
