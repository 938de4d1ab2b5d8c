"""Errors that a user can act on; the command line prints them in one line, without a traceback."""

from __future__ import annotations


class CplError(Exception):
    """Something the user gave, or this machine lacks; the message names it and the remedy."""


class MissingExtra(CplError):
    """A command needs a package that the core install leaves out."""


class TooLittleRoom(CplError):
    """A disk has not the room for what an image needs beside memory."""


class TooLittleMemory(CplError):
    """An image needs more memory than a limit leaves, or than is free, however it is worked through."""
