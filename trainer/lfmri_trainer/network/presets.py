"""The two named networks; about 22,000 configurations have the published parameter count, these are natural ones."""

from lfmri_trainer.network.unet import UNet, UNetConfiguration

#: The paper's Table 1.
PUBLISHED_PARAMETERS = 5_253_249

PRESETS = {
    "iqt-cfm": UNetConfiguration(
        widths=(32, 64, 128, 128),
        branch_channels=32,
        fused_channels=None,
        time_width=32,
        bottleneck_blocks=True,
        widening_upsample=True,
        normalised_output=False,
    ),
    "iqt-cfm-edge": UNetConfiguration(
        widths=(16, 32, 64, 128, 128),
        branch_channels=16,
        fused_channels=16,
        time_width=128,
        bottleneck_blocks=False,
        widening_upsample=False,
        normalised_output=True,
    ),
}


def build_network(preset: str) -> UNet:
    """Build a preset's U-Net with fresh weights. Raises KeyError for a name not in PRESETS."""
    return UNet(PRESETS[preset])
