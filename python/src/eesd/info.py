"""What a model is, and what its engine has."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ._library import ffi

__all__ = ["EngineInfo", "ModelInfo"]


@dataclass(frozen=True)
class ModelInfo:
    """What a model is."""

    #: The folder's name, or the file's without its ending.
    name: str
    #: As in "llama" or "qwen3".
    family: str
    #: 32 hexadecimal digits, which exit blocks for the model carry.
    fingerprint: str
    #: Ids of tokens are below it.
    vocab_size: int
    #: Longest sequence that the model was trained for, in tokens.
    max_positions: int
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    #: A tied head counts once.
    parameters: int
    #: Of the weights as stored, or as quantised.
    bytes: int
    #: "q8" or "q4", as was asked for; "": as stored.
    quantized: str
    #: Layers before the exit block; 0: there is none.
    exit_layer: int
    exit_parameters: int
    exit_bytes: int
    has_tokenizer: bool
    has_chat_template: bool


@dataclass(frozen=True)
class EngineInfo:
    """What the engine over a model has."""

    #: The device and how it is used, as in "cpu, 2 threads, avx512, bf16 weights".
    device: str
    controller: str
    #: Requests worked on side by side.
    slots: int
    #: Requests that may wait beside those.
    max_waiting: int
    #: Longest sequence, prompt and answer, in tokens.
    context: int
    #: Tokens that the KV cache holds, and how: "f32" or "q8", "" in a GPU's 16 bits.
    cache_tokens: int
    kv: str
    #: Most drafts in one round.
    draft_max: int
    #: Layers before the exit block that drafts; 0: none does.
    exit_layer: int


Info = TypeVar("Info", ModelInfo, EngineInfo)


def read_info(kind: type[Info], structure: Any) -> Info:
    """A dataclass of an `eesd_model_info` or `eesd_session_info`."""
    return kind(**{field.name: _value(field.name, getattr(structure, field.name)) for field in fields(kind)})


def _value(name: str, value: Any) -> Any:
    if name.startswith("has_"):
        return bool(value)
    return value if isinstance(value, int) else ffi.string(value).decode()
