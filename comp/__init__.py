"""From Kaggle's archive to a score: data, train, predict, submit."""

__version__ = "0.1.0"
