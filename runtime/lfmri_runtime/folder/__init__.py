"""The watched folder: scans are dropped into IN, enhanced ones appear in OUT, originals end in IN/done or IN/failed.

What one item becomes (`work`) knows nothing of where the item came from: `Spool` claims items of a folder that is ours
by renaming them, `container` leaves an input that may be read-only as it is.
"""
