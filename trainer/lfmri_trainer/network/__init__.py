"""The time-conditioned U-Net of the paper."""
