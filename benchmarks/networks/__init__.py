"""Published networks with ``cpl.patch``: what it takes, how exact that is, and what it saves.

Their code is run from clones in a folder of the user's; nothing of it is copied here.
"""
