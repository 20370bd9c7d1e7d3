"""Students of the built-in corpus, small enough for pretraining on a CPU: plug-ins of `advl.students`."""
