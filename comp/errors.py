"""Every failure that a user can act on, as one tree.

    UserError
    ├── RecipeError           an unknown recipe or option, a value out of range
    ├── DataError             photos, the manifest, or too few of either
    │   └── ArchiveError      the archive is cut, corrupt, incomplete or hostile
    ├── StaleError            an artefact made from something else
    ├── StoreError            a folder that cannot be locked
    ├── WeightsError          no weights found, or not this backbone's
    ├── TrainingError         the loss is not finite or explodes
    ├── SubmissionError       a CSV that Kaggle would refuse or that would waste a slot
    └── KaggleError           Kaggle refused or failed
        ├── CredentialsError  none found, or refused (401)
        ├── RulesError        the competition's rules are not accepted (403)
        ├── NotFoundError     no such competition or file (404)
        └── UnavailableError  busy, broken or unreachable (429, 5xx, no connection, time-out)

Each message is one line: what, how many, what to do. `__main__` prints it and exits with status 1;
any other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """A failure with a cause and a remedy that fit on one line."""


class RecipeError(UserError):
    """An unknown recipe or option, or a value that an option refuses."""


class DataError(UserError):
    """Photos or a manifest that a stage cannot work with."""


class ArchiveError(DataError):
    """An archive that is cut, corrupt, incomplete or hostile."""


class StaleError(UserError):
    """An artefact made from something other than what is here now."""


class StoreError(UserError):
    """A folder that another run is using, or whose file system cannot hold locks."""


class WeightsError(UserError):
    """No weights found, or weights that do not fit the backbone."""


class TrainingError(UserError):
    """A loss that is not finite, or that explodes."""


class SubmissionError(UserError):
    """Probabilities or a CSV that must not be uploaded."""


class KaggleError(UserError):
    """Kaggle, or its stand-in, refused or failed."""


class CredentialsError(KaggleError):
    """No credentials, or credentials that Kaggle refuses."""


class RulesError(KaggleError):
    """This account has not accepted the competition's rules."""


class NotFoundError(KaggleError):
    """No such competition, file or submission."""


class UnavailableError(KaggleError):
    """Busy, broken or unreachable: the same call may work later."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,  # as the server asks
        not_done: bool = False,  # it is certain that the call has had no effect
        link_refused: bool = False,  # a new signed link may help
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.not_done = not_done
        self.link_refused = link_refused
