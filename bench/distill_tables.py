"""The tables and the plots of `distill.py`: what runs come to."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from distill_data import FAMILIES, NEW, learns_new

Rows = list[dict[str, Any]]
SHOWN = ("problems", "steps", "tokens_a_trace", "below_1_percent", "acceptance")


def matrix(runs: Rows, count: int, *, first: int = 0, others: bool = False) -> np.ndarray:
    """Right or not, [seeds, problems], of the problems that count: for a student that learns new families these, of
    which all arms' traces are; others: the rest of them. first: where the problems begin in their stream."""
    right = np.array([np.unpackbits(np.frombuffer(bytes.fromhex(r["right"]), np.uint8))[:count] for r in runs], float)
    new = np.isin((first + np.arange(count)) % len(FAMILIES), [list(FAMILIES).index(name) for name in NEW])
    return right[:, new != others] if learns_new(runs[0]["task"]) else right


def interval(right: np.ndarray, minus: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of right - minus, over resampled seeds and problems (the same ones for both)."""
    r = np.random.default_rng(0)
    seeds, problems = right.shape
    gain = right - minus
    draws = []
    for _ in range(2000):
        s, p = r.integers(seeds, size=seeds), r.integers(problems, size=problems)
        draws.append(gain[s][:, p].mean())
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(gain.mean()), float(low), float(high)


def summary(runs: Rows, untrained: dict[str, Any], count: int) -> Rows:
    none = matrix([untrained], count)
    by_arm = {name: [run for run in runs if run["task"]["arm"] == name] for name in _names(runs)}
    made = []
    for name, of in by_arm.items():
        right = matrix(of, count)
        row = {"arm": name, "rate": of[0]["task"]["rate"], "seeds": len(of)}
        row["accuracy"] = interval(right, np.zeros_like(none))
        row["gain"] = interval(right, none)
        plain, more = name.partition("+")[::2]
        base = plain if more else "policy" if "policy" in by_arm else "raw"
        if (other := by_arm.get(base)) and other is not of:  # seed by seed
            both = _by_seed(of).keys() & _by_seed(other).keys()
            pair = (matrix([_by_seed(x)[seed] for seed in sorted(both)], count) for x in (of, other))
            row |= {"other": other[0]["task"]["arm"], "against": interval(*pair) if both else None}
        if learns_new(untrained["task"]):
            row["known"] = interval(*(matrix(runs, count, others=True) for runs in (of, [untrained])))
        row |= {c: float(np.mean([run[c] for run in of])) for c in SHOWN if c in of[0]}
        row["loss"] = _mean_curve([run.get("policy_loss", run.get("loss")) for run in of])
        if "curve" in of[0]:
            row["curve"] = _mean_curve([run["curve"] for run in of])
        made.append(row)
    return made


def _names(runs: Rows) -> Iterable[str]:
    return dict.fromkeys(run["task"]["arm"] for run in runs)


def _by_seed(runs: Rows) -> dict[int, dict[str, Any]]:
    return {run["task"]["seed"]: run for run in runs}


def _mean_curve(curves: list[list[Any]]) -> list[list[float]]:
    return [[at[0][0], float(f"{np.mean([y for _, y in at]):.4g}")] for at in zip(*curves, strict=False)]


def _points(x: tuple[float, float, float] | None) -> str:
    return "" if x is None else f"{100 * x[0]:+.1f} ({100 * x[1]:+.1f} .. {100 * x[2]:+.1f})"


def show(title: str, rows: Rows, untrained: dict[str, Any], count: int) -> None:
    """Print a table, with what each step of on-policy distillation came to where there are such."""
    steps = [step for step, _ in rows[0].get("curve", [])]
    columns = ["arm", "seeds", "accuracy", "95 %", "against no training", "against"]
    columns += ["the other families"] if learns_new(untrained["task"]) else []
    columns += [f"after {step}" for step in steps]
    columns += [] if steps else ["problems", "steps", "tokens a trace", "below 1 %", "acceptance"]
    columns += ["rate", "loss, first and last"]
    none = interval(matrix([untrained], count), np.zeros((1, 1)))
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    print(f"| none | | {none[0]:.1%} | {none[1]:.1%} .. {none[2]:.1%} |" + " |" * (len(columns) - 4))
    for r in rows:
        a = r["accuracy"]
        against = f"{r['other']}: {_points(r['against'])}" if r.get("against") else ""
        cells = [r["arm"], str(r["seeds"]), f"{a[0]:.1%}", f"{a[1]:.1%} .. {a[2]:.1%}", _points(r["gain"]), against]
        cells += [_points(r["known"])] if "known" in r else []
        cells += [f"{accuracy:.1%}" for _, accuracy in r.get("curve", [])]
        if not steps:
            cells += [f"{r['problems']:.0f}", f"{r['steps']:.0f}", f"{r['tokens_a_trace']:.0f}"]
            cells += [f"{r['below_1_percent']:.2%}", f"{r['acceptance']:.1%}"]
        cells += [f"{r['rate']:g}", f"{r['loss'][0][1]:.2f}, {r['loss'][-1][1]:.2f}"]
        print("| " + " | ".join(cells) + " |")


# --- plots -----------------------------------------------------------------------------------------


def plots(folder: Path, tables: dict[str, Rows], none: dict[str, float]) -> None:
    """A picture a question, of the tables that there are."""
    if "bundled/sweep" in tables:
        _bundled(folder / "distill.png", tables, none["bundled"])
    if "rare/steps" in tables:
        _arms(folder / "distill-headroom.png", tables, none)
    if "rare/cold" in tables:
        _cold(folder / "distill-cold.png", tables["rare/cold"], none["rare"])


def _bars(axes: Any, rows: Rows, shift: float = 0.0, **style: Any) -> None:
    """Accuracies with their intervals, in percent, an arm beside the other."""
    ys = 100 * np.array([r["accuracy"] for r in rows])
    xs = np.arange(len(rows)) + shift if "xs" not in style else style.pop("xs")
    axes.errorbar(xs, ys[:, 0], [ys[:, 0] - ys[:, 1], ys[:, 2] - ys[:, 0]], capsize=3, **{"fmt": "o"} | style)


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def _figure(parts: int) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, parts, figsize=(5 * parts, 4), squeeze=False)


def _bundled(file: Path, tables: dict[str, Rows], none: float) -> None:
    figure, ((left, middle, right),) = _figure(3)
    names = {"steps": "same problems and steps", "tokens": "same problems and tokens", "solved": "what each arm solved"}
    for i, (name, label) in enumerate(names.items()):
        rows = [row for row in tables[f"bundled/{name}"] if "+" not in row["arm"]]
        _bars(left, rows, (i - 1) * 0.2, label=label)
    left.set_xticks(range(len(rows)), [row["arm"] for row in rows])
    left.set_ylabel("greedy accuracy on held-out problems, %")
    for row in (row for row in tables["bundled/steps"] if "+" not in row["arm"]):
        middle.plot(*zip(*row["loss"], strict=True), label=row["arm"])
    middle.set_yscale("log")
    middle.set_xlabel("optimizer step")
    middle.set_ylabel("training loss, nats a token")
    sweep = tables["bundled/sweep"]
    _bars(right, sweep, xs=[float(r["arm"]) for r in sweep], fmt="o-")
    right.set_xscale("log")
    right.set_xlabel("threshold")
    for axes in (left, right):
        axes.axhline(100 * none, color="grey", linestyle="--", label="no training")
    left.legend()
    middle.legend()
    _save(figure, file)


def _arms(file: Path, tables: dict[str, Rows], none: dict[str, float]) -> None:
    """All arms on the problems that the plain ones solved, a student beside the other."""
    shown = [name for name in ("rare", "early", "unseen") if f"{name}/steps" in tables]
    shown += ["bundled"] if any("+" in row["arm"] for row in tables.get("bundled/steps", [])) else []
    figure, (parts,) = _figure(len(shown))
    for name, axes in zip(shown, parts, strict=True):
        rows = tables[f"{name}/steps"]
        _bars(axes, rows)
        axes.set_xticks(range(len(rows)), [row["arm"].replace("+", "\n+") for row in rows], fontsize=7)
        axes.axhline(100 * none[name], color="grey", linestyle="--", label="no training")
        axes.set_title(f"{name} student")
        axes.legend()
    parts[0].set_ylabel("greedy accuracy on held-out problems, %")
    _save(figure, file)


def _cold(file: Path, rows: Rows, none: float) -> None:
    figure, ((axes,),) = _figure(1)
    for row in rows:
        label = "at once" if row["arm"] == "policy" else f"after {row['arm']} traces"
        steps, accuracy = zip(*row["curve"], strict=True)
        axes.plot(steps, 100 * np.array(accuracy), "o-", label=label)
    axes.axhline(100 * none, color="grey", linestyle="--", label="no training")
    axes.set_xlabel("step of on-policy distillation")
    axes.set_ylabel("greedy accuracy on held-out problems, %")
    axes.legend()
    _save(figure, file)
