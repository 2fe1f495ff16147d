"""The card of an exported data set."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsd.dataset.export import Export
from rsd.dataset.formats import IDS, WITH_TEMPLATE
from rsd.traces.trace import PROVENANCE
from rsd.version import __version__

SAYS = {
    "prompt-completion": "`prompt` and `completion` hold chat messages, as TRL's SFTTrainer reads them; its loss "
    "covers the completion alone.",
    "messages": "`messages` holds the whole conversation.",
    "sharegpt": "`conversations` holds turns of `from` and `value`.",
    "alpaca": "`instruction`, `input` (empty), `output`, `system` and `history`.",
    "token-ids": "`input_ids` as the student sampled them, `completion_mask` and `labels`; nothing is to be tokenized. "
    "Of weighed traces `loss_weights` says how hard each token is to be learnt.",
    "axolotl-kd": "`messages`, and for each token of the answer (and each that the chat template puts behind it) the "
    "teacher's likeliest tokens: `logprobs` and `target_token_ids`, as axolotl's `integrations.kd.chat_template` reads "
    "them, with the tokenizer's own chat template.",
    "axolotl-kd-v1": "`messages`, and in `logprobs` for each token of the answer (and each that the chat template puts "
    "behind it) the teacher's likeliest tokens, as axolotl's first versions read them, with the tokenizer's own chat "
    "template.",
    "distillkit": "DistillKit's prepacked offline teacher: `input_ids` and `labels` (rows of one length, filled up "
    "with tokens without a label), and the teacher's likeliest tokens in `bytepacked_indices` and "
    "`compressed_logprobs`, by the compression file beside them. They lie in the place before their token; where there "
    "are none, the token itself has all of the probability. Training needs `remove_unused_columns: false`.",
}
TEACHER_SAYS = (
    " `privileged_context` is what the teacher read and the student did not, as TRL's self-distillation reads it."
)
SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(made: Export, files: Mapping[str, str], *, repo_id: str | None = None) -> str:
    """The dataset card: models, settings, statistics, how to load it, and that it is one student's.

    files: the rows' files by split, as they are called beside the card.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    m, c = made.manifest, made.config
    identity = m.get("identity") or {}
    ours = not m.get("scored")  # or somebody else's traces
    said = (*PROVENANCE, "is_prefix")
    rows = [{column: row.get(column) for column in said} for of in (made.train, made.test) for row in of]
    splits = {"train": made.train} | ({"test": made.test} if made.test else {})
    data = DatasetCardData(
        pretty_name=repo_id.split("/")[1] if repo_id else "RSD traces" if ours else "Traces with soft targets",
        task_categories=["text-generation"],
        tags=[*(["reverse-speculative-decoding"] if ours else []), "rsd", "reasoning", "distillation", "sft"],
        size_categories=[next((name for most, name in SIZES if len(rows) < most), "n>1M")],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": file} for name, file in files.items()],
            }
        ],
    )
    of = [row for row in rows if not row.get("is_prefix")]
    statistics = [(f"rows for {'training' if n == 'train' else 'testing'}", len(r)) for n, r in splits.items()]
    statistics += [("prefixes of unsolved problems' traces among them", made.prefixes)] if made.prefixes else []
    statistics += [("problems", made.problems), ("problems without a correct trace", made.unsolved)]
    statistics += [(f"traces left out: {_cell(why)}", n) for why, n in made.dropped.items()]
    lengths = [n for row in of if (n := row["num_tokens"]) is not None]
    tokens = sum(lengths)
    named = (("acceptance", "acceptance_rate"), ("fallback", "fallback_rate"))
    shares = [(name, _share(of, column)) for name, column in named]
    settings = {**identity, "keep": c.keep, "max_fallback_rate": c.max_fallback_rate, "split_seed": c.seed}
    for name in ("teacher", "student"):
        settings.pop(name, None)
    made_card = DatasetCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md")),
        title=data.pretty_name,
        version=__version__,
        ours=ours,
        load=_load(files, repo_id),
        format=c.format,
        format_says=SAYS[c.format]
        + _template_says(c.format, identity.get("chat_template_kwargs"))
        + (c.with_teacher_prompt * TEACHER_SAYS),
        verify=_cell(identity.get("verify", "not known how")),
        statistics=[
            *statistics,
            ("tokens", tokens),
            ("tokens a trace", f"{tokens / max(len(lengths), 1):.0f}"),
            *((name, f"{value:.1%}") for name, value in shares if value is not None),
        ],
        settings=[(name, _cell(value)) for name, value in settings.items()],
        **{role: _name(m.get(role) or {}) for role in ("teacher", "student")},
        **{f"{role}_revision": _revision(m, role) for role in ("teacher", "student")},
    )
    return str(made_card.content)


def _template_says(format: str, kwargs: Any) -> str:
    """What a trainer must know of the chat template; nothing where it was used as it is, or is not used."""
    if not kwargs or format in IDS:
        return ""
    if format in WITH_TEMPLATE:
        return " `chat_template_kwargs` is for the chat template; TRL gives it that, others may have to be told."
    return f" The chat template was given {_cell(json.dumps(kwargs))}, for which this format has no place."


def _load(files: Mapping[str, str], repo_id: str | None) -> str:
    if repo_id:
        return f"load_dataset({json.dumps(repo_id)})"
    kind = "parquet" if files["train"].endswith(".parquet") else "json"
    return f"load_dataset({json.dumps(kind)}, data_files={json.dumps(dict(files))})"


def _share(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    known = [row for row in rows if None not in (row.get(column), row["num_tokens"])]
    tokens = sum(row["num_tokens"] for row in known)
    return sum(row[column] * row["num_tokens"] for row in known) / tokens if tokens else None


def _cell(value: Any) -> str:
    """Any value as the text of a table's cell: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~$&])", r"\\\1", " ".join(str(value).split())) or "(none)"


def _name(model: Mapping[str, Any]) -> str:
    """A model's name; of a directory the last part, since a path says more of a machine than of a model."""
    name = str(model.get("name") or "not known")
    text = _cell(Path(name).name if Path(str(model.get("path"))).is_absolute() and "/" in name else name)
    if isinstance(adapter := model.get("adapter"), Mapping):
        text += f" with the adapter {_name(adapter)}"
    return f"{text} in {_cell(model['load_in'])}" if model.get("load_in") else text


def _revision(manifest: Mapping[str, Any], role: str) -> str:
    model = manifest.get(role) or {}
    fingerprint = (manifest.get("identity") or {}).get(role)
    return _cell(model.get("revision") or (f"files {fingerprint}" if fingerprint else "not known"))
