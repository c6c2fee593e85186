"""Calls that are turned down, answered with something else, or never answered."""

from dataclasses import replace

from comp.rehearsal.exchange import Ending, RefusedError, Reply, page_reply
from comp.rehearsal.faults import (
    CALLS,
    DOWNLOADS,
    EVERYTHING,
    FILE,
    SUBMITS,
    TOKEN,
    Armed,
    Call,
    edited,
    fault,
)
from comp.rehearsal.storage import download, stored


@fault("401", CALLS | TOKEN, reach=EVERYTHING)
def unauthenticated(_: Call) -> Reply:
    """401 with Kaggle's JSON, as for a wrong token; token introspection too."""
    return RefusedError(401, "Unauthenticated").reply()


@fault("403-rules", DOWNLOADS | SUBMITS | {"GetCompetition", "ListCompetitions"})
def rules_not_accepted(call: Call) -> Reply | None:
    """403 for downloads and submissions, as for one who has not accepted the rules; listings work and show `userHasEntered: false`."""
    if call.ask.target in DOWNLOADS | SUBMITS:
        return RefusedError(
            403, "You must accept this competition's rules before you'll be able to download files."
        ).reply()
    return edited(call.reply, lambda entry: entry | {"userHasEntered": False}, "competitions")


@fault("404", CALLS, reach=EVERYTHING)
def not_found(_: Call) -> Reply:
    """404 with Kaggle's JSON, as for a wrong slug."""
    return RefusedError(404, "Not found").reply()


@fault("429", CALLS, reach=EVERYTHING, options={"retry-after": None})
def too_many(call: Call) -> Reply:
    """429, with Retry-After (seconds) if `retry-after` is given."""
    return _with_retry_after(RefusedError(429, "Too many requests").reply(), call.armed)


@fault("500", CALLS, reach=EVERYTHING)
def broken(_: Call) -> Reply:
    """500 with Kaggle's JSON; the request is not carried out."""
    return RefusedError(500, "Internal error").reply()


@fault("503", CALLS, reach=EVERYTHING, options={"retry-after": None})
def unavailable(call: Call) -> Reply:
    """503 with a gateway's HTML, and Retry-After if given; the request is not carried out."""
    return _with_retry_after(page_reply(503, "Service Unavailable"), call.armed)


@fault("hang", CALLS, reach=EVERYTHING)
def hang(_: Call) -> Reply:
    """The connection stays open and no answer comes; the request is not carried out."""
    return Reply(ending=Ending.SILENCE, ends_after=-1)


@fault("api-reset", CALLS, reach=EVERYTHING)
def api_reset(_: Call) -> Reply:
    """The connection is reset before an answer; the request is not carried out."""
    return Reply(ending=Ending.RESET, ends_after=-1)


@fault("html", FILE, reach=EVERYTHING)
def html(_: Call) -> Reply:
    """200 with a sign-in page instead of what was asked for."""
    return page_reply(200, "Sign in")


@fault("no-redirect", DOWNLOADS)
def no_redirect(call: Call) -> Reply:
    """The API sends the archive itself instead of an address of it."""
    return download(stored(call.scene.archive), {})


@fault("outdated-client", CALLS | TOKEN)
def outdated_client(call: Call) -> Reply:
    """The answer says that there is a newer client, and this one prints a warning to stdout, in front of its own output."""
    return replace(call.reply, headers={**call.reply.headers, "X-Kaggle-APIVersion": "99.0.0"})


def _with_retry_after(reply: Reply, armed: Armed) -> Reply:
    wait_s = armed.options["retry-after"]
    return (
        reply
        if wait_s is None
        else replace(reply, headers={**reply.headers, "Retry-After": f"{wait_s:g}"})
    )
