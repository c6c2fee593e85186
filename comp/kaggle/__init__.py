"""The only door to Kaggle: the competition's files, our submissions, their scores, our limits."""

from comp.kaggle.client import Kaggle, Patience
from comp.kaggle.credentials import Credentials
from comp.kaggle.submissions import Limits, Submission

__all__ = ["Credentials", "Kaggle", "Limits", "Patience", "Submission"]
