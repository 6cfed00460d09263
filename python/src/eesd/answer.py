"""What comes back: tokens, answers, statistics."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Optional

from ._library import ffi, lib, text

__all__ = ["Answer", "Snapshot", "Stats", "Token", "TokenLogprobs", "Totals"]

_FINISHES = {
    lib.EESD_FINISH_LENGTH: "length",
    lib.EESD_FINISH_END_TOKEN: "end_token",
    lib.EESD_FINISH_STOP_STRING: "stop_string",
    lib.EESD_FINISH_CONTEXT: "context",
    lib.EESD_FINISH_CANCELLED: "cancelled",
    lib.EESD_FINISH_COMPLETE: "complete",
}
_SOURCES = (None, "exit", "lookup", "shared", "grammar")


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one position, by the whole model."""

    #: Of the token that was emitted.
    logprob: float
    #: The most probable tokens, most probable first, each with its log-probability.
    top: list[tuple[int, float]]


class Token(NamedTuple):
    """A token that has become certain."""

    id: int
    #: Text that became certain with it, often nothing; the texts of an answer's tokens, joined, are the answer's.
    text: str
    #: Who drafted it, where a draft was kept: "exit", "lookup", "shared" or "grammar".
    drafted: Optional[str]
    #: Where they were asked for.
    logprobs: Optional[TokenLogprobs]


@dataclass(frozen=True)
class Stats:
    """Counts and times (in seconds) of one answer. Rounds and drafts vary from run to run, since times decide of them."""

    prompt_tokens: int
    generated: int
    #: Verification passes.
    rounds: int
    #: Drafts tested, and accepted.
    drafted: int
    accepted: int
    #: Tokens of the prompt found in pages kept of earlier texts.
    reused_tokens: int
    #: Times that the request was set aside because the cache was full.
    preemptions: int
    #: 1 + accepted / rounds.
    mean_accepted_length: float
    #: Of decoding, prefill left out.
    tokens_per_second: float
    #: From submission to admission.
    queued: float
    prefill: float
    #: From admission to the first token.
    first_token: float
    draft: float
    verify: float
    decode: float
    #: Rounds that tested, and accepted, a draft at each position.
    drafted_at: list[int]
    accepted_at: list[int]
    #: Rounds that drafted exactly so many tokens, by that number.
    draft_lengths: list[int]


@dataclass(frozen=True)
class Answer:
    """A finished answer."""

    text: str
    #: Every emitted token; the end token, or the one that completed a stop string, among them.
    tokens: list[int]
    #: "length", "end_token", "stop_string", "context" or "cancelled".
    finish: str
    #: The end token or the stop string, where that is why.
    end_token: Optional[int]
    stop: Optional[str]
    #: Repeats a sampled answer, whatever else runs; None where no seed does.
    seed: Optional[int]
    #: Of each token, where they were asked for.
    logprobs: Optional[list[TokenLogprobs]]
    stats: Stats


@dataclass(frozen=True)
class Totals:
    """Counts since the model was opened."""

    #: Requests answered to their end; malformed or dropped because a pass failed; cancelled.
    finished: int
    failed: int
    cancelled: int
    #: Tokens of all prompts admitted; those of them found in pages kept; taken in by prefill passes.
    prompt_tokens: int
    reused_tokens: int
    prefilled_tokens: int
    #: Tokens emitted.
    generated: int
    #: Rounds, each of all requests then running, and requests in all rounds.
    rounds: int
    sequences: int
    #: Rows of all verification passes.
    rows: int
    draft_steps: int
    drafted: int
    accepted: int
    #: Times that a request was set aside because the cache was full, and pages copied for it.
    preemptions: int
    swapped_pages: int
    #: 1 + accepted / sequences; 0 before the first round.
    mean_accepted_length: float


@dataclass(frozen=True)
class Snapshot:
    """What the engine is doing between two of its steps."""

    #: Requests not admitted yet, whose prompts are being taken in, in the rounds, set aside because the cache was full.
    waiting: int
    prefilling: int
    decoding: int
    swapped_out: int
    #: Pages of the KV cache, of 64 tokens each; those no request holds; those kept for their texts.
    pages: int
    free_pages: int
    kept_pages: int
    totals: Totals


def plain(kind: type[Any], structure: Any, **others: Any) -> Any:
    """A dataclass with the fields of a C structure, but for those that are given."""
    names = (field.name for field in fields(kind) if field.name not in others)
    return kind(**{name: getattr(structure, name) for name in names}, **others)


def _numbers(pointer: Any, count: int) -> list[int]:
    return ffi.unpack(pointer, count) if count else []


def _logprobs(at: Any) -> TokenLogprobs:
    return TokenLogprobs(at.logprob, [(at.top[i].token, at.top[i].logprob) for i in range(at.top_count)])


def read_token(token: Any) -> Token:
    """A Token of an `eesd_token`. Its log-probability is NaN where none was asked for."""
    at = token.logprobs
    logprobs = _logprobs(at) if at.logprob == at.logprob else None
    return Token(token.id, text(token.text), _SOURCES[token.drafted], logprobs)


def read_answer(completion: Any) -> Answer:
    """An Answer of an `eesd_completion`."""
    stats, finish = completion.stats, completion.finish
    count = completion.token_count
    return Answer(
        text=text(completion.text),
        tokens=_numbers(completion.tokens, count),
        finish=_FINISHES[finish],
        end_token=completion.end_token if finish == lib.EESD_FINISH_END_TOKEN else None,
        stop=text(completion.stop) if finish == lib.EESD_FINISH_STOP_STRING else None,
        seed=completion.seed if completion.has_seed else None,
        logprobs=[_logprobs(completion.logprobs[i]) for i in range(count)] if completion.logprobs else None,
        stats=plain(
            Stats,
            stats,
            drafted_at=_numbers(stats.drafted_at, stats.positions),
            accepted_at=_numbers(stats.accepted_at, stats.positions),
            draft_lengths=_numbers(stats.draft_lengths, stats.draft_lengths_count),
        ),
    )


def read_snapshot(snapshot: Any) -> Snapshot:
    """A Snapshot of an `eesd_snapshot`."""
    return plain(Snapshot, snapshot, totals=plain(Totals, snapshot.totals))  # type: ignore[no-any-return]
