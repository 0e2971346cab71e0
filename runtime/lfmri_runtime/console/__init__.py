"""What every surface of a console service shares: settings, the one device, the journal, health and the life cycle.

A surface (folder, MRD, DICOM) is a thin shell around `Station.enhance`; what happened goes into the `Journal`, which
feeds the audit log and the metrics.
"""
