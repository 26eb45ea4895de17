"""Instructions and responses: your own JSON lines, or the Rotten Tomatoes snippets put as a question."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from airtune.learning.corpora import SNIPPET_LABELS, Examples
from airtune.learning.data import TokenSet
from airtune.types import AirtuneError

QUESTION: Final = "Is this film review fresh or rotten?"
_FORMS: Final = '{"instruction", "output"} (with "input" or without), {"prompt", "response"} or {"messages"}'
_ROLES: Final = ("system", "user", "assistant")


def messages(text: str) -> str:
    """A prompt of one user's message, as `Examples.text` holds it: a JSON list of the messages before the response."""
    return json.dumps([{"role": "user", "content": text}], ensure_ascii=False)


def asked(snippets: Examples) -> Examples:
    """The snippets as instructions: a question and the text; the response is the class's name."""
    return Examples(
        text=tuple(messages(f"{QUESTION}\n\n{text}") for text in snippets.text),
        text_pair=tuple(SNIPPET_LABELS[label].capitalize() for label in snippets.label),
        label=np.zeros(len(snippets), dtype=np.int64),
        group=snippets.group,
    )


def read_pair(folder: Path) -> tuple[Examples, Examples]:
    """train.jsonl and dev.jsonl of a folder; groups, where every line has one, are numbered by name over both.

    Raises:
        AirtuneError: a file is missing or not as it should be, with its line.
    """
    for name in ("train.jsonl", "dev.jsonl"):
        if not (folder / name).is_file():
            raise AirtuneError(f"data_dir: {folder / name} is missing; task instruct needs train.jsonl and dev.jsonl")
    (train, group), (dev, other) = (_read(folder / name) for name in ("train.jsonl", "dev.jsonl"))
    number = {name: i for i, name in enumerate(sorted({*group, *other} - {""}))}
    return _examples(train, group, number), _examples(dev, other, number)


def _examples(pairs: Sequence[tuple[str, str]], group: Sequence[str], number: Mapping[str, int]) -> Examples:
    prompts, responses = zip(*pairs, strict=True)
    known = None if "" in group else np.array([number[name] for name in group], dtype=np.int64)
    return Examples(prompts, responses, np.zeros(len(pairs), dtype=np.int64), known)


def _read(path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Prompt and response of each line, and its group ("" for none)."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise AirtuneError(f"{path}: byte {error.start} is not UTF-8; UTF-8 text would be right") from None
    except OSError as error:
        raise AirtuneError(f"{path}: cannot be read ({error.strerror})") from None
    pairs: list[tuple[str, str]] = []
    groups: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise AirtuneError(f"{where}: not JSON ({error.msg}); one object on each line would be right") from None
        if not isinstance(row, dict):
            raise AirtuneError(f"{where}: not an object; {_FORMS} would be right")
        pairs.append(_pair(row, where))
        groups.append(str(row.get("group", "")))
    if not pairs:
        raise AirtuneError(f"{path}: no samples; one JSON object on each line would be right")
    return pairs, groups


def _pair(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    if "messages" in row:
        return _chat(row["messages"], where)
    if {"instruction", "output"} <= row.keys():
        given, more = _text(row, "instruction", where), str(row.get("input") or "")
        return messages(f"{given}\n\n{more}" if more else given), _text(row, "output", where)
    if {"prompt", "response"} <= row.keys():
        return messages(_text(row, "prompt", where)), _text(row, "response", where)
    raise AirtuneError(f"{where}: has {', '.join(map(str, row)) or 'no keys'}; {_FORMS} would be right")


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise AirtuneError(f"{where}: {key!r} is {json.dumps(value)[:40]}; a text that is not empty would be right")
    return value


def _chat(chat: Any, where: str) -> tuple[str, str]:
    """The messages before the last one, which is the response."""
    if not isinstance(chat, list) or len(chat) < 2:
        raise AirtuneError(f"{where}: 'messages' must be a list of at least two messages")
    told: list[dict[str, str]] = []
    for message in chat:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise AirtuneError(f"{where}: every message needs a role ({', '.join(_ROLES)}) and a content")
        told.append({"role": str(message["role"]), "content": _text(message, "content", where)})
    if told[-1]["role"] != "assistant":
        raise AirtuneError(f"{where}: the last message is the {told[-1]['role']}'s; the assistant's would be right")
    return json.dumps(told[:-1], ensure_ascii=False), told[-1]["content"]


def tokenize_dialogues(examples: Examples, tokenizer: Any, max_length: int, most: int) -> TokenSet:
    """Prompt by the tokenizer's chat template, then the response and the end token; only these are learned.

    Without a template the prompt is its messages' contents, a line each. What is longer than `max_length` loses the
    end of its response, down to half of `max_length`, then the start of its prompt.

    Args:
        examples: prompts as `messages` writes them, and responses.
        tokenizer: a Transformers tokenizer.
        max_length: longest sequence kept [tokens].
        most: what the model takes [tokens].

    Raises:
        AirtuneError: `max_length` is more than the model takes or less than 8, or the tokenizer has no end token.
    """
    if not 8 <= max_length <= most:
        raise AirtuneError(f"task.max_length: {max_length} tokens; this model and task take 8 to {most}")
    if tokenizer.eos_token_id is None:
        raise AirtuneError("model.name: its tokenizer has no end token (eos_token), which ends a response")
    ids: list[int] = []
    lengths: list[int] = []
    responses: list[int] = []
    for prompt, response in zip(examples.text, examples.text_pair or (), strict=True):
        before = _prompt(json.loads(prompt), tokenizer)
        after = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        after = after[: max(max_length - len(before), max_length // 2)]
        before = before[-(max_length - len(after)) :]
        ids += before + after
        lengths.append(len(before) + len(after))
        responses.append(len(after))
    return TokenSet(
        ids=np.array(ids, dtype=np.int32),
        type_ids=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        label=examples.label,
        group=examples.group,
        response=np.array(responses, dtype=np.int64),
    )


def _prompt(told: list[dict[str, str]], tokenizer: Any) -> list[int]:
    if tokenizer.chat_template is None:
        return tokenizer("".join(f"{message['content']}\n" for message in told))["input_ids"]
    text = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]
