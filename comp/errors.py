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
    └── KaggleError           anything that Kaggle refuses
        ├── CredentialsError  none found, or refused (401)
        ├── RulesError        the competition's rules are not accepted (403)
        ├── NotFoundError     no such competition or file (404)
        └── UnavailableError  busy, broken or out of reach (429, 5xx, no connection, time-out)

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
    """Kaggle, or what stands in for it, refused or failed."""


class CredentialsError(KaggleError):
    """No credentials, or credentials that are refused."""


class RulesError(KaggleError):
    """The competition's rules have not been accepted by this account."""


class NotFoundError(KaggleError):
    """No such competition, file or submission."""


class UnavailableError(KaggleError):
    """Busy, broken or out of reach; the same call may work later."""
