"""Uploads that fail, and submissions that are lost, refused, late or not scored."""

import json
from dataclasses import replace
from typing import Any

from comp.rehearsal.exchange import Ending, RefusedError, Reply, json_reply, page_reply
from comp.rehearsal.faults import CREATE, UPLOAD, Armed, Call, edited, fault
from comp.rehearsal.submissions import allowance_message

UNRECORDED_REF = 99_000_000


@fault("upload-503", UPLOAD)
def upload_503(_: Call) -> Reply:
    """503 for the upload; nothing is kept."""
    return page_reply(503, "Service Unavailable")


@fault("upload-400", UPLOAD)
def upload_400(_: Call) -> Reply:
    """400 for the upload; nothing is kept."""
    return page_reply(400, "Bad Request")


@fault("upload-reset", UPLOAD)
def upload_reset(_: Call) -> Reply:
    """The connection is reset at the end of the upload; nothing is kept."""
    return Reply(ending=Ending.RESET, ends_after=-1)


@fault("upload-expired", UPLOAD)
def upload_expired(_: Call) -> Reply:
    """404 for the upload: its address is no longer good."""
    return page_reply(404, "Not Found")


@fault("submit-lost", CREATE)
def submit_lost(call: Call) -> Reply | None:
    """The submission is recorded and counts, but the connection closes without an answer."""
    return (
        replace(call.reply, ending=Ending.CUT, ends_after=-1) if call.reply.status == 200 else None
    )


@fault("submit-silent", CREATE)
def submit_silent(call: Call) -> Reply:
    """Answered `Successfully submitted`, with a reference, and not recorded."""
    ref = UNRECORDED_REF + call.armed.n_struck
    return json_reply({"message": f"Successfully submitted to {call.scene.title}", "ref": ref})


@fault("daily-limit", CREATE | {"GetSubmissionLimits"})
def daily_limit(call: Call) -> Reply:
    """No submissions are left today: the limits say so, and a submission gets 400 after its upload."""
    limit = call.scene.daily_limit
    if call.ask.target == "GetSubmissionLimits":
        return json_reply(
            {"numToday": limit, "numTotal": limit, "numAllowedNow": 0, "limitedByTotal": False}
        )
    return RefusedError(400, allowance_message(limit)).reply()


@fault("score-error", CREATE)
def score_error(call: Call) -> Reply:
    """The submission is recorded and ends with the status ERROR and a reason, whatever is in it."""
    return call.proceed(
        replace(call.ask, unscorable="Evaluation Exception: The scoring of this submission failed")
    )


@fault("score-delayed", CREATE | {"ListSubmissions", "GetSubmission"}, number="polls")
def score_delayed(call: Call) -> Reply | None:
    """A submission made from now on shows PENDING to the first so many lists or queries of it (all of them)."""

    def pending(entry: dict[str, Any]) -> dict[str, Any]:
        waiting = _still_delayed(call.armed, entry["ref"])
        return entry | (
            {"status": "PENDING", "publicScore": "", "errorDescription": ""} if waiting else {}
        )

    return _note_new(call) or edited(call.reply, pending, "submissions")


@fault("list-delayed", CREATE | {"ListSubmissions"}, number="lists")
def list_delayed(call: Call) -> Reply | None:
    """A submission made from now on is missing from the first so many lists (all of them); a query by its reference finds it."""
    return _note_new(call) or edited(
        call.reply,
        lambda entry: None if _still_delayed(call.armed, entry["ref"]) else entry,
        "submissions",
    )


def _note_new(call: Call) -> Reply | None:
    """For a submission that is being made: its answer, and its reference is remembered."""
    if call.ask.target != "CreateSubmission":
        return None
    if call.reply.status == 200 and isinstance(call.reply.body, bytes):
        with call.armed.lock:
            call.armed.memory[str(json.loads(call.reply.body)["ref"])] = 0
    return call.reply


def _still_delayed(armed: Armed, ref: int) -> bool:
    """Count one more look at a remembered submission; True for the first ones, as many as the fault's number says."""
    with armed.lock:
        n_looks = armed.memory.get(str(ref))
        if n_looks is None:
            return False
        armed.memory[str(ref)] = n_looks + 1
    return armed.amount is None or n_looks < armed.amount
