"""The one file to edit for another competition of binary image classification."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Competition:
    """A photo competition with two classes, scored by log loss on P(positive class)."""

    slug: str
    title: str
    classes: tuple[str, str]  # negative, positive: label 1 means the second

    # Kaggle's archive: a zip of two zips of photos and of a sample submission
    archives: tuple[str, str]  # the zips of photos: train, test
    train_photo: str  # regular expression of a training photo's path in its zip, whole, with the
    # groups `id` and `class` (one of `classes`); ids become file names and keys everywhere
    test_photo: str  # the same of a test photo, with the group `id` alone
    sample: str  # the sample submission, which lists the ids to predict in order
    columns: tuple[str, str]  # header of a submission: id, P(positive)
    numeric_ids: bool  # test ids are whole numbers: 7, 7.0 and 7e0 in a CSV are the same id
    n_train: int  # photos in the real edition; a rehearsal may have fewer
    n_test: int
    archive_bytes: int  # about; the photos take as much again once unpacked
    max_member_bytes: int  # a larger photo or sample submission is refused: the archive is wrong

    # What is known about the leaderboard and the labels
    noise_rate: float  # share of test labels that contradict any confident model, as believed
    noise_spread: float  # standard deviation of that belief before scores update it
    archived_board: str | None  # CSV in comp/ with the final public scores in a column Score
    suspects: str | None  # file in comp/ with ids of training photos that published lists suspect

    @property
    def rules_url(self) -> str:
        """Where a person accepts the rules; Kaggle's API cannot."""
        return f"https://www.kaggle.com/competitions/{self.slug}/rules"


COMPETITION = Competition(
    slug="dogs-vs-cats-redux-kernels-edition",
    title="Dogs vs. Cats Redux: Kernels Edition",
    classes=("cat", "dog"),
    archives=("train.zip", "test.zip"),
    train_photo=r"train/(?P<id>(?P<class>cat|dog)\.(0|[1-9][0-9]{0,17}))\.jpg",
    test_photo=r"test/(?P<id>0|[1-9][0-9]{0,17})\.jpg",
    sample="sample_submission.csv",
    columns=("id", "label"),
    numeric_ids=True,
    n_train=25_000,
    n_test=12_500,
    archive_bytes=850_000_000,
    max_member_bytes=64 * 2**20,
    # Public scores imply 50 to 70 photos, other evidence 0.3 to 0.5 %, six clips of one model
    # 0.42 % (test_calibrate.py).
    noise_rate=0.004,
    noise_spread=0.001,
    # All 1,315 teams on 2017-03-02, when it closed; late submissions are scored but not ranked.
    archived_board="archived_board.csv",
    suspects="suspects.csv",
)
