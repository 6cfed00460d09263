// C++17 over eesd.h: handles that free themselves, exceptions in the place of status codes, texts as std::string.
//
//     eesd::Model model;                                   // the one inside the library; Model("folder") opens a folder
//     eesd::Session session(model);
//     eesd::Request request(model, "def fibonacci(n):");
//     eesd::Answer answer = session.generate(request, [](const eesd::Token &token) {
//         std::cout << token.text << std::flush;
//         return true;                                     // false cancels
//     });
//
// What eesd.h says of threads holds here: a Model is immutable, a Session may be used by any thread. Objects move and do not
// copy; nobody may use one while it is destroyed.

#ifndef EESD_HPP
#define EESD_HPP

#include "eesd.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace eesd {

/// A call that failed: what() is the library's message.
class Error : public std::runtime_error {
public:
    explicit Error(eesd_status status)
        : std::runtime_error(std::string(eesd_status_name(status)) + ": " + eesd_last_error()), status_(status) {}

    Error(eesd_status status, const std::string &message)
        : std::runtime_error(std::string(eesd_status_name(status)) + ": " + message), status_(status) {}

    eesd_status status() const noexcept { return status_; }

private:
    eesd_status status_;
};

inline void check(eesd_status status) {
    if (status != EESD_STATUS_OK) {
        throw Error(status);
    }
}

namespace detail {

inline std::string_view view(const eesd_text &text) { return {text.data, text.length}; }

inline eesd_text text(std::string_view text) { return {text.data(), text.size()}; }

/// A handle that is freed where this ends.
template <typename T, eesd_status (*Free)(T *)> class Handle {
public:
    Handle() = default;
    Handle(Handle &&other) noexcept : pointer_(std::exchange(other.pointer_, nullptr)) {}
    Handle &operator=(Handle &&other) noexcept {
        std::swap(pointer_, other.pointer_);
        return *this;
    }
    Handle(const Handle &) = delete;
    Handle &operator=(const Handle &) = delete;
    ~Handle() { Free(pointer_); }

    T *get() const noexcept { return pointer_; }
    T **out() noexcept { return &pointer_; }

private:
    T *pointer_ = nullptr;
};

/// A text that `write` writes into a buffer, asked twice: for its length, and for itself.
template <typename Write> std::string written(Write write) {
    std::size_t needed = 0;
    if (eesd_status status = write(nullptr, std::size_t{0}, &needed); status != EESD_STATUS_BUFFER_TOO_SMALL) {
        check(status);
    }
    std::string text(needed, '\0');
    check(write(text.data(), text.size(), &needed));
    text.resize(needed - 1); // without the final zero
    return text;
}

} // namespace detail

/// One message of a conversation.
struct Message {
    std::string role;
    std::string content;
};

/// Which exit block drafts.
struct Exit {
    std::int32_t layer = EESD_EXIT_DEFAULT;
    std::optional<std::string> file;
};

/// How conversations are written, where not as the model says.
struct ChatSettings {
    /// A file with a chat template: Jinja, or JSON with the key chat_template.
    std::optional<std::string> template_file;
    /// Values for the template, as a JSON object.
    std::optional<std::string> arguments;
};

/// An opened model.
class Model {
public:
    /// The model inside the library, or the one in a folder; `quantize`: "q8" or "q4", or as it is stored.
    explicit Model(const std::optional<std::string> &folder = std::nullopt, const Exit &exit = {},
                   const std::optional<std::string> &quantize = std::nullopt, const ChatSettings &chat = {}) {
        eesd_model_params params;
        check(eesd_model_params_default(&params, sizeof params));
        params.folder = folder ? folder->c_str() : nullptr;
        params.exit_layer = exit.layer;
        params.exit_file = exit.file ? exit.file->c_str() : nullptr;
        params.quantize = quantize ? quantize->c_str() : nullptr;
        params.chat_template = chat.template_file ? chat.template_file->c_str() : nullptr;
        params.template_arguments = chat.arguments ? chat.arguments->c_str() : nullptr;
        check(eesd_model_load(&params, handle_.out()));
    }

    eesd_model_info info() const {
        eesd_model_info info;
        info.struct_size = sizeof info;
        check(eesd_model_get_info(get(), &info));
        return info;
    }

    /// Tokens of a text; `begin`: with what the model wants at a text's start.
    std::vector<std::uint32_t> tokenize(std::string_view text, bool begin = true) const {
        std::size_t needed = 0;
        std::vector<std::uint32_t> tokens(text.size() / 2 + 8);
        auto encode = [&] {
            return eesd_tokenize(get(), text.data(), text.size(), begin, tokens.data(), tokens.size(), &needed);
        };
        eesd_status status = encode();
        if (status == EESD_STATUS_BUFFER_TOO_SMALL) {
            tokens.resize(needed);
            status = encode();
        }
        check(status);
        tokens.resize(needed);
        return tokens;
    }

    /// Text of tokens, special ones left out.
    std::string detokenize(const std::vector<std::uint32_t> &tokens) const {
        return detail::written([&](char *buffer, std::size_t capacity, std::size_t *needed) {
            return eesd_detokenize(get(), tokens.data(), tokens.size(), buffer, capacity, needed);
        });
    }

    /// A conversation in JSON, with tools and whatever else the template reads, as the chat template writes it.
    std::string apply_chat_template_json(std::string_view json) const {
        return detail::written([&](char *buffer, std::size_t capacity, std::size_t *needed) {
            return eesd_apply_chat_template_json(get(), json.data(), json.size(), buffer, capacity, needed);
        });
    }

    /// A conversation as the model's chat template writes it; its tokens are had with `begin` false.
    std::string apply_chat_template(const std::vector<Message> &messages) const {
        std::vector<eesd_chat_message> plain;
        for (const Message &message : messages) {
            plain.push_back({message.role.c_str(), detail::text(message.content)});
        }
        return detail::written([&](char *buffer, std::size_t capacity, std::size_t *needed) {
            return eesd_apply_chat_template(get(), plain.data(), plain.size(), buffer, capacity, needed);
        });
    }

    const eesd_model *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<eesd_model, eesd_model_free> handle_;
};

/// How a session runs: the fields of `plain` as eesd.h has them. Its texts do not count: device, cache, controller and
/// sources of drafts are set here.
struct SessionParams {
    SessionParams() { check(eesd_session_params_default(&plain, sizeof plain)); }

    eesd_session_params plain;
    std::string device = "auto";
    /// How the KV cache is kept: "f32" or "q8"; empty: the default.
    std::string kv;
    /// Empty: the default.
    std::string controller;
    /// Who drafts; empty: the default.
    std::string draft;
    /// A file of texts that "shared" begins with; empty: none.
    std::string draft_index;
};

/// A request in JSON, as eesd_request.json has it: {"messages": [...], "max_tokens": 100}.
struct Json {
    std::string text;
};

/// What to continue, and how: the fields of `plain` as eesd.h has them. Its pointers do not count: prompt, tokens, JSON, stop
/// strings, biases and lists of tokens are set here. Where stop, suppress_tokens or bad_words are empty they are the model's own.
struct Request {
    /// What JSON says, over the model's defaults: a conversation, a schema for the answer, ...
    Request(const Model &model, Json json) : json(std::move(json.text)) {
        check(eesd_request_default(model.get(), &plain, sizeof plain));
    }

    /// A prompt, with the model's defaults.
    Request(const Model &model, std::string text) : prompt(std::move(text)) {
        check(eesd_request_default(model.get(), &plain, sizeof plain));
    }

    /// Tokens, with the model's defaults.
    Request(const Model &model, std::vector<std::uint32_t> ids) : tokens(std::move(ids)) {
        check(eesd_request_default(model.get(), &plain, sizeof plain));
    }

    void seed(std::uint64_t seed) {
        plain.has_seed = 1;
        plain.seed = seed;
    }

    eesd_request plain;
    std::string prompt;
    /// Counts where it is not empty.
    std::vector<std::uint32_t> tokens;
    /// Settings go before the fields of `plain`; a prompt or messages only where there are no others. Counts where it is not empty.
    std::string json;
    std::vector<std::string> stop;
    std::vector<eesd_logit_bias> logit_bias;
    /// Tokens that end the answer as the model's end tokens do.
    std::vector<std::uint32_t> stop_token_ids;
    /// Who may draft; empty: whoever the session has.
    std::string draft;
    /// Tokens that are never generated.
    std::vector<std::uint32_t> suppress_tokens;
    /// Runs of tokens that are never completed.
    std::vector<std::vector<std::uint32_t>> bad_words;
};

/// An emitted token; its text and log-probabilities are good for the callback's time.
struct Token {
    explicit Token(const eesd_token &token)
        : id(token.id), drafted(token.drafted != 0), source(token.drafted), text(detail::view(token.text)), logprobs(token.logprobs) {}

    std::uint32_t id;
    bool drafted;
    /// Who drafted it, an eesd_source: eesd_source_name() has its name.
    std::int32_t source;
    std::string_view text;
    eesd_token_logprobs logprobs;
};

/// A finished answer. The arrays of its statistics are here; the pointers to them in `stats` are NULL.
struct Answer {
    explicit Answer(const eesd_completion &completion)
        : tokens(completion.tokens, completion.tokens + completion.token_count), text(detail::view(completion.text)),
          finish(completion.finish), end_token(completion.end_token), stop(detail::view(completion.stop)),
          seed(completion.has_seed ? std::optional(completion.seed) : std::nullopt), stats(completion.stats) {
        for (std::size_t i = 0; completion.logprobs && i < completion.token_count; i++) {
            const eesd_token_logprobs &at = completion.logprobs[i];
            logprobs.push_back({at.logprob, {at.top, at.top + at.top_count}});
        }
        drafted_at.assign(stats.drafted_at, stats.drafted_at + stats.positions);
        accepted_at.assign(stats.accepted_at, stats.accepted_at + stats.positions);
        draft_lengths.assign(stats.draft_lengths, stats.draft_lengths + stats.draft_lengths_count);
        stats.drafted_at = stats.accepted_at = stats.draft_lengths = nullptr;
        stats.positions = stats.draft_lengths_count = 0;
    }

    struct Logprobs {
        float logprob;
        std::vector<eesd_logprob> top;
    };

    std::vector<std::uint32_t> tokens;
    std::string text;
    eesd_finish finish;
    std::uint32_t end_token;
    std::string stop;
    /// Repeats a sampled answer, where a seed does.
    std::optional<std::uint64_t> seed;
    std::vector<Logprobs> logprobs;
    eesd_stats stats;
    std::vector<std::size_t> drafted_at;
    std::vector<std::size_t> accepted_at;
    std::vector<std::size_t> draft_lengths;
};

/// What happened to a submitted request.
struct Event {
    eesd_event_kind kind;
    std::uint64_t request;
    /// Of a token.
    std::uint32_t token = 0;
    bool drafted = false;
    /// Who drafted it, an eesd_source.
    std::int32_t source = EESD_SOURCE_NONE;
    std::string text;
    /// Of kind EESD_EVENT_KIND_DONE.
    std::optional<Answer> answer;
    /// Of kind EESD_EVENT_KIND_FAILED.
    std::optional<Error> error;
};

/// An engine over a model.
class Session {
public:
    /// Sees each token; false cancels. What it throws cancels too, and comes out of generate().
    using OnToken = std::function<bool(const Token &)>;

    explicit Session(const Model &model, const SessionParams &params = {}) {
        eesd_session_params plain = params.plain;
        plain.device = params.device.c_str();
        plain.kv = params.kv.empty() ? nullptr : params.kv.c_str();
        plain.controller = params.controller.empty() ? nullptr : params.controller.c_str();
        plain.draft = params.draft.empty() ? nullptr : params.draft.c_str();
        plain.draft_index = params.draft_index.empty() ? nullptr : params.draft_index.c_str();
        check(eesd_session_create(model.get(), &plain, handle_.out()));
    }

    /// Answers a request; returns when it is answered. Any thread may call it, several at the same time.
    Answer generate(const Request &request, const OnToken &on_token = nullptr) {
        Plain plain(request);
        Receiver receiver{on_token, nullptr};
        eesd_completion completion;
        completion.struct_size = sizeof completion;
        check(eesd_generate(get(), &plain.request, on_token ? receive : nullptr, &receiver, &completion));
        if (receiver.thrown) {
            std::rethrow_exception(receiver.thrown);
        }
        return Answer(completion);
    }

    /// Hands a request in; its events bear the number returned.
    std::uint64_t submit(const Request &request) {
        Plain plain(request);
        std::uint64_t id = 0;
        check(eesd_submit(get(), &plain.request, &id));
        return id;
    }

    /// Hands a request for several answers in ("n"); each has a number and events of its own.
    std::vector<std::uint64_t> submit_n(const Request &request) {
        Plain plain(request);
        std::size_t needed = 0;
        std::vector<std::uint64_t> ids(request.plain.n);
        auto submit = [&] { return eesd_submit_n(get(), &plain.request, ids.data(), ids.size(), &needed); };
        eesd_status status = submit();
        if (status == EESD_STATUS_BUFFER_TOO_SMALL) { // the JSON asks for more
            ids.resize(needed);
            status = submit();
        }
        check(status);
        ids.resize(needed);
        return ids;
    }

    /// The next event of any submitted request; none if there was none in that time. Below 0: as long as it takes.
    std::optional<Event> next_event(std::chrono::milliseconds timeout) {
        eesd_event event;
        event.struct_size = sizeof event;
        eesd_status status = eesd_next_event(get(), timeout.count(), &event);
        if (status == EESD_STATUS_TIMEOUT) {
            return std::nullopt;
        }
        check(status);
        Event copy{event.kind, event.request, 0, false, EESD_SOURCE_NONE, {}, std::nullopt, std::nullopt};
        switch (event.kind) {
        case EESD_EVENT_KIND_TOKEN:
            copy.token = event.token.id;
            copy.drafted = event.token.drafted != 0;
            copy.source = event.token.drafted;
            copy.text = detail::view(event.token.text);
            break;
        case EESD_EVENT_KIND_DONE:
            copy.answer.emplace(event.completion);
            break;
        case EESD_EVENT_KIND_FAILED:
            copy.error.emplace(event.status, event.message);
            break;
        }
        return copy;
    }

    /// Ends a submitted request where it is; false if it is not unfinished. Its last event comes in any case.
    bool cancel(std::uint64_t id) {
        eesd_status status = eesd_cancel(get(), id);
        if (status == EESD_STATUS_NOT_FOUND) {
            return false;
        }
        check(status);
        return true;
    }

    /// Writes the texts that "shared" looks up in for `draft_index` of later sessions.
    void write_draft_index(const std::string &file) { check(eesd_session_write_draft_index(get(), file.c_str())); }

    eesd_session_info info() const {
        eesd_session_info info;
        info.struct_size = sizeof info;
        check(eesd_session_get_info(get(), &info));
        return info;
    }

    eesd_snapshot snapshot() const {
        eesd_snapshot snapshot;
        snapshot.struct_size = sizeof snapshot;
        check(eesd_session_get_snapshot(get(), &snapshot));
        return snapshot;
    }

    eesd_session *get() const noexcept { return handle_.get(); }

private:
    struct Receiver {
        const OnToken &on_token;
        std::exception_ptr thrown;
    };

    /// The callback of eesd.h, past which nothing may be thrown.
    static std::int32_t receive(const eesd_token *token, void *user_data) {
        auto *receiver = static_cast<Receiver *>(user_data);
        try {
            return receiver->on_token(Token(*token)) ? 0 : 1;
        } catch (...) {
            receiver->thrown = std::current_exception();
            return 1;
        }
    }

    /// A request with its pointers set; good while the request is.
    struct Plain {
        explicit Plain(const Request &from) : request(from.plain) {
            for (const std::string &text : from.stop) {
                stop.push_back(detail::text(text));
            }
            request.json = from.json.empty() ? nullptr : from.json.data();
            request.json_length = from.json.size();
            if (!from.json.empty() && from.prompt.empty() && from.tokens.empty()) {
                request.prompt = nullptr; // the JSON has it
            } else if (from.tokens.empty()) {
                request.prompt = from.prompt.data();
                request.prompt_length = from.prompt.size();
            } else {
                request.tokens = from.tokens.data();
                request.token_count = from.tokens.size();
            }
            request.stop = stop.empty() ? nullptr : stop.data();
            request.stop_count = stop.size();
            request.logit_bias = from.logit_bias.data();
            request.logit_bias_count = from.logit_bias.size();
            request.draft = from.draft.empty() ? nullptr : from.draft.c_str();
            request.stop_token_ids = from.stop_token_ids.data();
            request.stop_token_id_count = from.stop_token_ids.size();
            request.suppress_tokens = from.suppress_tokens.empty() ? nullptr : from.suppress_tokens.data();
            request.suppress_token_count = from.suppress_tokens.size();
            for (const std::vector<std::uint32_t> &run : from.bad_words) {
                bad_words.push_back({run.data(), run.size()});
            }
            request.bad_words = bad_words.empty() ? nullptr : bad_words.data();
            request.bad_word_count = bad_words.size();
        }

        eesd_request request;
        std::vector<eesd_text> stop;
        std::vector<eesd_tokens> bad_words;
    };

    detail::Handle<eesd_session, eesd_session_free> handle_;
};

} // namespace eesd

#endif // EESD_HPP
