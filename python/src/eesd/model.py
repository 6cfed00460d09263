"""A model and the engine that answers with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Literal, Optional, Union, cast, overload

from . import _log
from ._library import check, ffi, lib, versioned, written
from ._session import Happening, Session
from .answer import Answer, Snapshot, Token
from .errors import Error, InvalidArgument
from .info import EngineInfo, ModelInfo, read_info
from .request import Message, Prompt, PlainRequest, Request, Settings, json_of, plain_request
from .stream import AsyncStream, Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Model"]

Path = Union[str, "os.PathLike[str]"]


class Model:
    """A model, opened, and an engine over it with a thread of its own. Any thread may use it, several at the same time.

    It is large: the weights are laid out for the device and a KV cache is reserved. So open one and give it all requests;
    up to `slots` of them are worked on side by side, each with the tokens that it would have alone.

    path: a Hugging Face folder or a GGUF file; None: the small model of Python code that eesd brings along.
    exit_block: which `exit-N.safetensors` drafts: "auto" (the one there is, or that promises most), N, a file, or None.
    quantize: "q8" or "q4": 16-bit weights into blocks of 8 or 4 bits.
    device: "auto", "cpu", "cuda" or "cuda:N".
    threads: on the processor; None: one for each core.
    slots: requests worked on side by side [8].
    context: longest sequence, prompt and answer; None: the model's own, at most 8192.
    cache_tokens: that the KV cache holds for all requests together; None: slots times context.
    kv: "q8": the KV cache in 8 bits; None: in "f32", on a GPU in the 16 bits of the weights.
    controller: how long drafts are, as after `eesd-run --controller`; "off": nobody drafts.
    draft: who drafts: of "exit", "lookup", "shared" those in a list with commas, or "off".
    draft_index: a file of texts that "shared" begins with, as `write_draft_index` writes it; it need not exist yet.
    max_waiting: requests that may wait beside those worked on; more are refused (`Overloaded`). None: any number.
    draft_max: most drafts in one round [16].
    token_budget: tokens that one step takes in at most [512].
    reuse_prefixes: prompts that begin alike are read once.
    gpu_memory_fraction: the part of a GPU's memory that may be used [0.9].
    """

    def __init__(
        self,
        path: Optional[Path] = None,
        *,
        exit_block: Union[int, Path, None] = "auto",
        quantize: Optional[str] = None,
        device: Optional[str] = None,
        threads: Optional[int] = None,
        slots: Optional[int] = None,
        context: Optional[int] = None,
        cache_tokens: Optional[int] = None,
        kv: Optional[str] = None,
        controller: Optional[str] = None,
        draft: Optional[str] = None,
        draft_index: Optional[Path] = None,
        draft_max: Optional[int] = None,
        max_waiting: Optional[int] = None,
        token_budget: Optional[int] = None,
        reuse_prefixes: Optional[bool] = None,
        gpu_memory_fraction: Optional[float] = None,
    ) -> None:
        _log.listen()
        params = _Params("eesd_model_params", lib.eesd_model_params_default)
        params.set("folder", None if path is None else os.fspath(path))
        params.set("quantize", quantize)
        if exit_block is None:
            params.set("exit_layer", lib.EESD_EXIT_NONE)
        elif isinstance(exit_block, int):
            if exit_block < 1:
                raise InvalidArgument(f"exit_block: {exit_block} (expected a layer, a file, \"auto\" or None)")
            params.set("exit_layer", exit_block)
        elif exit_block != "auto":
            params.set("exit_file", os.fspath(exit_block))
        engine = _Params("eesd_session_params", lib.eesd_session_params_default)
        for name, value in {
            "device": device,
            "threads": threads,
            "slots": slots,
            "context": context,
            "cache_tokens": cache_tokens,
            "kv": kv,
            "controller": controller,
            "draft": draft,
            "draft_index": None if draft_index is None else os.fspath(draft_index),
            "draft_max": draft_max,
            "max_waiting": max_waiting,
            "token_budget": token_budget,
            "reuse_prefixes": reuse_prefixes,
            "gpu_memory_fraction": gpu_memory_fraction,
        }.items():
            engine.set(name, value)

        handle = ffi.new("eesd_model **")
        check(lib.eesd_model_load(params.structure, handle))
        self._model = ffi.gc(handle[0], lib.eesd_model_free)
        self._session = Session(self._model, engine.structure)
        info = versioned("eesd_model_info")
        check(lib.eesd_model_get_info(self._model, info))
        #: What the model is.
        self.info: ModelInfo = read_info(ModelInfo, info)
        #: What the engine has.
        self.engine: EngineInfo = read_info(EngineInfo, self._session.info())

    # One prompt.

    def generate(self, prompt: Prompt, **settings: Unpack[Settings]) -> Answer:
        """The answer to a prompt. Ctrl-C cancels it and raises KeyboardInterrupt."""
        return Stream(self._session, self._request(prompt, settings, stream=False)).answer()

    def stream(self, prompt: Prompt, **settings: Unpack[Settings]) -> Stream:
        """The answer's tokens as they become certain; then `Stream.answer` has it whole."""
        return Stream(self._session, self._request(prompt, settings, stream=True))

    async def generate_async(self, prompt: Prompt, **settings: Unpack[Settings]) -> Answer:
        """`generate` for asyncio. A task that is cancelled cancels its request."""
        return await AsyncStream(self._session, self._request(prompt, settings, stream=False)).answer()

    def stream_async(self, prompt: Prompt, **settings: Unpack[Settings]) -> AsyncStream:
        """`stream` for asyncio, to be called where a loop runs."""
        return AsyncStream(self._session, self._request(prompt, settings, stream=True))

    # Many prompts, worked on side by side.

    @overload
    def map(
        self, requests: Iterable[Union[Prompt, Request]], *, errors: Literal["raise"] = ..., **settings: Unpack[Settings]
    ) -> Iterator[Answer]: ...
    @overload
    def map(
        self, requests: Iterable[Union[Prompt, Request]], *, errors: Literal["return"], **settings: Unpack[Settings]
    ) -> Iterator[Union[Answer, Error]]: ...
    def map(
        self, requests: Iterable[Union[Prompt, Request]], *, errors: str = "raise", **settings: Unpack[Settings]
    ) -> Iterator[Union[Answer, Error]]:
        """Answers in the order of the requests, which are taken as there is room for them: there may be any number.

        errors: "raise" ends with the first request that fails; "return" gives its exception in its answer's place.
        """
        waiting: dict[int, Union[Answer, Error]] = {}
        due = 0
        for index, happening in self._answers(requests, errors, settings):
            waiting[index] = happening
            while due in waiting:
                yield waiting.pop(due)
                due += 1

    @overload
    def as_completed(
        self, requests: Iterable[Union[Prompt, Request]], *, errors: Literal["raise"] = ..., **settings: Unpack[Settings]
    ) -> Iterator[tuple[int, Answer]]: ...
    @overload
    def as_completed(
        self, requests: Iterable[Union[Prompt, Request]], *, errors: Literal["return"], **settings: Unpack[Settings]
    ) -> Iterator[tuple[int, Union[Answer, Error]]]: ...
    def as_completed(
        self, requests: Iterable[Union[Prompt, Request]], *, errors: str = "raise", **settings: Unpack[Settings]
    ) -> Iterator[tuple[int, Union[Answer, Error]]]:
        """The same as they come, each with its request's number, from 0."""
        return self._answers(requests, errors, settings)

    def _answers(
        self, requests: Iterable[Union[Prompt, Request]], errors: str, settings: Settings
    ) -> Iterator[tuple[int, Union[Answer, Error]]]:
        if errors not in ("raise", "return"):
            raise InvalidArgument(f'errors: {errors!r} (expected "raise" or "return")')
        if isinstance(requests, str):
            raise InvalidArgument("requests: a text (expected several prompts; generate answers one)")
        ended: SimpleQueue[tuple[int, Happening]] = SimpleQueue()
        #: Their numbers in the session; None where the request was refused at once.
        begun: dict[int, Optional[int]] = {}

        def begin(index: int, request: Union[Prompt, Request]) -> None:
            begun[index] = None
            try:
                plain = self._request(request, settings, stream=False)
                begun[index] = self._session.submit(plain, lambda happening: ended.put((index, happening)))
            except Error as error:
                ended.put((index, error))

        def take() -> tuple[int, Union[Answer, Error]]:
            index, happening = ended.get()
            del begun[index]
            assert not isinstance(happening, Token)
            if isinstance(happening, Error) and errors == "raise":
                raise happening
            return index, happening

        # As many again wait, so that no place is empty while an answer is looked at.
        most = self.engine.slots + min(self.engine.slots, self.engine.max_waiting)
        try:
            for index, request in enumerate(requests):
                begin(index, request)
                if len(begun) == most:
                    yield take()
            while begun:
                yield take()
        finally:
            for number in begun.values():
                if number is not None:
                    self._session.cancel(number)

    # Text and tokens.

    def tokenize(self, text: str, *, begin: bool = True) -> list[int]:
        """Tokens of a text; `begin`: after what the model wants at a text's start, which chat templates write themselves."""
        data = text.encode()
        tokens = written(
            "uint32_t", lambda *place: lib.eesd_tokenize(self._open(), data, len(data), begin, *place)
        )
        return ffi.unpack(tokens, len(tokens)) if len(tokens) else []

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ids = ffi.new("uint32_t[]", tokens)
        buffer = written("char", lambda *place: lib.eesd_detokenize(self._open(), ids, len(ids), *place))
        return _text(buffer)

    def apply_chat_template(
        self, messages: Sequence[Message], *, tools: Optional[Sequence[Mapping[str, Any]]] = None
    ) -> str:
        """A conversation as the model's chat template writes it, up to where the assistant answers.

        tools: JSON schemas of what the model may call.
        """
        conversation = b'{"messages": ' + json_of("messages", messages)
        if tools is not None:
            conversation += b', "tools": ' + json_of("tools", tools)
        conversation += b"}"
        buffer = written(
            "char",
            lambda *place: lib.eesd_apply_chat_template_json(self._open(), conversation, len(conversation), *place),
        )
        return _text(buffer)

    # The engine.

    def snapshot(self) -> Snapshot:
        """What the engine is doing, and counts since the model was opened."""
        return self._session.snapshot()

    def write_draft_index(self, path: Path) -> None:
        """Writes the texts that "shared" looks up, prompts and answers, for `draft_index` of later models. Keep the file as
        you would keep the texts."""
        file = ffi.new("char[]", os.fspath(path).encode())
        check(lib.eesd_session_write_draft_index(self._session.handle(), file))

    def close(self) -> None:
        """Frees the engine and the model. Answers under way end with `Closed`. Whoever forgets it has it done when the
        model is collected."""
        self._session.close()
        ffi.release(self._model)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<eesd.Model {self.info.name}: {self.engine.device}>"

    def _open(self) -> Any:
        """The model, unless it was closed."""
        self._session.handle()
        return self._model

    def _request(self, request: Union[Prompt, Request], settings: Settings, stream: bool) -> PlainRequest:
        if isinstance(request, Request):
            settings = request.settings_over(settings)
            request = request.prompt
        return plain_request(self._open(), self._tokens(request, settings.get("tools")), settings, stream)

    def _tokens(self, prompt: Prompt, tools: Optional[Sequence[Mapping[str, Any]]]) -> Sequence[int]:
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            text = self.apply_chat_template(cast("Sequence[Message]", prompt), tools=tools)
            return self.tokenize(text, begin=False)
        if tools is not None:
            raise InvalidArgument(f"tools: they are for a chat template (expected messages as the prompt, not {prompt!r})")
        if isinstance(prompt, str):
            return self.tokenize(prompt)
        if not isinstance(prompt, Sequence) or not prompt:
            raise InvalidArgument(f"prompt: {prompt!r} (expected a text, tokens, or messages)")
        return cast("Sequence[int]", prompt)


def _text(buffer: Any) -> str:
    """Without the zero at its end."""
    return bytes(ffi.buffer(buffer))[:-1].decode()


class _Params:
    """A structure of parameters with the library's defaults, of which some are set."""

    def __init__(self, kind: str, default: Any) -> None:
        self.structure = ffi.new(f"{kind} *")
        self._kept: list[Any] = []
        check(default(self.structure, ffi.sizeof(kind)))

    def set(self, name: str, value: Any) -> None:
        """Sets a field, where a value is given."""
        if value is None:
            return
        if isinstance(value, str):
            self._kept.append(text := ffi.new("char[]", value.encode()))
            value = text
        try:
            setattr(self.structure, name, value)
        except (TypeError, OverflowError) as error:
            raise InvalidArgument(f"{name}: {value!r}: {error}") from error
