"""The leaderboard of a rehearsal: other people's scores."""

import csv
import io
import zipfile
from collections.abc import Sequence
from typing import Any

CLOSED = "2017-03-02T23:44:14.0000000Z"


def rows(scores: Sequence[float]) -> list[dict[str, Any]]:
    """Best first. Your own submissions are not on it: the competition is over, late ones are scored and not ranked."""
    ranked = enumerate(sorted(scores), 1)
    return [
        {
            "teamId": 400_000 + rank,
            "teamName": f"Team {rank}",
            "submissionDate": CLOSED,
            "score": f"{score:.5f}",
        }
        for rank, score in ranked
    ]


def packed(slug: str, scores: Sequence[float]) -> bytes:
    """The board as Kaggle lets it be downloaded: a zip with one CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["TeamId", "TeamName", "SubmissionDate", "Score"])
    table.writerows(
        [row["teamId"], row["teamName"], row["submissionDate"][:19].replace("T", " "), row["score"]]
        for row in rows(scores)
    )
    packed_table = io.BytesIO()
    with zipfile.ZipFile(packed_table, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(f"{slug}-publicleaderboard.csv", text.getvalue())
    return packed_table.getvalue()
