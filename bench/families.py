"""Whether scores rank the bundled problem families as one expects, and how scores disagree.

    python bench/families.py --json bench/families.json

Three sets of traces of the bundled problems, several a problem: the teacher's own (raw), RSD's and the
student's own. The harder a family is for the student alone, the less natural one expects the right traces of
its problems to be. Right is told by the boxed answer. Needs the test extra (scipy).
"""

import argparse
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from common import write
from scipy.stats import spearmanr

from rsd import GenerateConfig, TraceGenerator
from rsd.analysis.select import select
from rsd.models.bundled import bundled
from rsd.scoring.config import ScoreConfig
from rsd.scoring.measure import set_rsr
from rsd.scoring.metrics import BY, METRICS
from rsd.scoring.responses import responses
from rsd.scoring.scorer import Scored, load_scorer
from rsd.traces.readers import read_rows

SETS = {"raw": 0.0, "rsd": 0.01, "own": 1.0}  # the threshold that makes them
COMPARED = ("local_naturalness", "global_logprob", "rsr", "aslec_drop")


def of(scored: list[Scored], metric: str) -> float:
    """A set's score: RSR has a definition of its own for sets."""
    if metric == "rsr":
        return float(set_rsr(s.metrics for s in scored) or np.nan)
    return float(np.mean([s.metrics[metric] for s in scored]))


def better(metric: str, value: float) -> float:
    """Higher is better."""
    return value if METRICS[metric].better else -value


def over_traces(sets: dict[str, list[Scored]], results: list[dict]) -> None:
    """How scores go together over the traces of each set: prints a table, and adds to the results."""
    print("\n| Spearman over traces | raw | rsd | own |\n|---|---|---|---|")
    for i, a in enumerate(COMPARED):
        for b in COMPARED[i + 1 :]:
            cells = []
            for name, scored in sets.items():
                known = [s for s in scored if s.metrics[a] is not None and s.metrics[b] is not None]
                columns = ([better(m, s.metrics[m] or 0.0) for s in known] for m in (a, b))
                rho = float(spearmanr(*columns).statistic)
                results.append({"spearman": f"{a}, {b} of {name}", "rho": rho, "n": len(known)})
                cells.append(f"{rho:+.2f}")
            print(f"| {a}, {b} | " + " | ".join(cells) + " |")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--generations", type=int, default=4, help="traces a problem in each set")
    ap.add_argument("--json", help="write the figures to this file")
    args = ap.parse_args()
    problems = read_rows(bundled("problems.jsonl"))
    scorer = load_scorer(ScoreConfig())
    sets: dict[str, list[Scored]] = {}
    for name, threshold in SETS.items():
        config = GenerateConfig(
            threshold=threshold, num_generations=args.generations, max_new_tokens=400, verify="boxed"
        )
        rows = [trace.row() for trace in TraceGenerator(config).run(problems)]
        sets[name] = [s for s in map(scorer.score, responses(rows, ScoreConfig())) if not s.error]
    results: list[dict[str, Any]] = []

    print("| traces | right | " + " | ".join(COMPARED) + " | tokens | tokens a step |")
    print("|---" * (len(COMPARED) + 4) + "|")
    for name, scored in sets.items():
        share = np.mean([s.response.row["is_correct"] for s in scored])
        made = {metric: of(scored, metric) for metric in (*COMPARED, "scored_tokens", "tokens_per_step")}
        results.append({"set": name, "right": float(share)} | made)
        print(f"| {name} | {share:.1%} | " + " | ".join(f"{v:.3g}" for v in made.values()) + " |")

    families: dict[str, dict[str, list[Scored]]] = defaultdict(lambda: defaultdict(list))
    for name, scored in sets.items():
        for s in scored:
            families[s.response.id.split("-")[0]][name].append(s)
    alone = {f: float(np.mean([s.response.row["is_correct"] for s in by["own"]])) for f, by in families.items()}
    order = sorted(alone, key=lambda f: alone[f])
    made = {
        (name, metric): [of([s for s in families[f][name] if s.response.row["is_correct"]], metric) for f in order]
        for name in ("raw", "rsd")
        for metric in COMPARED[:3]
    }
    print("\n| family | student alone | " + " | ".join(f"{m} of {n}" for n, m in made) + " |")
    print("|---" * (len(made) + 2) + "|")
    for i, family in enumerate(order):
        values = [v[i] for v in made.values()]
        results.append({"family": family, "student": alone[family]} | {f"{n}.{m}": v[i] for (n, m), v in made.items()})
        print(f"| {family} | {alone[family]:.1%} | " + " | ".join(f"{v:.3g}" for v in values) + " |")
    cells = []
    for (name, metric), values in made.items():
        rho = float(spearmanr([alone[f] for f in order], [better(metric, v) for v in values]).statistic)
        results.append({"spearman": f"student alone, {metric} of {name}", "rho": rho, "n": len(order)})
        cells.append(f"{rho:+.2f}")
    print("| Spearman with it | | " + " | ".join(cells) + " |")

    over_traces(sets, results)
    print("\n| selected by | raw | rsd | own | as by ln | mean tokens |\n|---|---|---|---|---|---|")
    chosen = {by: {s.response.id: (t, s) for t, s in select(sets, by=by).chosen} for by in BY}
    for by, picks in chosen.items():
        mix = Counter(t for t, _ in picks.values())
        same = np.mean([picks[k][1] is chosen["ln"][k][1] for k in picks])
        tokens = np.mean([s.metrics["scored_tokens"] for _, s in picks.values()])
        results.append({"selected by": by, "mix": dict(mix), "as by ln": float(same), "tokens": float(tokens)})
        print(f"| {by} | {mix['raw']} | {mix['rsd']} | {mix['own']} | {same:.1%} | {tokens:.1f} |")
    write(args.json, results)


if __name__ == "__main__":
    main()
