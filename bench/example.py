"""One problem of the bundled set, before and after: the teacher's raw trace, the RSD trace, and where
the student's own token stands in place of the teacher's likeliest one.

    python bench/example.py --id ages-101
"""

import argparse

import torch

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.models.loading import load
from rsd.traces.readers import read_rows


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--id", default="ages-101", help="a problem's id in data/problems.jsonl")
    args = ap.parse_args()
    rows = [row for row in read_rows(bundled("problems.jsonl")) if row["id"] == args.id]
    if not rows:
        ap.error(f"no problem has the id {args.id}")
    (raw,) = TraceGenerator(GenerateConfig(threshold=0)).run(rows)
    generator = TraceGenerator(GenerateConfig())
    (trace,) = generator.run(rows)
    print(f"PROBLEM\n{rows[0]['problem']} (answer: {rows[0]['answer']})\n")
    print(f"TEACHER ALONE\n{raw.text}\n\nRSD\n{trace.text}\n")

    pair = generator.find()
    teacher, student, vocabulary = pair.teacher, pair.student, pair.vocabulary
    tokens = trace.token_ids.tolist()
    probs = []
    for source, ids in ((teacher, vocabulary.for_teacher(trace.prompt_ids)), (student, trace.prompt_ids)):
        model, rows_of = load(source, generator.config), []
        with torch.inference_mode():
            for token in tokens:
                rows_of.append(model(torch.tensor([ids])).logits[0, -1].softmax(-1))
                ids = ids + (vocabulary.for_teacher([token]) if source is teacher else [token])
        probs.append(rows_of)
    print("| the teacher would say | student probability | what stands |")
    print("|---|---|---|")
    for token, own, q, p in zip(tokens, trace.from_teacher, *probs, strict=True):
        proposal = int(q.argmax())
        if not own and proposal != token:
            said = [repr(str(student.tokenizer.decode([i]))).strip("'") for i in (proposal, token)]
            print(f"| `{said[0]}` | {p[proposal]:.1e} | `{said[1]}` |")


if __name__ == "__main__":
    main()
