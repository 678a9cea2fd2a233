"""The exceptions of trimtok_fast: each names the argument, what was wanted, what was got, and the remedy."""


class TrimTokError(Exception):
    """Base of every error that trimtok_fast raises on purpose.

    Attributes:
        argument: the argument (or the object) that is wrong.
        wanted: what would have been right.
        got: what was there instead.
        remedy: what to do about it.
    """

    def __init__(self, argument: str, wanted: str, got: str, remedy: str) -> None:
        # All four go to Exception, so that the error survives pickling (data loaders, process pools).
        super().__init__(argument, wanted, got, remedy)
        self.argument = argument
        self.wanted = wanted
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        return f"`{self.argument}`: wanted {self.wanted}, got {self.got}. {self.remedy}"


class InvalidInputError(TrimTokError, ValueError):
    """An argument's value, shape, device or boundaries are wrong."""


class UnsupportedDtypeError(TrimTokError, TypeError):
    """An argument has a type or dtype that the operation does not take."""


class BackendUnavailableError(TrimTokError, RuntimeError):
    """A backend that was asked for by name cannot run here."""


class UnsupportedModelError(TrimTokError, ValueError):
    """A model has no visual tokens in its sequence that could be pruned, or is of an unknown family."""


class PatchStateError(TrimTokError, RuntimeError):
    """A patch was asked for something that its present state does not allow."""
