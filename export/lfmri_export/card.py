"""MODEL_CARD.md: what a model was made of and how far it can be trusted, from the contract and measured figures."""

from collections.abc import Sequence
from typing import Any

from lfmri_export.gate import Parity
from lfmri_runtime.calibration import FITTED_LEVEL, Calibration
from lfmri_runtime.contract import Contract
from lfmri_trainer.simulation.presets import OUT_OF_DISTRIBUTION_MEAN, PRESETS, T1W_MEAN
from lfmri_trainer.weights import stretches

INTENDED_USE = (
    "Research on low-field T1-weighted brain MRI. Not a medical device: not for diagnosis. Structures in an enhanced "
    "scan may be invented and lesions may be lost; keep the original beside it."
)


def model_card(contract: Contract, parity: Sequence[Parity]) -> str:
    """Render the card as Markdown."""
    training = contract.training
    own, *before = map(_said, stretches(training))
    lines = [
        f"# {contract.name} {contract.version}",
        "",
        contract.intended_use,
        "",
        "## Model",
        "",
        f"- network: `{contract.network}`, {contract.parameters:,} parameters, weights in {contract.precision}",
        f"- conditional flow matching from normal noise of standard deviation {contract.source_std:g}; the network "
        f"predicts {contract.prediction}",
        f"- Euler steps verified: {', '.join(map(str, contract.steps))}; default {contract.default_steps}",
        f"- working grid: {contract.processing.voxel_size:g} mm; planes {contract.processing.planes}",
        f"- licence: {contract.licence}",
        "",
        "## Training",
        "",
        *(f"- {name.replace('_', ' ')}: {_text(value)}" for name, value in own.items()),
        *(f"- started from: {_text(earlier)}" for earlier in before),
        "",
        *(_preset(name) for name in training.get("presets", []) if name in PRESETS),
        "",
        "Pairs are simulated. Assumed, because the published text lost or never gave them: learning rates, kernel",
        "sizes, widths, the Mahalanobis bound of in-distribution draws, and all about out-of-distribution draws.",
        "",
        "## Parity with the PyTorch sampler in float32",
        "",
        "| Euler steps | PSNR, dB | difference of SSIM | difference of LPIPS |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row.steps} | {row.psnr:.1f} | {row.ssim_difference:.1e} | {row.lpips_difference:.1e} |"
            for row in parity
        ),
        "",
        "## Uncertainty",
        "",
        *_uncertainty(contract.uncertainty),
        "",
        "## Limits",
        "",
        f"- Learned from simulated scans of the {len(training.get('training_subjects', ()))} subjects above: a "
        "demonstration of the method, no claim",
        "  about any population or scanner.",
        "- T1-weighted brain scans only; other contrasts, other organs and children were not seen.",
        "- One step gives the mean of what is plausible; more steps give one sharper draw, not more truth.",
        "",
    ]
    return "\n".join(lines)


def _uncertainty(known: Sequence[Calibration]) -> list[str]:
    if not known:
        return ["Not calibrated: the run had no validation scans. The map is the bare standard deviation over samples."]
    first = known[0]
    return [
        f"The standard deviation over {first.samples} samples times this scale: {FITTED_LEVEL:.0%} of {first.voxels:,}",
        f"voxels with signal in {first.scans} validation scans ({', '.join(first.subjects)}) lie in the interval of",
        f"{FITTED_LEVEL:.0%} that it gives, both planes averaged. Other scanners, noise or lesions were not asked.",
        "",
        "| Euler steps | scale |",
        "| --- | --- |",
        *(f"| {calibration.steps} | {calibration.scale:.2f} |" for calibration in known),
    ]


def _said(stretch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stretch.items() if name not in ("parity", "started_from")}


def _preset(name: str) -> str:
    """What a simulation preset draws from: it says how far out-of-distribution scores are from what was trained on."""
    ranges = PRESETS[name].ultra_low_field
    if ranges is not None:
        (low, high), (fine, coarse) = ranges.snr_wm, ranges.in_plane
        return f"- {name}: SNR of white matter {low:g} to {high:g}, {fine:g} to {coarse:g} mm in plane, Rician noise"
    noisier = PRESETS[name].noisier
    if noisier is not None:
        least, most = noisier
        return f"- {name}: as siqt-k4, both SNRs divided by {least:g} to {most:g}"
    mean, kind = (T1W_MEAN, "in") if PRESETS[name].in_distribution else (OUT_OF_DISTRIBUTION_MEAN, "out of")
    return f"- {name}: SNR around {mean[0]:g} in white and {mean[1]:g} in grey matter ({kind} distribution)"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
