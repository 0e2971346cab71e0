"""The part of docs/lowfield.md that judges: every sentence follows from the figures, or holds for any bundle."""

from typing import Any

#: A figure that changes by less than this part counts as the same.
SAME = 0.05
#: A lesion that keeps this part of its contrast counts as kept.
KEPT = 0.9
Report = dict[str, Any]


def judgement(report: Report) -> str:
    """What got better and what worse, by counting patients."""
    names = [steps_name(steps) for steps in report["steps"]]
    rows = [f"| {label} | " + " | ".join(cells) + " |" for label, cells in verdicts(report).items()]
    kept = [
        f"- {name}: " + ", ".join(f"{key} {percent(part)}" for key, part in parts.items()) + f". {_lesions(parts)}"
        for name, parts in zip(names, contrasts(report), strict=True)
    ]
    return f"""## What gets better, what gets worse

In how many of the {len(report["patients"])} patients; smaller counts as better, and a change of less than
{percent(SAME)} as the same.

| after enhancement | {" | ".join(names)} |
| --- |{" --- |" * len(names)}
{chr(10).join(rows)}

Does the lesion stay? The part of the scan's contrast that is left (above 100 % it got stronger):

{chr(10).join(kept)}

How to read it:

- A smaller deviation is less noise, or less texture of the tissue: the figure does not tell which. Inside the lesion,
  where the scan has little texture of its own, what is added is the model's.
- An edge that is shorter than at 3 T is not better: the model made it.
- Woven lines, in the lesions and outside the head, are no anatomy: the network sees one slice of a plane after the
  other, and with more than one step each of them shows a draw of its own.
- A contrast that got stronger is not a lesion seen better: the model also moves dark against bright tissue towards the
  contrast that it was trained on. Where the result shows a fold that the scan does not, nothing here says that it is
  there."""


def verdicts(report: Report) -> dict[str, list[str]]:
    """Counts for each measure, a cell for each number of steps."""
    patients = report["patients"].values()
    labels = {"white_matter": "deviation in white matter", "lesion": "deviation inside the lesion"}
    cells = {label: _counted(report, [_column(p, name) for p in patients]) for name, label in labels.items()}
    cells["deviation in the background"] = _counted(report, [p["background"] for p in patients])
    cells["length of the edge"] = _counted(report, [_column(p, "rise") for p in patients])
    away = [[abs(m["contrast"] - p["measures"][-1]["contrast"]) for m in p["measures"][:-1]] for p in patients]
    cells["lesion's contrast, distance to 3 T"] = _counted(report, away)
    return cells


def contrasts(report: Report) -> list[dict[str, float]]:
    """For each number of steps: the part of the scan's contrast that each patient's lesion keeps."""
    columns = {key: [m["contrast"] for m in patient["measures"]] for key, patient in report["patients"].items()}
    return [{key: c[1 + n] / c[0] for key, c in columns.items()} for n in range(len(report["steps"]))]


def _lesions(parts: dict[str, float]) -> str:
    weaker = [key for key, part in parts.items() if part < KEPT]
    return f"Weaker than {percent(KEPT)}: {', '.join(weaker)}." if weaker else f"None is weaker than {percent(KEPT)}."


def _counted(report: Report, columns: list[list[float | None]]) -> list[str]:
    """Columns hold scan first, then each number of steps; smaller is better, and None (no edge left) is worst."""
    cells = []
    for n in range(len(report["steps"])):
        ratios = [_ratio(column[1 + n], column[0]) for column in columns]
        better, worse = sum(r < 1 - SAME for r in ratios), sum(r > 1 + SAME for r in ratios)
        cells.append(f"better {better}, same {len(ratios) - better - worse}, worse {worse}")
    return cells


def _ratio(after: float | None, before: float | None) -> float:
    if after is None or not before:
        return float("inf")
    return after / before


def _column(patient: Report, name: str) -> list[float | None]:
    """A measure of the scan and of each number of steps, without 3 T."""
    return [figures[name] for figures in patient["measures"][:-1]]


def percent(part: float, digits: int = 0) -> str:
    """A part of one in percent."""
    return f"{100 * part:.{digits}f} %"


def steps_name(steps: int) -> str:
    """Euler steps in words."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"
