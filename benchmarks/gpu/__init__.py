"""Everything that a machine with a GPU is asked, in one command of at most nine minutes: python -m benchmarks.gpu."""
