"""The rehearsal's server, made to fail on request, for the tests of comp/kaggle and comp/submit."""
