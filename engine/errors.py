"""The one tree of errors that a user can meet.

Each message says what happened and what to try, in one line. Anything that is
not a SekvError is a defect of the program, not of the input. `code` is for
scripts: it stays the same when the words of a message change.
"""

from __future__ import annotations


class SekvError(Exception):
    """Something the user can act on. Shown as one line; the process exits with `exit_code`."""

    exit_code = 2
    code = "error"


class DocumentError(SekvError):
    """A source cannot be read: missing, empty, malformed, encrypted or without text."""

    code = "document"


class ReaderError(SekvError):
    """A model is not there, cannot be loaded, or is of a kind that sekv does not support."""

    code = "model"


class StoreError(SekvError):
    """A store cannot be opened, read or written, for a reason without a code of its own."""

    code = "store"


class StoreMissingError(StoreError):
    """There is no store of that name, or what is there is something else or not finished."""

    code = "store_missing"


class StoreExistsError(StoreError):
    """Something has the name that a new store was to have."""

    code = "store_exists"


class StoreBusyError(StoreError):
    """Another process is writing the store."""

    code = "store_busy"


class StoreDamagedError(StoreError):
    """Bytes of a store are not what its manifest says. Every such line ends with what to do."""

    code = "store_damaged"
    advice = "ingest again or restore it from a copy"

    def __init__(self, fault: str) -> None:
        super().__init__(fault if fault.endswith(self.advice) else f"{fault}: {self.advice}")


class StoreMismatchError(StoreError):
    """A store was made by another model than the one at hand."""

    code = "store_mismatch"


class FormatError(StoreError):
    """A store of a newer format than this version reads."""

    code = "store_format"


class ObjectStorageError(SekvError):
    """An object store cannot be reached or refuses, or a URL of one cannot be understood."""

    code = "object_storage"


class ObjectMissingError(ObjectStorageError):
    """There is no object of that name."""

    code = "object_missing"


class BudgetError(SekvError):
    """A budget, window or method that does not exist or does not fit the model."""

    code = "budget"


class OptionError(BudgetError):
    """An option whose value is out of its range.

    option: its name as a field of the options, such as "max_new_tokens"; whoever shows the error
    calls it what the user does: a flag, or the parameter of a request. reason: the rest.
    """

    code = "option"

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option, self.reason = option, reason


class SettingsError(SekvError):
    """The settings file cannot be read, or a setting is unknown or has a wrong value."""

    code = "settings"


class QuestionError(BudgetError):
    """A question that cannot be read: empty, no text, or longer than there is room for."""

    code = "question"


class RouterError(SekvError):
    """A trained router is missing, damaged, or belongs to another model."""

    code = "router"


class StoppedError(SekvError):
    """An answer was given up: whoever asked is gone, or it took longer than allowed."""

    code = "stopped"


class ServeError(SekvError):
    """A server cannot start, or the one that was asked refused or went away."""

    code = "server"


class TrainError(SekvError):
    """Training cannot start or cannot go on."""

    code = "training"


class OutputError(SekvError):
    """A result cannot be written where it was asked for."""

    code = "output"


class PlatformError(SekvError):
    """The operating system lacks what sekv needs."""

    code = "platform"


class StreamError(SekvError):
    """Standard input or output is closed, or what comes through it is no text."""

    code = "stream"


class LibraryError(SekvError):
    """A folder of stores cannot be read or written as a library."""

    code = "library"
