"""docs/lowfield.md from the figures in docs/lowfield.json alone; docs/lowfield.py calls this."""

from typing import Any

from lowfield_judgement import judgement, percent, steps_name

BOXES = {"white_matter": "white matter", "lesion": "lesion", "surround": "surround", "edge": "edge"}
Report = dict[str, Any]


def page(report: Report) -> str:
    """The whole page."""
    parts = (_intro(report), judgement(report), _measures(report), _scans(report), _boxes(report))
    return "\n\n".join(parts) + "\n"


def _intro(report: Report) -> str:
    bundle, subjects = report["bundle"], report["trained_on"]
    columns = "; ".join(f"enhanced, {steps_name(steps)}" for steps in report["steps"])
    return f"""# Real 0.055 T scans

Three patients of a 0.055 T scanner, enhanced by `lfmri enhance` with {bundle["name"]} {bundle["version"]}, beside 3 T
images of the same patients. These scans are neither in its training nor in its benchmark: it learned from simulated
low-field scans of {len(subjects)} heads or anatomies ({_listed(subjects)}). Three patients and one slice
each show what to look out for; they prove nothing, and **nothing here is a clinical claim**.

![Three patients in rows, 0.055 T interpolated, enhanced twice, and 3 T in columns](lowfield-slices.png)

*Columns: 0.055 T interpolated; {columns}; 3 T. Front up; which side is left is
not known. White matter has the same grey on all. The 3 T images are not registered.*"""


def _measures(report: Report) -> str:
    lines = []
    images = ["0.055 T interpolated", *map(steps_name, report["steps"]), "3 T"]
    for key, patient in report["patients"].items():
        outside = [percent(value, 1) for value in patient["background"]] + ["-"]
        for image, figures, bare in zip(images, patient["measures"], outside, strict=True):
            rise = "none" if figures["rise"] is None else f"{figures['rise']:.1f}"
            lines.append(
                f"| {key} | {image} | {percent(figures['white_matter'], 1)} | {percent(figures['lesion'], 1)} | {bare} "
                f"| {figures['contrast']:+.2f} | {rise} |"
            )
    return f"""## Figures

| patient | image | white matter | inside lesion | background | lesion's contrast | edge (mm) |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}

- White matter, inside lesion, background: standard deviation in the box over the mean of the white-matter box.
- Lesion's contrast: mean in the lesion box minus mean in the surround box, over the latter.
- Edge: from 10 to 90 % of the step from the surroundings into the lesion, on the profile along the edge box, averaged
  across it; the ends are the means of its outer 4 mm. At 3 T a voxel is taken as {report["voxel_mm"][3]} mm (assumed:
  it makes the heads as long as on the 0.055 T scans).
- Interpolated is the network's input on its own grid. In the middle of a slice that is the scan itself, so its figures
  are the scan's."""


def _scans(report: Report) -> str:
    i, j, k, _ = report["voxel_mm"]
    pairs = list(next(iter(report["patients"].values()))["slice_correlations"])
    rows = [
        f"| {key} | " + " | ".join(f"{patient['slice_correlations'][pair]:.2f}" for pair in pairs) + " |"
        for key, patient in report["patients"].items()
    ]
    return f"""## The scans, and what is assumed of them

T1-weighted gradient echo, 256 x 256 x 4 voxels each, CC0. The files name no source; their names and the field
strength match figures of [Liu et al. 2021](https://doi.org/10.1038/s41467-021-27317-1). Their headers say 1 mm along
every axis, which cannot be so between slices:

- {i:g} x {j:g} mm in plane is assumed: it makes the heads as long as heads are.
- {k:g} mm from slice to slice is assumed, from the anatomy that the slices pass through.
- i runs to the back and k down, as is seen in the images; which side j runs to is not known.

The correlation of the background between slices (1 is the topmost) says more:

| patient | {" | ".join(pairs)} |
| --- |{" --- |" * len(pairs)}
{chr(10).join(rows)}

Neighbours share noise and slices two apart hardly do: it looks as if slices were interpolated to half their distance
on the scanner, so that each is about as thick as two of them are apart. Slices 2 and 3 of B are an exception: one
between them seems to have been left out, and the {k:g} mm are wrong there.

From the first slice to the last it is {3 * k:g} mm. The planes that the network works in contain the thick axis, so
each of its images is a strip of 256 x {3 * k + 1:g} pixels, made from 256 x 4 samples: next to no context up and
down, where it was trained on slices that show much of a head and do not overlap. What it does between the slices,
which is what it is for, cannot be judged here: at 3 T there are only the same four slices."""


def _boxes(report: Report) -> str:
    lines = []
    for key, patient in report["patients"].items():
        for field, image in (("low", "0.055 T"), ("high", "3 T")):
            cells = " | ".join(_range(patient[field][name]) for name in BOXES)
            lines.append(f"| {key} | {image} | {patient['slice'] + 1} | {cells} |")
    regions = "\n".join(f"- {key}: {patient['lesion']}." for key, patient in report["patients"].items())
    return f"""## Where was measured

Boxes were chosen by hand, on the 0.055 T scan and on the 3 T image apart, since nothing is registered: by looking, so
that each lies in one tissue at 3 T and on the same anatomy in both. After a first look at the figures the edge boxes
were shortened once, so that both ends lie on level parts of the profile. What is called lesion was not diagnosed here:

{regions}

Voxels i (to the back), then j, first and last, from 0:

| patient | image | slice | {" | ".join(BOXES.values())} |
| --- | --- | --- |{" --- |" * len(BOXES)}
{chr(10).join(lines)}

Background: {_range(report["background"])} on every 0.055 T slice.

![The boxes on the 0.055 T scans and on the 3 T images](lowfield-boxes.png)

*Yellow white matter, red lesion, green surround, blue edge.*

`lfmri enhance` ran with nothing but the number of steps, on {report["backend"]["name"]} in
{report["backend"]["precision"]}. This page, with every figure and picture, is made from a folder with the six files by

```text
python docs/lowfield.py FOLDER
```"""


def _listed(subjects: list[str]) -> str:
    shown = ", ".join(subjects[:4])
    return shown if len(subjects) <= 4 else f"{shown} and others"


def _range(box: list[int]) -> str:
    return f"{box[0]}-{box[1] - 1}, {box[2]}-{box[3] - 1}"
