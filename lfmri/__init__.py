"""lfmri: high-field-like images from low-field MR scans, by conditional flow matching."""
