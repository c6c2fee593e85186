"""What finished runs and submissions look like: HTML pages that need no other file."""
