"""Subjects made from label maps: an anatomy that is known exactly, with a T1w contrast drawn for it."""
