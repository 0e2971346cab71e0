"""`python -m lfmri`."""

from lfmri.cli import main

main()
