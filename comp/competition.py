"""What is asked: the one file to edit for another two-class photo competition."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Competition:
    """A photo competition with two classes, scored by log loss on P(positive class)."""

    slug: str
    title: str
    classes: tuple[str, str]  # negative, positive: the label 1 means the second
    archives: tuple[str, str]  # members of Kaggle's archive that hold the photos: train, test
    sample: str  # member that names the ids to predict, in order
    columns: tuple[str, str]  # header of a submission: id, P(positive)
    n_train: int  # photos in the real edition; a rehearsal may hold fewer
    n_test: int
    archive_bytes: int  # size of Kaggle's archive; the photos take as much again once unpacked
    archived_board: str | None  # file in comp/ with a column of the final public scores, best first
    noise_rate: float  # share of the test labels that contradict any confident model, as believed before there are scores
    noise_spread: (
        float  # standard deviation of that belief; comp/submit/forecast.py learns from scores
    )
    max_member_bytes: (
        int  # a photo larger than this, unpacked, is refused: the archive is not what it says
    )

    @property
    def rules_url(self) -> str:
        """Where a person accepts the rules; Kaggle's API cannot."""
        return f"https://www.kaggle.com/competitions/{self.slug}/rules"


COMPETITION = Competition(
    slug="dogs-vs-cats-redux-kernels-edition",
    title="Dogs vs. Cats Redux: Kernels Edition",
    classes=("cat", "dog"),
    archives=("train.zip", "test.zip"),
    sample="sample_submission.csv",
    columns=("id", "label"),
    n_train=25_000,
    n_test=12_500,
    archive_bytes=850_000_000,
    # All 1,315 teams on 2017-03-02, when it closed; late submissions are scored but not ranked.
    archived_board="archived_board.csv",
    noise_rate=0.004,  # public scores imply 50 to 70 photos, other evidence 0.3 to 0.5 %, six clips of one model 0.42 % (test_calibrate.py)
    noise_spread=0.001,
    max_member_bytes=64 * 2**20,
)
