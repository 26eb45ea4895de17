"""The model card of a run: README.md of an exported folder, from the run folder alone.

Equal runs have equal cards: no dates, no wall times, no paths of the machine.
"""

import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from airtune.config import RunConfig
from airtune.record import RunFolder
from airtune.settings import dump, flat, label_of, load, presets, read_config

Form = Literal["peft", "merged"]
"""What lies beside the card: a PEFT adapter, or a whole Transformers model."""

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""Hub id of `minilm-l6`, bit for bit the same weights."""
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Hub id of what `smollm2-135m` holds in 4 bits."""

PLACES = {"data_dir": "DATA", "model.name": "MODEL", "model.adapter": "ADAPTER", "policy.file": "POLICY.py"}
"""Settings that are paths, and what stands for them in the command."""


@dataclass(frozen=True, slots=True)
class Judged:
    """How the exported adapter did on the whole dev set."""

    accuracy: float
    samples: int
    metric: str = "accuracy"
    """Name of the measure that `accuracy` holds."""


def card_of(folder: RunFolder, form: Form, rounds: int, labels: Sequence[str], judged: Judged | None) -> str:
    """The card's text: the Hub's YAML front matter, the run's figures, how to load it, digests and command.

    Args:
        folder: the run.
        form: what lies beside the card.
        rounds: rounds that the adapter has seen; later rows do not count.
        labels: class names.
        judged: its result; None for a run that has not ended, which is then no `model-index`.
    """
    config, environment = load(folder.read_config(), str(folder.path)), folder.read_environment()
    rows = [row for row in folder.read_rounds() if row["t"] < rounds]
    base = _base_model(config)
    parts = [
        _front(config, environment, form, base, judged),
        f"# {_title(config)}\n\n{_about(config, environment, form, labels)}",
        _table(("figure", "value"), _figures(config, environment, rows, judged)),
        f"## Load it\n\n{_loading(form, base, environment['model'], len(labels))}",
        "## Digests\n\n" + _table(("what", "file or split", "SHA-256"), list(_digests(environment))),
        f"## Reproduce it\n\n```\n{command(config)}\n```" + _places(config, environment),
    ]
    return "\n\n".join(parts) + "\n"


def command(config: RunConfig) -> str:
    """The `airtune run` that gives this configuration, from its preset or the demo's; paths in capitals.

    Results of another machine or number of threads differ by rounding.
    """
    start = config.name if config.name in presets() else "demo"
    theirs, words = flat(dump(read_config(start))), ["airtune", "run", start]
    for key, value in flat(dump(config)).items():
        if key in ("name", "out", "threads") or value == theirs[key]:
            continue
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            table, _, last = key.rpartition(".")
            words.append(option if value else f"--{table}.no-{last.replace('_', '-')}")
            continue
        words.append(option)
        if value is not None and key in PLACES and (key != "model.name" or Path(str(value)).is_absolute()):
            words.append(PLACES[key])
        else:
            words += [str(item) for item in (value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _base_model(config: RunConfig) -> str | None:
    """Hub id of the base model; None for a folder."""
    name = {"minilm-l6": MINILM, "smollm2-135m": SMOLLM2}.get(config.model.name, config.model.name)
    return None if Path(name).is_absolute() else name


def _title(config: RunConfig) -> str:
    model = Path(config.model.name).name
    return f"{model}, {config.task.name}, {label_of(config.policy)}"


def _front(
    config: RunConfig, environment: Mapping[str, Any], form: Form, base: str | None, judged: Judged | None
) -> str:
    """The YAML between two lines of dashes."""
    from huggingface_hub import EvalResult, ModelCardData

    glue = config.task.name not in ("rotten-tomatoes", "instruct") and "==" not in str(environment["data"]["source"])
    task = "text-generation" if config.task.name == "instruct" else "text-classification"
    result = None
    if judged is not None and not _personal(config):
        result = EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type="nyu-mll/glue" if glue else config.task.name,
            dataset_name=f"GLUE {config.task.name}" if glue else str(environment["data"]["source"]),
            dataset_config=config.task.name if glue else None,
            dataset_split=("validation_matched" if config.task.name == "mnli" else "validation") if glue else "dev",
            metric_type=judged.metric,
            metric_value=judged.accuracy,
        )
    data = ModelCardData(
        base_model=base,
        library_name="peft" if form == "peft" else "transformers",
        pipeline_tag=task,
        datasets=["nyu-mll/glue"] if glue else None,
        metrics=["accuracy" if judged is None else judged.metric],
        tags=["airtune", "federated-learning", "lora", *([] if form == "peft" else ["merged"])],
        model_name=_title(config) if result else None,
        eval_results=None if result is None else [result],
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---"


def _personal(config: RunConfig) -> bool:
    """Whether devices have models of their own, so that the accuracy is not the exported adapter's."""
    return config.learning.method == "fedsa"


def _about(config: RunConfig, environment: Mapping[str, Any], form: Form, labels: Sequence[str]) -> str:
    what = (
        "A LoRA adapter in PEFT's format" if form == "peft" else "A plain Transformers model with LoRA merged into it"
    )
    version = environment.get("versions", {}).get("airtune", "unknown")
    purposes = {"instruct": "answering instructions", "stsb": "scoring the similarity of two sentences"}
    purpose = purposes.get(config.task.name, f"text classification ({', '.join(labels)})")
    return (
        f"{what}, for {purpose}. Fine-tuned by airtune {version} in a simulated "
        f"federation of {config.fleet.devices} devices over wireless links; energy, time and lost uploads are those of "
        "the simulation."
    )


def _figures(
    config: RunConfig, environment: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], judged: Judged | None
) -> list[tuple[str, str]]:
    """Name and value of each figure of the run."""
    compute_j, transmit_j = (math.fsum(row[f"energy_{part}_j"] for row in rows) for part in ("compute", "transmit"))
    scheduled, delivered = (sum(row[name] for row in rows) for name in ("scheduled", "delivered"))
    share = f" ({100 * delivered / scheduled:.1f} %)" if scheduled else ""
    modules = config.modules
    family = ", ".join(f"({rank}, {depth})" for rank, depth in zip(modules.ranks, modules.depths, strict=True))
    return [
        ("accuracy" if judged is None else judged.metric, _accuracy(config, judged)),
        ("rounds", f"{len(rows)} of {config.rounds}"),
        ("devices", f"{config.fleet.devices}, partition {config.partition.kind}"),
        ("policy", environment.get("policy", {}).get("label") or label_of(config.policy)),
        ("method", config.learning.method),
        ("modules (rank, layers)", f"{family}; α {modules.alpha:g}; {', '.join(modules.targets)}"),
        ("uploads delivered", f"{delivered} of {scheduled}{share}"),
        ("energy, compute", f"{compute_j:.6g} J"),
        ("energy, transmit", f"{transmit_j:.6g} J"),
        ("worst device's energy over its budget", f"{rows[-1]['max_overspend_ratio']:.4g}"),
        ("tokens trained", f"{math.fsum(row['tokens'] for row in rows):.0f}"),
        (f"bound on the loss, {rows[-1]['bound_kind']}", f"{rows[-1]['bound']:.6g}"),
        ("certificate of the decisions", _certificate(rows)),
        ("differential privacy", _privacy(config, rows)),
        ("seed", str(config.seed)),
    ]


def _privacy(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the updates of a device were protected by, over the rounds."""
    chosen = config.privacy
    if chosen.mechanism == "none":
        return "none"
    told = (
        f"{chosen.mechanism}, of a device's whole data: ε = {rows[-1]['epsilon']:.4g} at δ = {chosen.delta:g} for the "
        f"device that sent most often; clipped to {chosen.clip_norm:g}, noise {chosen.noise_multiplier:g} × sensitivity"
    )
    seeded = "; the noise follows from the seed, so this is a simulation and protects nobody who knows it"
    return told + (seeded if chosen.noise == "seeded" else "")


def _accuracy(config: RunConfig, judged: Judged | None) -> str:
    if judged is None:
        return "not known: the run has not ended"
    told = f"{judged.accuracy:.4f} on {judged.samples} dev samples"
    return f"{told}, of the devices' own models; what is exported is their mean" if _personal(config) else told


def _certificate(rows: Sequence[Mapping[str, Any]]) -> str:
    """Median and largest relative distance from the proven upper bound on (P1), over the rounds."""
    found = [row["certificate"] for row in rows if row["certificate"] is not None]
    if not found:
        return "none: the policy gives no bound"
    return f"within {statistics.median(found):.3g} of the optimum (median over rounds), {max(found):.3g} at most"


def _loading(form: Form, base: str | None, used: Mapping[str, Any], classes: int) -> str:
    """Lines of Python that load it, FOLDER and MODEL being paths; without classes as a causal language model."""
    gguf = next((name for name in used["sha256"] if name.endswith(".gguf")), None)
    kind = "AutoModelForSequenceClassification" if classes else "AutoModelForCausalLM"
    lines = [f"from transformers import {kind}, AutoTokenizer"]
    told = ""
    if form == "merged":
        lines.append(f'model = {kind}.from_pretrained("FOLDER").eval()')
    else:
        options = f", num_labels={classes}" if classes else ""
        if gguf is not None:
            base, options = None, f', gguf_file="{gguf}"{options}'
            told = (
                f"\n\nMODEL: the folder that holds {gguf} ({used['description']}); it is read with the package `gguf`."
            )
        lines.insert(0, "from peft import PeftModel")
        lines.append(f'base = {kind}.from_pretrained("{base or "MODEL"}"{options})')
        lines.append('model = PeftModel.from_pretrained(base, "FOLDER").eval()')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("FOLDER")')
    return "```python\n" + "\n".join(lines) + "\n```" + told


def _digests(environment: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What, file, SHA-256; those of the model's weights, of the adapter it started from and of the data."""
    for part in ("model", "adapter", "data", "policy"):
        digests = environment.get(part, {}).get("sha256")
        named = digests if isinstance(digests, dict) else {"file": digests} if digests else {}
        for name, digest in sorted(named.items()):
            if part != "model" or name.endswith((".safetensors", ".gguf")):
                yield part, Path(name).name, digest


def _places(config: RunConfig, environment: Mapping[str, Any]) -> str:
    """What the capitals in the command stand for, and what it cannot say."""
    words = [word for word in shlex.split(command(config)) if word in PLACES.values()]
    told = f"\n\n{', '.join(words)}: the files with the digests above." if words else ""
    own = environment.get("policy", {}).get("source") == "object"
    return told + ("\n\nThe policy was a Python object, given to `airtune.experiment.run`." if own else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
