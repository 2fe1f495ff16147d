"""All ordered pairs of seven real tokenizers: how they meet, and whether the teacher reads what it would write.

    python bench/fetch.py && python bench/vocabularies.py

Of every pair: seconds to meet (of one processor); the student's tokens that are the teacher's, too; the teacher's
that are several of the student's; and what is left out, above all control tokens that the teacher alone has.
Then seven kinds of text (`texts.json`, and code of this repository), token by token as a student writes them: whether
the bytes of what the teacher reads are the student's, however a trace is cut into blocks, and the share of the
teacher's own tokens for the text that its reading has not, by what they come from:

- a text that its tokenizer normalises (NFC): bytes are exchanged as they stand;
- U+2581, which tokenizers of SentencePiece's kind take for a space;
- the text of a control token (`<|im_end|>` spelled out), which is read as text;
- all else.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import pairwise, permutations
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rsd.pair.meeting import meet
from rsd.pair.spelling import BLANK
from rsd.pair.vocabulary import TeacherContext, Vocabulary

HERE = Path(__file__).parent
NAMES = ("qwen3", "llama3", "llama2", "gemma3", "deepseek_v3", "gptoss", "smollm2")
CASES = ("normalised", "U+2581", "control token", "other")


@lru_cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    options = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"} if name == "smollm2" else {}
    return AutoTokenizer.from_pretrained(HERE / "parts" / name, **options)


def together(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> Vocabulary:
    widths = [max(t.get_vocab().values()) + 1 for t in (teacher, student)]
    return meet(teacher, student, teacher_width=widths[0], student_width=widths[1])


def written(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's ids behind a line break: without the blank that some put in front of all."""
    before = tok.encode("\n", add_special_tokens=False)
    return tok.encode("\n" + text, add_special_tokens=False)[len(before) :]


def spelled(ids: Iterable[int], tok: PreTrainedTokenizerBase, known: dict[int, bytes]) -> bytes:
    return b"".join(known[i] if i in known else tok.convert_ids_to_tokens(i).encode() for i in ids)


def differing(teacher: PreTrainedTokenizerBase, reads: dict[int, bytes], read: list[int], own: list[int]) -> Counter:
    """How many of its own ids a reading has not, by case."""
    found: Counter = Counter()
    if read == own:
        return found
    normalizer = teacher.backend_tokenizer.normalizer
    for kind, a, b, c, d in SequenceMatcher(None, read, own, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        text = spelled(read[max(0, a - 2) : b + 2], teacher, reads).decode(errors="replace")
        if any(i not in reads for i in own[max(0, c - 2) : d + 2]):
            case = "control token"
        elif BLANK in text or any(reads[i] in (b"\xe2", b"\x96", b"\x81") for i in read[a:b]):
            case = "U+2581"
        elif normalizer and normalizer.normalize_str(text.replace("\ufffd", "")) != text.replace("\ufffd", ""):
            case = "normalised"
        else:
            case = "other"
        found[case] += max(d - c, 1)
    return found


def texts(count: int = 20) -> dict[str, list[str]]:
    """Paragraphs by their kind: four to eight sentences, joined by blanks and line breaks; and parts of files."""
    kinds: dict[str, list[str]] = {}
    for kind, sentences in json.loads((HERE / "texts.json").read_text(encoding="utf-8")).items():
        r = random.Random(kind)
        chosen = [r.sample(sentences, r.randint(4, 8)) for _ in range(count)]
        kinds[kind] = ["".join(s + r.choice([" ", " ", "\n", "\n\n"]) for s in some).strip() for some in chosen]
    files = [file.read_text(encoding="utf-8") for file in sorted((HERE.parent / "rsd").glob("*.py"))[:count]]
    return kinds | {"code": [file[:2000].strip() for file in files if file.strip()]}


def compare(teacher_name: str, student_name: str, kinds: dict[str, list[str]]) -> dict:
    teacher, student = tokenizer(teacher_name), tokenizer(student_name)
    started = time.process_time()  # other programs may be running
    vocabulary = together(teacher, student)
    seconds = time.process_time() - started
    reads, writes = (s.bytes for s in vocabulary.spellers)
    r, read_for, count = random.Random(0), 0.0, 0
    shares, cases, exact, whole = {}, Counter(), True, True
    for kind, paragraphs in kinds.items():
        differ: Counter = Counter()
        total = 0
        for text in paragraphs:
            ids = written(student, text)
            raw = spelled(ids, student, writes)
            started = time.process_time()
            read = vocabulary.read(TeacherContext(), ids).ids
            read_for += time.process_time() - started
            count += len(ids)
            both = [i for i in {*ids} - writes.keys() if vocabulary.shared[i]]
            ends = {vocabulary.teacher_id(i): spelled([i], student, {}) for i in both}
            exact &= spelled(read, teacher, ends | reads) == raw
            parts = TeacherContext()
            for start, end in pairwise([0, *sorted(r.sample(range(1, len(ids)), 5)), len(ids)]):
                parts = vocabulary.read(TeacherContext(parts.ids, parts.fixed), ids[start:end])
            whole &= parts.ids == read
            own = written(teacher, raw.decode())
            total += len(own)
            differ += differing(teacher, reads, read, own)
        shares[kind] = sum(differ.values()) / total
        cases += Counter({case: n / total / len(kinds) for case, n in differ.items()})
    return {
        "teacher": teacher_name,
        "student": student_name,
        "seconds": round(seconds, 2),
        "shared": int(vocabulary.shared.sum()),
        "several": len(vocabulary.teacher_to_student),
        "spelled": len(vocabulary.student_to_teacher),
        "merged": sum(map(len, vocabulary.merged.values())),
        "left_out": len({*teacher.get_vocab().values()} - proposed(vocabulary)),
        "microseconds": round(1e6 * read_for / count, 1),
        "exact": exact,
        "one_reading": whole,
        "differs": shares,
        "cases": {case: cases[case] for case in CASES if cases[case]},
    }


def proposed(vocabulary: Vocabulary) -> set[int]:
    """The teacher's ids that say something to the student."""
    shared = {vocabulary.teacher_id(s) for s in vocabulary.shared.nonzero()[:, 0].tolist()}
    return shared | vocabulary.teacher_to_student.keys() | {t for t, _ in vocabulary.also}


def table(rows: list[dict]) -> str:
    """Markdown: a line for each pair, with what differs by kind of text and by case."""
    kinds = list(rows[0]["differs"])
    head = ["teacher", "student", "s", "shared", "several", "left out", "µs/token", "same bytes", *kinds, "because of"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["teacher"], row["student"], f"{row['seconds']:.1f}"]
        cells += [f"{row[key]:,}" for key in ("shared", "several", "left_out")] + [f"{row['microseconds']:.0f}"]
        cells += ["yes" if row["exact"] and row["one_reading"] else "NO"]
        cells += [f"{share:.1%}" if (share := row["differs"][kind]) else "0" for kind in kinds]
        cells += [", ".join(f"{case} {share:.2%}" for case, share in row["cases"].items()) or "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--out", type=Path, default=HERE / "vocabularies.json")
    args = parser.parse_args()
    kinds = texts()
    for name in args.names:
        tokenizer(name)
    rows = [compare(*pair, kinds) for pair in permutations(args.names, 2)]
    args.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(rows))
    longest = max(rows, key=lambda row: row["seconds"])
    print(f"\nLongest to meet: {longest['teacher']} and {longest['student']}, {longest['seconds']} s")


if __name__ == "__main__":
    main()
