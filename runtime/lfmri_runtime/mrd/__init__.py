"""An MRD v1 server: image messages in, enhanced images out; a thin shell around the console's station.

MRD is the ISMRM raw data format (Inati et al. 2017) and its stream of messages over TCP, as spoken by FIRE, OpenRecon
and Gadgetron. Only the wire format is needed, so only the standard library is used.
"""
