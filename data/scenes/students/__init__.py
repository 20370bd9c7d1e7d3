"""The students of the built-in corpus, small enough to be pretrained on a CPU: plug-ins of `advl.students`."""
