"""What a run needs of Kaggle, of this account there, and of the archive."""

from collections.abc import Callable, Iterator
from pathlib import Path

from comp.competition import Competition
from comp.doctor.check import Check
from comp.errors import UserError
from comp.kaggle import Kaggle
from comp.kaggle.archive import MB, Archive

MAX_SKEW_S = (
    60.0  # beyond it, dates in the ledger and "today" mislead; certificates fail only at days
)
SETTINGS = "https://www.kaggle.com/settings"


def account(kaggle: Kaggle, competition: Competition) -> Iterator[Check]:
    """All that Kaggle has to be asked for. What cannot be asked for without what comes before it is said to be unknown."""
    yield (found := credentials(kaggle))
    known = Check("authentication", "warn", "not known without credentials")
    if found.level != "bad":
        known = asked("authentication", lambda: f"Kaggle knows us as {kaggle.whoami()}")
    yield known
    rest: dict[str, Callable[[], str | Check]] = {
        "competition": lambda: f"{competition.slug} has {len(kaggle.files()):,} files",
        "rules": lambda: rules(kaggle),
        "phone": lambda: phone(len(kaggle.submissions())),
        "submissions": lambda: allowance(kaggle),
        "clock": lambda: clock(kaggle.clock_skew_s()),
    }
    for name, ask in rest.items():
        yield (
            asked(name, ask)
            if known.level == "ok"
            else Check(name, "warn", "not known without authentication")
        )


def asked(name: str, ask: Callable[[], str | Check]) -> Check:
    """What `ask` answers, a text if all is fine; a failure of Kaggle's becomes a check like any other."""
    try:
        answer = ask()
    except UserError as error:
        return Check(name, "bad", str(error))
    return answer if isinstance(answer, Check) else Check(name, "ok", answer)


def credentials(kaggle: Kaggle) -> Check:
    try:
        found = kaggle.credentials
    except UserError as error:
        return Check("credentials", "bad", str(error))
    stand_in = (
        ()
        if kaggle.is_real
        else ("KAGGLE_API_ENVIRONMENT=LOCALHOST sends them to a stand-in, not to Kaggle",)
    )
    warnings = (*found.warnings, *stand_in)
    return Check(
        "credentials",
        "warn" if warnings else "ok",
        "; ".join((f"the {found.kind} from {found.source}", *warnings)),
    )


def rules(kaggle: Kaggle) -> str:
    kaggle.check_rules()
    return "accepted: the archive may be downloaded"


def phone(n_submissions: int) -> Check:
    """Kaggle's API does not tell whether the phone number is verified; a submission that was taken does."""
    if n_submissions:
        return Check(
            "phone",
            "ok",
            f"verified or not needed: Kaggle has taken {n_submissions:,} submissions of this account",
        )
    return Check(
        "phone",
        "warn",
        f"whether the number is verified, Kaggle's API does not tell: look at {SETTINGS} if a submission is refused",
    )


def allowance(kaggle: Kaggle) -> Check:
    limits = kaggle.limits()
    text = f"{limits.n_allowed_now:,} left today, {limits.n_today:,} made"
    if limits.n_allowed_now < 1:
        return Check("submissions", "bad", f"{text}: try again after midnight UTC")
    return Check("submissions", "ok", text)


def clock(skew_s: float | None) -> Check:
    if skew_s is None:
        return Check("clock", "warn", "Kaggle's answers did not tell the time")
    if abs(skew_s) <= MAX_SKEW_S:
        return Check("clock", "ok", f"within {MAX_SKEW_S:.0f} s of Kaggle's")
    late = "behind" if skew_s > 0 else "ahead of"
    return Check("clock", "warn", f"{abs(skew_s):,.0f} s {late} Kaggle's: set this machine's clock")


def archive_state(folder: Path, competition: Competition) -> Check:
    """Absent, partial and resumable, or complete and checked."""
    archive = Archive(folder / f"{competition.slug}.zip")
    if archive.path.exists():
        size = f"{archive.path.stat().st_size / MB:,.1f} MB"
        if archive.is_checked():
            return Check("archive", "ok", f"complete and checked, {size}")
        return Check(
            "archive",
            "warn",
            f"{size} that `make data` has not brought, or that changed since: it will check them",
        )
    if archive.part.path.exists():
        return Check("archive", "ok", partial(archive.part))
    return Check("archive", "ok", "absent: `make data` downloads it")


def partial(part: Archive) -> str:
    version, have = part.version(), f"{part.n_bytes / MB:,.1f}"
    total = f"{version.length / MB:,.1f}" if version and version.length else "an unknown number of"
    if part.resume_at():
        return f"partial and resumable, {have} of {total} MB: `make data` goes on from there"
    return f"partial, {have} MB of a version that cannot be told: `make data` starts over"
