"""`swarmd simulate`: the real core on a virtual clock, to compare how policies place the same work.

`run.simulate` is the entry for programs, `command` that of the command line. No broker, no sleeping, no event loop:
commits are made as a log writer and the codec would give them, and folded by a real leader.
"""
