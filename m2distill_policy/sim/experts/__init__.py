"""What scripted experts of every suite share: one episode, moving the hand, the disturbance of what they do.

What an expert knows of a suite's objects lies in the suite's own folder.
"""
