"""The tables and the plot of `distill.py`: what runs come to."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def matrix(runs: list[dict[str, Any]], count: int) -> np.ndarray:
    """Right or not, [seeds, problems]."""
    return np.array([np.unpackbits(np.frombuffer(bytes.fromhex(r["right"]), np.uint8))[:count] for r in runs], float)


def interval(right: np.ndarray, minus: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of right - minus, over resampled seeds and problems (the same ones for both)."""
    r = np.random.default_rng(0)
    seeds, problems = right.shape
    draws = []
    for _ in range(2000):
        s, p = r.integers(seeds, size=seeds), r.integers(problems, size=problems)
        draws.append(right[s][:, p].mean() - minus[:, p].mean())
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(right.mean() - minus.mean()), float(low), float(high)


def summary(runs: list[dict[str, Any]], untrained: dict[str, Any], count: int) -> list[dict[str, Any]]:
    none = matrix([untrained], count)
    made = []
    for name in dict.fromkeys(run["task"]["arm"] for run in runs):
        of = [run for run in runs if run["task"]["arm"] == name]
        right = matrix(of, count)
        row = {"arm": name, "rate": of[0]["task"]["rate"], "seeds": len(of)}
        row["accuracy"] = interval(right, np.zeros_like(none))
        row["gain"] = interval(right, none)
        for c in ("problems", "steps", "tokens_a_trace", "below_1_percent", "acceptance"):
            row[c] = float(np.mean([run[c] for run in of]))
        row["loss"] = [[a, float(np.mean(b))] for a, b in _curve(of)]
        made.append(row)
    return made


def _curve(runs: list[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    return [(logs[0][0], [log[1] for log in logs]) for logs in zip(*(run["loss"] for run in runs), strict=False)]


def show(title: str, rows: list[dict[str, Any]], untrained: dict[str, Any], count: int) -> None:
    print(f"\n{title}\n")
    print("| arm | accuracy | 95 % | against no training | problems | steps | tokens a trace | below 1 % | "
          "acceptance | rate | loss, first and last |")  # fmt: skip
    print("|---" * 11 + "|")
    none = interval(matrix([untrained], count), np.zeros((1, count)))
    print(f"| none | {none[0]:.1%} | {none[1]:.1%} .. {none[2]:.1%} | | | | | | | | |")
    for r in rows:
        a, g = r["accuracy"], r["gain"]
        print(f"| {r['arm']} | {a[0]:.1%} | {a[1]:.1%} .. {a[2]:.1%} | {100 * g[0]:+.1f} ({100 * g[1]:+.1f} .. "
              f"{100 * g[2]:+.1f}) | {r['problems']:.0f} | {r['steps']:.0f} | {r['tokens_a_trace']:.0f} | "
              f"{r['below_1_percent']:.2%} | {r['acceptance']:.1%} | {r['rate']:g} | "
              f"{r['loss'][0][1]:.2f}, {r['loss'][-1][1]:.2f} |")  # fmt: skip


def plot(file: str, tables: dict[str, list[dict[str, Any]]], none: float, arms: Sequence[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4))
    shown = [(name, tables[name]) for name in ("steps", "tokens", "solved")]
    for i, (name, rows) in enumerate(shown):
        xs = np.arange(len(rows)) + (i - 1) * 0.2
        ys = np.array([r["accuracy"] for r in rows]) * 100
        left.errorbar(xs, ys[:, 0], [ys[:, 0] - ys[:, 1], ys[:, 2] - ys[:, 0]], fmt="o", capsize=3,
                      label={"steps": "same problems and steps", "tokens": "same problems and tokens",
                             "solved": "what each arm solved"}[name])  # fmt: skip
    left.set_xticks(range(len(arms)), arms)
    left.set_ylabel("greedy accuracy on held-out problems, %")
    for row in tables["steps"]:
        middle.plot(*zip(*row["loss"], strict=True), label=row["arm"])
    middle.set_yscale("log")
    middle.set_xlabel("optimizer step")
    middle.set_ylabel("training loss, nats a token")
    ys = np.array([r["accuracy"] for r in tables["sweep"]]) * 100
    xs = [float(r["arm"]) for r in tables["sweep"]]
    right.errorbar(xs, ys[:, 0], [ys[:, 0] - ys[:, 1], ys[:, 2] - ys[:, 0]], fmt="o-", capsize=3)
    right.set_xscale("log")
    right.set_xlabel("threshold")
    for axes in (left, right):
        axes.axhline(100 * none, color="grey", linestyle="--", label="no training")
    left.legend()
    middle.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
