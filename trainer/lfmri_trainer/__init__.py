"""The trainer: subjects to pairs, pairs to a run."""
