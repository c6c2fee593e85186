"""From Kaggle's archive to a score: data, train, predict, submit."""
