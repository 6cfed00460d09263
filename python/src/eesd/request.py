"""What is asked: prompts, and the settings that go with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Callable, Mapping, NamedTuple, Sequence, TypedDict, Union, cast

from ._library import check, ffi, lib, versioned
from .errors import InvalidArgument

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Message", "Prompt", "Request", "Settings"]

#: One message of a conversation: `{"role": "user", "content": "Hello"}`, and whatever else the chat template reads, as
#: `tool_calls`.
Message = Mapping[str, Any]

#: A text to continue, its tokens, or a conversation for the model's chat template.
Prompt = Union[str, Sequence[int], Sequence[Message]]


class Settings(TypedDict, total=False):
    """How a prompt is answered. What is not given is as the model's `generation_config.json` asks for."""

    #: Most tokens of the answer [256], and fewest.
    max_tokens: int
    min_tokens: int
    #: 0 is greedy decoding.
    temperature: float
    #: 0, 1 and 0 switch them off.
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    #: Added to logits of tokens; `-math.inf` forbids one.
    logit_bias: Mapping[int, float]
    #: Tokens, and runs of tokens, that are never generated.
    suppress_tokens: Sequence[int]
    bad_words: Sequence[Sequence[int]]
    #: Texts and tokens that end the answer, and whether the model's own end tokens do not.
    stop: Union[str, Sequence[str]]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    #: The same seed, the same answer, unless `verify` is "rejection".
    seed: int
    #: "coupled" or "rejection"; by itself coupled where there is a seed.
    verify: str
    #: Log-probabilities of each token and of so many most probable ones.
    logprobs: int
    #: Who may draft ("exit,lookup"), whether anybody does, and most drafts in a round.
    draft: str
    speculate: bool
    draft_max: int
    #: What the answer must be, by one of three: JSON of a schema, which is an object, its text, or True for any JSON; a text
    #: of a grammar in llguidance's dialect of Lark; or OpenAI's `{"type": "json_object"}` and so on.
    json_schema: Union[Mapping[str, Any], str, bool]
    grammar: str
    response_format: Mapping[str, Any]
    #: JSON schemas of what the model may call, for the chat template of a conversation.
    tools: Sequence[Mapping[str, Any]]


#: Settings that exclude each other.
_CONSTRAINTS = ("json_schema", "grammar", "response_format")


class Request:
    """A prompt with settings of its own, for batches. They go before those of the whole batch."""

    def __init__(self, prompt: Prompt, **settings: Unpack[Settings]) -> None:
        self.prompt = prompt
        self.settings: Settings = settings

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"Request({self.prompt!r}{settings})"


    def settings_over(self, others: Settings) -> Settings:
        """Its settings, and of the others those that it has none for."""
        constrained = any(name in self.settings for name in _CONSTRAINTS)
        kept = {name: value for name, value in others.items() if not (constrained and name in _CONSTRAINTS)}
        return cast(Settings, {**kept, **self.settings})


class PlainRequest(NamedTuple):
    """A request as the C interface has it."""

    #: An `eesd_request`.
    structure: Any
    #: What it points to.
    kept: list[Any]


def plain_request(model: Any, tokens: Sequence[int], settings: Settings, stream: bool) -> PlainRequest:
    """A request for these tokens.

    stream: tokens are wanted as they come.
    """
    request = versioned("eesd_request")
    check(lib.eesd_request_default(model, request, ffi.sizeof("eesd_request")))
    request.stream = stream
    writer = _Writer(request)
    try:
        writer.array("tokens", "uint32_t", tokens, "token_count")
    except (TypeError, OverflowError) as error:
        raise InvalidArgument(f"prompt: {error} (expected a text, tokens, or messages)") from error
    for name, value in settings.items():
        write = _WRITERS.get(name)
        if write is None:
            raise TypeError(f"{name}: there is no such setting (expected one of {', '.join(_WRITERS)})")
        try:
            write(writer, value)
        except (TypeError, OverflowError) as error:
            raise InvalidArgument(f"{name}: {value!r}: {error}") from error
    writer.write_json()
    return PlainRequest(request, writer.kept)


def json_of(name: str, value: Any) -> bytes:
    """A keyword's value as JSON."""
    try:
        return json.dumps(value, allow_nan=False, default=_object).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: {error} (expected what JSON can say)") from error


def _object(value: Any) -> dict[Any, Any]:
    """What is no dictionary, but as good as one."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


class _Writer:
    """Sets fields of an `eesd_request`."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.kept: list[Any] = []
        #: What is said in JSON, by key.
        self.keys: dict[str, bytes] = {}

    def write_json(self) -> None:
        if self.keys:
            data = b"{" + b", ".join(json_of("", name) + b": " + value for name, value in self.keys.items()) + b"}"
            self.request.json, self.request.json_length = self.keep(ffi.new("char[]", data)), len(data)

    def keep(self, pointed_to: Any) -> Any:
        self.kept.append(pointed_to)
        return pointed_to

    def array(self, field: str, kind: str, values: Any, count: str) -> None:
        setattr(self.request, field, self.keep(ffi.new(f"{kind}[]", values)))
        setattr(self.request, count, len(values))

    def text(self, value: str) -> Any:
        data = value.encode()
        return {"data": self.keep(ffi.new("char[]", data)), "length": len(data)}

    def stop(self, value: str | Sequence[str]) -> None:
        stops = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(stop, str) for stop in stops):
            raise TypeError("expected a text or a list of texts")
        self.array("stop", "eesd_text", [self.text(stop) for stop in stops], "stop_count")

    def logit_bias(self, value: Mapping[int, float]) -> None:
        biases = [{"token": token, "bias": bias} for token, bias in dict(value).items()]
        self.array("logit_bias", "eesd_logit_bias", biases, "logit_bias_count")

    def bad_words(self, value: Sequence[Sequence[int]]) -> None:
        runs = [{"tokens": self.keep(ffi.new("uint32_t[]", run)), "count": len(run)} for run in value]
        self.array("bad_words", "eesd_tokens", runs, "bad_word_count")

    def seed(self, value: int) -> None:
        self.request.seed, self.request.has_seed = value, 1

    def verify(self, value: str) -> None:
        modes = {"rejection": lib.EESD_VERIFY_REJECTION, "coupled": lib.EESD_VERIFY_COUPLED}
        if value not in modes:
            raise TypeError('expected "coupled" or "rejection"')
        self.request.verify = modes[value]

    def logprobs(self, value: int) -> None:
        if value < 0:
            raise TypeError("expected a number from 0 to 100")
        self.request.logprobs = value

    def draft(self, value: str) -> None:
        self.request.draft = self.keep(ffi.new("char[]", value.encode()))

    def json_schema(self, value: Mapping[str, Any] | str | bool) -> None:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise TypeError(f"no JSON: {error} (expected a schema, or its text)") from error
        if not isinstance(value, (Mapping, bool)):
            raise TypeError("expected a schema as an object, its text, or True for any JSON")
        self.keys["json_schema"] = json_of("json_schema", value)

    def grammar(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError("expected a text of a grammar")
        self.keys["grammar"] = json_of("grammar", value)

    def response_format(self, value: Mapping[str, Any]) -> None:
        if not isinstance(value, Mapping):
            raise TypeError('expected an object such as {"type": "json_object"}')
        self.keys["response_format"] = json_of("response_format", value)


def _field(field: str) -> Callable[[_Writer, Any], None]:
    return lambda writer, value: setattr(writer.request, field, value)


def _tokens(field: str, count: str) -> Callable[[_Writer, Any], None]:
    return lambda writer, value: writer.array(field, "uint32_t", value, count)


_SAME_NAME = (
    "max_tokens min_tokens temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty speculate draft_max"
)
_WRITERS: dict[str, Callable[[_Writer, Any], None]] = {
    **{name: _field(name) for name in _SAME_NAME.split()},
    "ignore_eos": _field("ignore_end"),
    "suppress_tokens": _tokens("suppress_tokens", "suppress_token_count"),
    "stop_token_ids": _tokens("stop_token_ids", "stop_token_id_count"),
    "stop": _Writer.stop,
    "logit_bias": _Writer.logit_bias,
    "bad_words": _Writer.bad_words,
    "seed": _Writer.seed,
    "verify": _Writer.verify,
    "logprobs": _Writer.logprobs,
    "draft": _Writer.draft,
    "json_schema": _Writer.json_schema,
    "grammar": _Writer.grammar,
    "response_format": _Writer.response_format,
    # It is the prompt's: the chat template has it.
    "tools": lambda writer, value: None,
}
