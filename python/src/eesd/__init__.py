"""eesd: early-exit speculative decoding. Language models answer faster without changing a single token.

    import eesd

    model = eesd.Model("path/to/model")             # a Hugging Face folder or a GGUF file
    print(model.generate("def fibonacci(n):", max_tokens=48).text)

    for token in model.stream([{"role": "user", "content": "Why is the sky blue?"}]):
        print(token.text, end="", flush=True)

    for answer in model.map(prompts, temperature=0.8, seed=7):     # side by side, in their order
        print(answer.text)
"""

from ._library import ffi as _ffi, lib as _lib
from .answer import Answer, Snapshot, Stats, Token, TokenLogprobs, Totals
from .errors import (
    Closed,
    DeviceFailed,
    Error,
    InvalidArgument,
    IoFailed,
    LoadFailed,
    NotFinite,
    OutOfMemory,
    Overloaded,
    TooLong,
    Unsupported,
)
from .info import EngineInfo, ModelInfo
from .model import Model
from .request import Message, Prompt, Request, Settings
from .stream import AsyncStream, Stream

__version__: str = _ffi.string(_lib.eesd_version()).decode()

__all__ = [
    "Answer",
    "AsyncStream",
    "Closed",
    "DeviceFailed",
    "EngineInfo",
    "Error",
    "InvalidArgument",
    "IoFailed",
    "LoadFailed",
    "Message",
    "Model",
    "ModelInfo",
    "NotFinite",
    "OutOfMemory",
    "Overloaded",
    "Prompt",
    "Request",
    "Settings",
    "Snapshot",
    "Stats",
    "Stream",
    "Token",
    "TokenLogprobs",
    "TooLong",
    "Totals",
    "Unsupported",
]
