"""Data sets as arrays and batches in a reproducible order. grain, tensorflow-datasets and
scikit-learn only here."""
