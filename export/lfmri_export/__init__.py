"""The export stage: a run to a bundle that has passed its gate."""
