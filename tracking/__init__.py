"""Where results go: a journal in the run folder, sent to MLflow in the background."""
