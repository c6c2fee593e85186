"""The only door to Kaggle: the competition's files, our submissions, their scores, our limits."""

from comp.kaggle.client import Kaggle, Limits, Patience, Submission
from comp.kaggle.credentials import Credentials

__all__ = ["Credentials", "Kaggle", "Limits", "Patience", "Submission"]
