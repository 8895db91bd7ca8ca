"""The one tree of errors that a user can meet.

Each message says what happened and what to try, in one line. Anything that is
not a SekvError is a defect of the program, not of the input.
"""

from __future__ import annotations


class SekvError(Exception):
    """Something the user can act on. Shown as one line; the process exits with `exit_code`."""

    exit_code = 2


class DocumentError(SekvError):
    """A source cannot be read: missing, empty, malformed, encrypted or without text."""


class ReaderError(SekvError):
    """A model cannot be loaded, or would silently bypass the memory."""


class StoreError(SekvError):
    """A store is missing, half-written, damaged, too new, or belongs to another model."""


class FormatError(StoreError):
    """A store of a format that this version does not read; it may be sound."""


class BudgetError(SekvError):
    """A budget or a window that cannot be understood or cannot hold."""


class RouterError(SekvError):
    """A trained router is missing, damaged, or belongs to another model."""


class StoppedError(SekvError):
    """An answer was given up: whoever asked is gone, or it took longer than allowed."""


class ServeError(SekvError):
    """A server cannot start, or the one that was asked refused or went away."""


class TrainError(SekvError):
    """Training cannot start or cannot go on."""
