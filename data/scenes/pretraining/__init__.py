"""The pretraining of the students of the built-in corpus: captions with boxes in, a student's folder out."""
