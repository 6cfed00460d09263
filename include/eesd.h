/*
 * eesd: early-exit speculative decoding for C and C++.
 *
 * Made by cbindgen from src/ffi: not to be edited. docs/embedding.md is the introduction.
 *
 * A model (eesd_model_load) is opened once; a session (eesd_session_create) is an engine over it that answers requests, by
 * callback (eesd_generate) or by events (eesd_submit, eesd_next_event, eesd_cancel).
 *
 * STATUS. Functions that can fail return an eesd_status, and leave a message for their thread: eesd_last_error(). A call
 * that fails has written nothing but that, and, where it says so, a length.
 *
 * STRUCTURES begin with struct_size, their sizeof. The *_default functions set it; in structures that are to be filled the
 * caller sets it. A size that is not the library's is EESD_STATUS_INVALID_STRUCT_SIZE.
 *
 * TEXTS are UTF-8. Names, paths and roles end in a zero; other texts have a length and may contain zeros.
 *
 * HANDLES are numbers that are never dereferenced and never given twice. A handle that is no longer alive, is of the other
 * kind, or never came from this library is EESD_STATUS_INVALID_HANDLE, so freeing twice and using what was freed are
 * errors and not crashes. (A pointer that by chance equals a live handle is taken for it: handles are odd numbers.) All
 * other pointers are believed, but for NULL, their alignment and lengths beyond any memory: they must be good for what the
 * functions say.
 *
 * OWNERSHIP. Handles are the caller's to free, in any order: a session keeps its model. Nothing that the caller passes is
 * kept after the call, but the log callback. What is handed out by pointer stays as long as the function says, and is
 * never the caller's to free.
 *
 * THREADS. Every function may be called from any thread, at the same time too. A model never changes. A session's engine
 * has a thread of its own, to which calls hand messages. Token callbacks come on the thread that called; log callbacks on
 * any. After fork() the child has no engine: make sessions there. The library is not to be unloaded (dlclose).
 *
 * NO EXCEPTIONS. No panic leaves the library: one that is caught is EESD_STATUS_INTERNAL. Callbacks must not throw, nor
 * longjmp past the library.
 */


#ifndef EESD_H
#define EESD_H

#include <stddef.h>
#include <stdint.h>

/**
 * The interface that this header describes. A host compares it with eesd_abi_version() of the library that it runs with:
 * where they are equal, structures and functions are the header's.
 */
#define EESD_ABI_VERSION 2

/**
 * exit_layer: in a folder the only block there is, of several the one that promises most (the log says which, and what),
 * or none where there is none; of the model inside the library, which has blocks after 1, 2 and 3 layers, that after 2.
 */
#define EESD_EXIT_DEFAULT 0

/**
 * exit_layer: no exit block. Lookups draft alone.
 */
#define EESD_EXIT_NONE -1

/**
 * Those that draft: elements of a by_source, which begins with EESD_SOURCE_EXIT.
 */
#define EESD_SOURCES 4

/**
 * What became of a call. Later versions may add codes: treat one that you do not know as a failure.
 */
enum eesd_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done.
   */
  EESD_STATUS_OK = 0,
  /**
   * An argument is NULL, misaligned or out of range, or cannot be understood.
   */
  EESD_STATUS_INVALID_ARGUMENT = 1,
  /**
   * The handle is not alive: freed already, of another kind, or never made by this library.
   */
  EESD_STATUS_INVALID_HANDLE = 2,
  /**
   * struct_size is not the size of this library's structure: header and library do not belong together.
   */
  EESD_STATUS_INVALID_STRUCT_SIZE = 3,
  /**
   * A text is not UTF-8.
   */
  EESD_STATUS_INVALID_UTF8 = 4,
  /**
   * The caller's buffer is too small; the length that it needs was written, and nothing else.
   */
  EESD_STATUS_BUFFER_TOO_SMALL = 5,
  /**
   * Nothing happened in the time given.
   */
  EESD_STATUS_TIMEOUT = 6,
  /**
   * A callback called a function of the session that had called it, or set a log callback from one.
   */
  EESD_STATUS_REENTRANT = 7,
  /**
   * There is no unfinished request of this number.
   */
  EESD_STATUS_NOT_FOUND = 8,
  /**
   * The model has no tokenizer, no chat template, or no exit block, and the call needs one.
   */
  EESD_STATUS_UNSUPPORTED = 9,
  /**
   * A model, tokenizer or exit block could not be opened.
   */
  EESD_STATUS_LOAD_FAILED = 10,
  /**
   * The prompt does not fit the context, or prompt and answer the cache. (An answer that reaches the context's end is
   * cut there, which is no failure: EESD_FINISH_CONTEXT.)
   */
  EESD_STATUS_TOO_LONG = 11,
  /**
   * Memory could not be had, of the host or of the device.
   */
  EESD_STATUS_OUT_OF_MEMORY = 12,
  /**
   * The device, or a thread, failed.
   */
  EESD_STATUS_DEVICE_FAILED = 13,
  /**
   * The session was freed while the call waited.
   */
  EESD_STATUS_CLOSED = 14,
  /**
   * A bug in this library: a panic was caught. The handles of the call should be freed.
   */
  EESD_STATUS_INTERNAL = 15,
  /**
   * The model's numbers for this request are not finite: its weights hold such a number, or what they give is too large for
   * its format. The session's other requests go on.
   */
  EESD_STATUS_NOT_FINITE = 16,
  /**
   * As many requests wait as may (max_waiting of eesd_session_params): try again when one has ended.
   */
  EESD_STATUS_OVERLOADED = 17,
  /**
   * A file could not be written.
   */
  EESD_STATUS_IO_FAILED = 18,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eesd_status eesd_status;
#else
typedef int32_t eesd_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why an answer ended.
 */
enum eesd_finish
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * It has not: in events without a completion.
   */
  EESD_FINISH_NONE = 0,
  /**
   * max_tokens were generated.
   */
  EESD_FINISH_LENGTH = 1,
  /**
   * The model wrote an end token: end_token says which.
   */
  EESD_FINISH_END_TOKEN = 2,
  /**
   * The text ran into a stop string: stop says which.
   */
  EESD_FINISH_STOP_STRING = 3,
  /**
   * The context is full.
   */
  EESD_FINISH_CONTEXT = 4,
  /**
   * The host asked for it.
   */
  EESD_FINISH_CANCELLED = 5,
  /**
   * The answer is complete by its schema or grammar: nothing may follow.
   */
  EESD_FINISH_COMPLETE = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eesd_finish eesd_finish;
#else
typedef int32_t eesd_finish;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What an event tells.
 */
enum eesd_event_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * A token became certain: token.
   */
  EESD_EVENT_KIND_TOKEN = 1,
  /**
   * The request is finished: completion. Nothing more comes of it.
   */
  EESD_EVENT_KIND_DONE = 2,
  /**
   * The request failed: status and message. Nothing more comes of it.
   */
  EESD_EVENT_KIND_FAILED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eesd_event_kind eesd_event_kind;
#else
typedef int32_t eesd_event_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How drafts are verified at a temperature above 0. Both ways lose nothing.
 */
enum eesd_verify
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Coupled with a seed, rejection without.
   */
  EESD_VERIFY_DEFAULT = 0,
  /**
   * Rejection sampling: exact in distribution, accepts most. A seed does not repeat a text: what is drawn depends on how
   * long drafts are, and that on the clock.
   */
  EESD_VERIFY_REJECTION = 1,
  /**
   * Gumbel coupling: for a seed, token for token what plain sampling gives.
   */
  EESD_VERIFY_COUPLED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eesd_verify eesd_verify;
#else
typedef int32_t eesd_verify;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How grave a message is.
 */
enum eesd_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Something failed; a status or an event says so too.
   */
  EESD_LOG_LEVEL_ERROR = 1,
  /**
   * Something that was asked for changes nothing, or is not proven.
   */
  EESD_LOG_LEVEL_WARNING = 2,
  /**
   * What was opened, made and freed.
   */
  EESD_LOG_LEVEL_INFO = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eesd_log_level eesd_log_level;
#else
typedef int32_t eesd_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Who drafted a token.
 */
enum eesd_source
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Nobody: it is the whole model's own.
   */
  EESD_SOURCE_NONE = 0,
  /**
   * The exit block.
   */
  EESD_SOURCE_EXIT = 1,
  /**
   * A lookup in the same text.
   */
  EESD_SOURCE_LOOKUP = 2,
  /**
   * A lookup in others' texts.
   */
  EESD_SOURCE_SHARED = 3,
  /**
   * The grammar or schema of the answer, where it leaves nothing else.
   */
  EESD_SOURCE_GRAMMAR = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum eesd_source eesd_source;
#else
typedef int32_t eesd_source;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * An opened model and its exit block. Immutable: any number of threads and sessions may use one at the same time.
 */
typedef struct eesd_model eesd_model;

/**
 * An engine over a model, with a thread of its own. Any thread may use it.
 */
typedef struct eesd_session eesd_session;

/**
 * Receives messages: a level (eesd_log_level), a text that is this library's and good for the call alone, and the
 * pointer that was given beside the callback. Any thread may call it, several at the same time. It must not throw.
 */
typedef void (*eesd_log_callback)(int32_t level, const char *message, void *user_data);

/**
 * A device and its memory.
 */
typedef struct eesd_device_info {
  /**
   * sizeof(eesd_device_info); to be set before the call.
   */
  size_t struct_size;
  /**
   * As in "NVIDIA H200", or "cpu, avx512".
   */
  char name[128];
  /**
   * Bytes of memory; 0 where the system does not say.
   */
  uint64_t memory;
  /**
   * Bytes of memory that are available; 0 where the system does not say, and for GPUs, which are not opened for this.
   */
  uint64_t memory_available;
  /**
   * Threads that this process may use; 0 for a GPU.
   */
  size_t threads;
  /**
   * Compute capability as in 90 for 9.0; 0 for the processor.
   */
  uint32_t compute_capability;
  /**
   * 1: this build has kernels for it.
   */
  int32_t usable;
} eesd_device_info;

/**
 * Which model to open. Begin with eesd_model_params_default().
 */
typedef struct eesd_model_params {
  /**
   * sizeof(eesd_model_params).
   */
  size_t struct_size;
  /**
   * A Hugging Face model folder or a GGUF file (any part, where it is split), in UTF-8. NULL: the small model inside the
   * library.
   */
  const char *folder;
  /**
   * N of an exit-N.safetensors beside the model, which comes after N layers; EESD_EXIT_DEFAULT or EESD_EXIT_NONE.
   */
  int32_t exit_layer;
  /**
   * An exit block by its file, in UTF-8, with exit_layer EESD_EXIT_DEFAULT; else NULL.
   */
  const char *exit_file;
  /**
   * As after eesd-run's --quantize: "q8" or "q4" puts the matrices of a 16- or 32-bit model into blocks of 8 or 4 bits as it
   * is opened, which takes memory of their size. NULL: they stay as they are stored.
   */
  const char *quantize;
  /**
   * A file with the chat template in the place of the model's own, in UTF-8: Jinja, or JSON with the key chat_template. NULL:
   * the model's own, where it has one.
   */
  const char *chat_template;
  /**
   * Values that the chat template reads, under those that a conversation has in chat_template_kwargs: a JSON object, such as
   * {"enable_thinking": false}. NULL: none.
   */
  const char *template_arguments;
} eesd_model_params;

/**
 * What a model is.
 */
typedef struct eesd_model_info {
  /**
   * sizeof(eesd_model_info); to be set before the call.
   */
  size_t struct_size;
  /**
   * The name of the folder, or of the GGUF file without its ending, or "pycode-4m".
   */
  char name[128];
  /**
   * "llama", "mistral", "qwen2" or "qwen3".
   */
  char family[32];
  /**
   * 32 hexadecimal digits, which exit blocks for the model carry.
   */
  char fingerprint[40];
  /**
   * Tokens of the vocabulary: ids are below it.
   */
  size_t vocab_size;
  /**
   * Longest sequence that the model was trained for, in tokens.
   */
  size_t max_positions;
  /**
   * Decoder layers.
   */
  size_t layers;
  /**
   * Width of the residual stream.
   */
  size_t hidden_size;
  /**
   * Width of the gated MLP.
   */
  size_t intermediate_size;
  /**
   * Query heads.
   */
  size_t heads;
  /**
   * Key and value heads.
   */
  size_t kv_heads;
  /**
   * Width of one head.
   */
  size_t head_dim;
  /**
   * Parameters; a tied head counts once.
   */
  uint64_t parameters;
  /**
   * Bytes of the weights as stored, or as quantised.
   */
  uint64_t bytes;
  /**
   * "q8" or "q4", as eesd_model_params asked; "": as stored.
   */
  char quantized[16];
  /**
   * N of the exit block, the layers before it; 0: there is none.
   */
  size_t exit_layer;
  /**
   * Parameters of the exit block.
   */
  uint64_t exit_parameters;
  /**
   * Bytes of the exit block as stored.
   */
  uint64_t exit_bytes;
  /**
   * 1: there is a tokenizer. 0: prompts are tokens, answers have no text.
   */
  int32_t has_tokenizer;
  /**
   * 1: there is a chat template.
   */
  int32_t has_chat_template;
} eesd_model_info;

/**
 * A text of known length in UTF-8, which need not end in a zero and may contain some.
 */
typedef struct eesd_text {
  /**
   * The bytes; may be NULL where length is 0.
   */
  const char *data;
  /**
   * How many.
   */
  size_t length;
} eesd_text;

/**
 * One message of a conversation.
 */
typedef struct eesd_chat_message {
  /**
   * "system", "user" or "assistant", or what else the template knows; ends in a zero.
   */
  const char *role;
  /**
   * What is said.
   */
  struct eesd_text content;
} eesd_chat_message;

/**
 * How a session runs. Begin with eesd_session_params_default().
 */
typedef struct eesd_session_params {
  /**
   * sizeof(eesd_session_params).
   */
  size_t struct_size;
  /**
   * "auto", "cpu", "cuda" or "cuda:N"; NULL is "auto": the processor, until the CUDA engine is proven on GPUs.
   */
  const char *device;
  /**
   * Threads on the processor, the session's own included, at most 1024; 0: one for each core of this process.
   */
  size_t threads;
  /**
   * Requests worked on side by side, 1 to 1024; more wait. Default: 8.
   */
  size_t slots;
  /**
   * Requests that may wait beside those; more are refused with EESD_STATUS_OVERLOADED. Default: SIZE_MAX, without bound.
   */
  size_t max_waiting;
  /**
   * Longest sequence, prompt and answer, in tokens; 0: the model's own, at most 8192.
   */
  size_t context;
  /**
   * Tokens that the KV cache holds for all requests together, in pages of 64; 0: slots times context. Where it is
   * full, the youngest requests are set aside and go on later.
   */
  size_t cache_tokens;
  /**
   * How the KV cache is kept: "f32", on the processor only, or "q8", in 8 bits, for less than a third of the memory and
   * answers that differ a little. NULL is "f32", and on a GPU the 16 bits of the weights.
   */
  const char *kv;
  /**
   * How far the exit block drafts, as after eesd-run's --controller: "fixed:4", "goodput-ts", ...; NULL: "goodput-ts" where
   * the model has an exit block. "off": nobody drafts.
   */
  const char *controller;
  /**
   * Who drafts: "off", or of "exit", "lookup" and "shared" those in a list with commas. NULL: "exit,lookup", as far as the
   * model has an exit block. With "shared" an answer comes faster where another request's was like it, so that whoever
   * asks may tell what others asked: for sessions of one owner.
   */
  const char *draft;
  /**
   * A file of texts that "shared" begins with, as eesd_session_write_draft_index() and eesd-run's --draft-index write it; one
   * that does not exist yet holds none. With NULL for draft, "shared" is on. NULL: none.
   */
  const char *draft_index;
  /**
   * Most drafts in one round, 1 to 1024. Default: 16.
   */
  size_t draft_max;
  /**
   * Tokens that a step takes in at most; what it takes to read a long prompt is spread over others' rounds. Default:
   * 512.
   */
  size_t token_budget;
  /**
   * Other than 0: pages of texts are kept, and prompts that begin alike take them. Default: 1.
   */
  int32_t reuse_prefixes;
  /**
   * How a GPU multiplies prompts with the weights, as after eesd-run's --prefill: "exact", or "fast", through NVIDIA's cuBLASLt.
   * NULL is "exact".
   */
  const char *prefill;
  /**
   * The part of a GPU's memory that may be used, above 0 and at most 1. Default: 0.9.
   */
  double gpu_memory_fraction;
  /**
   * The path of an eesd-run of this release, or NULL. It is started once, before the session opens the GPU, to try there in
   * a process of its own what could crash this one: a loop of drafts as one launch. If that works, a request that is
   * alone is drafted so; else, and with NULL, step by step, which costs a wait for each draft.
   */
  const char *loop_probe;
} eesd_session_params;

/**
 * What a session has.
 */
typedef struct eesd_session_info {
  /**
   * sizeof(eesd_session_info); to be set before the call.
   */
  size_t struct_size;
  /**
   * The device and how it is used, as in "cpu, 2 threads, avx512, bf16 weights".
   */
  char device[256];
  /**
   * The controller, as eesd_session_params has it.
   */
  char controller[128];
  /**
   * Who drafts, as eesd_session_params has it: "exit,lookup", ..., or "off".
   */
  char draft[64];
  /**
   * Requests worked on side by side.
   */
  size_t slots;
  /**
   * Requests that may wait beside those.
   */
  size_t max_waiting;
  /**
   * Longest sequence, in tokens.
   */
  size_t context;
  /**
   * Tokens that the KV cache holds.
   */
  size_t cache_tokens;
  /**
   * How it is kept: "f32" or "q8", and "" in the 16 bits of a GPU's weights.
   */
  char kv[16];
  /**
   * Most drafts in one round.
   */
  size_t draft_max;
  /**
   * Layers before the exit block; 0: none drafts.
   */
  size_t exit_layer;
} eesd_session_info;

/**
 * What is added to the logit of one token.
 */
typedef struct eesd_logit_bias {
  /**
   * The token.
   */
  uint32_t token;
  /**
   * A finite number; -INFINITY forbids the token.
   */
  float bias;
} eesd_logit_bias;

/**
 * A run of tokens.
 */
typedef struct eesd_tokens {
  /**
   * The tokens; at least one.
   */
  const uint32_t *tokens;
  /**
   * How many.
   */
  size_t count;
} eesd_tokens;

/**
 * A text to be continued, or a conversation. Begin with eesd_request_default(). Nothing of it is kept after the call that takes
 * it. What is to be continued is said by one of prompt, tokens and json.
 */
typedef struct eesd_request {
  /**
   * sizeof(eesd_request).
   */
  size_t struct_size;
  /**
   * The prompt as a text, UTF-8; its tokens begin with what the model wants at a text's start, as those of eesd_tokenize()
   * with begin 1 do. Else NULL.
   */
  const char *prompt;
  /**
   * Its length in bytes.
   */
  size_t prompt_length;
  /**
   * The prompt as tokens, as they are; at least one, and fewer than the session's context. Else NULL.
   */
  const uint32_t *tokens;
  /**
   * How many.
   */
  size_t token_count;
  /**
   * A request in JSON, UTF-8, as in a line for `eesd-run generate`: an object with "messages", a conversation for the chat
   * template (and "tools", "documents", "chat_template_kwargs"; see eesd_apply_chat_template_json()), or with "prompt", a
   * text or a list of tokens; and with settings, which go before the fields here. Without "messages" and "prompt", settings
   * alone. docs/requests.md has all keys; others are refused by name, but for "id", which is passed over. NULL: none.
   */
  const char *json;
  /**
   * Its length in bytes.
   */
  size_t json_length;
  /**
   * Answers, 1 to 1024, the first with this seed, the next with the one after it, ...; more than one by eesd_submit_n()
   * alone. Default: 1.
   */
  size_t n;
  /**
   * Most tokens to generate, at least 1. Default: the model's own wish (max_new_tokens of its generation_config.json), or 256.
   */
  size_t max_tokens;
  /**
   * Divides the logits; 0 is greedy decoding.
   */
  double temperature;
  /**
   * Keep the most probable tokens, this many; 0 keeps all.
   */
  size_t top_k;
  /**
   * Keep the smallest set of most probable tokens whose probabilities reach this; 1 keeps all.
   */
  double top_p;
  /**
   * Keep tokens at least this fraction as probable as the most probable one; 0 keeps all.
   */
  double min_p;
  /**
   * Divides positive and multiplies negative logits of tokens in prompt or answer; 1 is off.
   */
  double repetition_penalty;
  /**
   * Subtracted from the logit of every token in the answer; 0 is off.
   */
  double presence_penalty;
  /**
   * Subtracted from a token's logit once per occurrence in the answer; 0 is off.
   */
  double frequency_penalty;
  /**
   * Biases of single tokens; NULL where there are none.
   */
  const struct eesd_logit_bias *logit_bias;
  /**
   * How many.
   */
  size_t logit_bias_count;
  /**
   * Other than 0: seed counts, and but for rejection sampling the same seed gives the same text whatever else runs. 0: one
   * is drawn.
   */
  int32_t has_seed;
  /**
   * The seed.
   */
  uint64_t seed;
  /**
   * An eesd_verify.
   */
  int32_t verify;
  /**
   * Report the log-probability of each token and of this many most probable ones, 0 to 100; -1: of none. Default: -1.
   */
  int32_t logprobs;
  /**
   * Texts that end the answer and are no part of it. NULL: the model's own, as generation_config.json has them; an address
   * and no elements: none.
   */
  const struct eesd_text *stop;
  /**
   * How many.
   */
  size_t stop_count;
  /**
   * Other than 0: go on past the model's end tokens. Default: 0.
   */
  int32_t ignore_end;
  /**
   * 0: decode plainly, whatever the session's controller. Default: 1.
   */
  int32_t speculate;
  /**
   * Most drafts in one round, if fewer than the session's; 0: the session's.
   */
  size_t draft_max;
  /**
   * For eesd_submit(): other than 0 asks for an event for each token, 0 for the last event alone. Default: 1.
   */
  int32_t stream;
  /**
   * Fewest tokens to generate, at most max_tokens: none of so many is one that ends the answer, and no stop text that is
   * complete with them ends it. Default: the model's own wish (min_new_tokens), or 0.
   */
  size_t min_tokens;
  /**
   * Tokens that end the answer as the model's end tokens do, whatever ignore_end; NULL where there are none.
   */
  const uint32_t *stop_token_ids;
  /**
   * How many.
   */
  size_t stop_token_id_count;
  /**
   * Tokens that are never generated; NULL and no elements as for stop.
   */
  const uint32_t *suppress_tokens;
  /**
   * How many.
   */
  size_t suppress_token_count;
  /**
   * Runs of tokens that are never generated: the last one of a run is forbidden where prompt and answer so far end in the
   * others; NULL and no elements as for stop. (json takes them as texts too.)
   */
  const struct eesd_tokens *bad_words;
  /**
   * How many.
   */
  size_t bad_word_count;
  /**
   * Who may draft, of those that the session has: as eesd_session_params has it; NULL: all of them. What a request without
   * "shared" comes to is not told to others.
   */
  const char *draft;
} eesd_request;

/**
 * The log-probability of one token.
 */
typedef struct eesd_logprob {
  /**
   * The token.
   */
  uint32_t token;
  /**
   * Natural logarithm of its probability, by the whole model.
   */
  float logprob;
} eesd_logprob;

/**
 * Log-probabilities at one position of an answer.
 */
typedef struct eesd_token_logprobs {
  /**
   * Of the token that was emitted.
   */
  float logprob;
  /**
   * The most probable tokens, most probable first.
   */
  const struct eesd_logprob *top;
  /**
   * How many.
   */
  size_t top_count;
} eesd_token_logprobs;

/**
 * One emitted token, handed out when it is certain; where tokens come fast, up to about five milliseconds later.
 */
typedef struct eesd_token {
  /**
   * The token.
   */
  uint32_t id;
  /**
   * Who drafted it, where the verifier kept a draft: an eesd_source.
   */
  int32_t drafted;
  /**
   * Text that became certain with it: whole characters in UTF-8, nothing that may still be part of a stop string, often
   * nothing at all; the texts of an answer's tokens, joined, are the answer's. A zero follows it, which length does not
   * count.
   */
  struct eesd_text text;
  /**
   * Its log-probabilities; NaN and none where they were not asked for.
   */
  struct eesd_token_logprobs logprobs;
} eesd_token;

/**
 * Receives a token, which is good for the call alone, and the pointer that was given beside the callback. 0 goes on,
 * anything else cancels. It is called on the thread that called eesd_generate(), must not throw, and cannot call functions
 * of the same session (EESD_STATUS_REENTRANT); those of models and of other sessions it can.
 */
typedef int32_t (*eesd_token_callback)(const struct eesd_token *token, void *user_data);

/**
 * What one source of drafts did.
 */
typedef struct eesd_source_stats {
  /**
   * Rounds that it drafted, of each request.
   */
  size_t rounds;
  /**
   * Its drafts that were tested.
   */
  size_t drafted;
  /**
   * Those that were accepted.
   */
  size_t accepted;
} eesd_source_stats;

/**
 * Counts and times of one answer. Times are in seconds.
 *
 * How far to draft is decided by measured times (but with "off", and "fixed:K" with draft "exit"), so rounds, drafted and
 * accepted differ from run to run where the answer does not.
 */
typedef struct eesd_stats {
  /**
   * Tokens of the prompt.
   */
  size_t prompt_tokens;
  /**
   * Tokens emitted.
   */
  size_t generated;
  /**
   * Rounds, that is verification passes.
   */
  size_t rounds;
  /**
   * Drafts tested.
   */
  size_t drafted;
  /**
   * Drafts accepted.
   */
  size_t accepted;
  /**
   * Tokens of the prompt that were found in pages kept of earlier texts.
   */
  size_t reused_tokens;
  /**
   * Times that the request was set aside because the cache was full.
   */
  size_t preemptions;
  /**
   * Mean accepted length, 1 + accepted / rounds.
   */
  double mean_accepted_length;
  /**
   * Tokens per second of decoding, prefill left out.
   */
  double tokens_per_second;
  /**
   * From submission to admission; of a session's first request, with the time in which steps are timed.
   */
  double queued;
  /**
   * Filling the cache with the prompt.
   */
  double prefill;
  /**
   * From admission to the first token, prefill included.
   */
  double first_token;
  /**
   * Draft steps.
   */
  double draft;
  /**
   * The rest of the rounds: verification and acceptance.
   */
  double verify;
  /**
   * From the end of prefill to the end.
   */
  double decode;
  /**
   * `drafted_at[i]`: rounds that drafted and tested a token at draft position i.
   */
  const size_t *drafted_at;
  /**
   * `accepted_at[i]`: rounds that accepted it.
   */
  const size_t *accepted_at;
  /**
   * Elements of these two.
   */
  size_t positions;
  /**
   * `draft_lengths[k]`: rounds that drafted exactly k tokens.
   */
  const size_t *draft_lengths;
  /**
   * Elements of it.
   */
  size_t draft_lengths_count;
  /**
   * What each source drafted: by_source[EESD_SOURCE_EXIT - 1], ...
   */
  struct eesd_source_stats by_source[EESD_SOURCES];
} eesd_stats;

/**
 * A finished answer. What it points to is this library's: see eesd_generate() and eesd_next_event() for how long.
 */
typedef struct eesd_completion {
  /**
   * sizeof(eesd_completion); to be set before eesd_generate().
   */
  size_t struct_size;
  /**
   * Every emitted token, the end token included, or the one that completed a stop string: they may spell more than text
   * says.
   */
  const uint32_t *tokens;
  /**
   * How many.
   */
  size_t token_count;
  /**
   * The text, cut before the stop string. A zero follows it, which length does not count.
   */
  struct eesd_text text;
  /**
   * Log-probabilities of the tokens, as many; NULL where they were not asked for.
   */
  const struct eesd_token_logprobs *logprobs;
  /**
   * Why it ended.
   */
  eesd_finish finish;
  /**
   * The end token, where that is why.
   */
  uint32_t end_token;
  /**
   * The stop string, where that is why.
   */
  struct eesd_text stop;
  /**
   * Other than 0: seed repeats the answer. 0: no seed does, as by rejection sampling, or nothing was drawn.
   */
  int32_t has_seed;
  /**
   * The seed, given or drawn, that repeats a sampled answer whatever else runs; 0 where has_seed is.
   */
  uint64_t seed;
  /**
   * Counts and times.
   */
  struct eesd_stats stats;
} eesd_completion;

/**
 * What happened to a submitted request.
 */
typedef struct eesd_event {
  /**
   * sizeof(eesd_event); to be set before the call.
   */
  size_t struct_size;
  /**
   * What this tells.
   */
  eesd_event_kind kind;
  /**
   * Why the request failed; else EESD_STATUS_OK.
   */
  eesd_status status;
  /**
   * The request's number, from eesd_submit().
   */
  uint64_t request;
  /**
   * The token, in events of that kind.
   */
  struct eesd_token token;
  /**
   * The answer, in events of that kind.
   */
  struct eesd_completion completion;
  /**
   * Why the request failed, in words; else empty.
   */
  const char *message;
} eesd_event;

/**
 * Counts since a session was made.
 */
typedef struct eesd_totals {
  /**
   * Requests answered to their end.
   */
  size_t finished;
  /**
   * Requests that were malformed, or dropped because a pass failed.
   */
  size_t failed;
  /**
   * Requests cancelled.
   */
  size_t cancelled;
  /**
   * Tokens of all prompts admitted.
   */
  size_t prompt_tokens;
  /**
   * Those of them that were found in pages kept.
   */
  size_t reused_tokens;
  /**
   * Tokens taken in by prefill passes.
   */
  size_t prefilled_tokens;
  /**
   * Tokens emitted.
   */
  size_t generated;
  /**
   * Rounds, each of all requests then running.
   */
  size_t rounds;
  /**
   * Requests in all rounds.
   */
  size_t sequences;
  /**
   * Rows of all verification passes.
   */
  size_t rows;
  /**
   * Draft steps, each of all requests then drafting.
   */
  size_t draft_steps;
  /**
   * Drafts tested.
   */
  size_t drafted;
  /**
   * Drafts accepted.
   */
  size_t accepted;
  /**
   * Requests set aside because the cache was full, each time.
   */
  size_t preemptions;
  /**
   * Pages copied out of the cache for it.
   */
  size_t swapped_pages;
  /**
   * Mean accepted length, 1 + accepted / sequences; 0 before the first round.
   */
  double mean_accepted_length;
  /**
   * What each source drafted: by_source[EESD_SOURCE_EXIT - 1], ...
   */
  struct eesd_source_stats by_source[EESD_SOURCES];
} eesd_totals;

/**
 * A session between two steps of its engine.
 */
typedef struct eesd_snapshot {
  /**
   * sizeof(eesd_snapshot); to be set before the call.
   */
  size_t struct_size;
  /**
   * Requests not admitted yet.
   */
  size_t waiting;
  /**
   * Requests whose prompts are being taken in.
   */
  size_t prefilling;
  /**
   * Requests in the rounds.
   */
  size_t decoding;
  /**
   * Requests set aside because the cache was full.
   */
  size_t swapped_out;
  /**
   * Pages of the KV cache, of 64 tokens each.
   */
  size_t pages;
  /**
   * Pages that no request holds, those kept for their texts among them.
   */
  size_t free_pages;
  /**
   * Pages kept for their texts, those that requests hold among them.
   */
  size_t kept_pages;
  /**
   * Counts so far.
   */
  struct eesd_totals totals;
} eesd_snapshot;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The interface of this library.
 */
uint32_t eesd_abi_version(void);

/**
 * The version of this library, as in "0.1.0". Never NULL; a constant.
 */
const char *eesd_version(void);

/**
 * The message of this thread's last call that did not return EESD_STATUS_OK; empty if there was none.
 *
 * Never NULL. The text is this library's: it stays until the next failing call of the same thread.
 */
const char *eesd_last_error(void);

/**
 * The name of a status, as in "EESD_STATUS_TIMEOUT"; "unknown status" for a number that is none.
 *
 * Never NULL; a constant.
 */
const char *eesd_status_name(int32_t status);

/**
 * Sets the callback of the whole process for messages up to a level (eesd_log_level); NULL: none, as in the beginning.
 *
 * When this returns, the former callback is not running and will not be called again. Not to be called from a log
 * callback (EESD_STATUS_REENTRANT).
 *
 * # Safety
 *
 * `callback` stays callable with `user_data` from any thread until another one is set.
 */
eesd_status eesd_set_log_callback(eesd_log_callback callback, void *user_data, int32_t level);

/**
 * Writes the number of CUDA devices; 0 without a driver that works.
 *
 * # Safety
 *
 * `count` is NULL or good to write.
 */
eesd_status eesd_cuda_device_count(size_t *count);

/**
 * Describes a device: "cpu", "cuda", "cuda:N"; NULL and "auto": the one that sessions take by default.
 *
 * EESD_STATUS_DEVICE_FAILED if there is none of this name.
 *
 * # Safety
 *
 * `device` is NULL or ends in a zero; `info` is NULL, or as its struct_size, which is set, says.
 */
eesd_status eesd_device_get_info(const char *device, struct eesd_device_info *info);

/**
 * Fills in the defaults: the model inside the library, EESD_EXIT_DEFAULT, weights as stored.
 *
 * struct_size: sizeof(eesd_model_params).
 *
 * # Safety
 *
 * `params` is NULL or good to write for `struct_size` bytes.
 */
eesd_status eesd_model_params_default(struct eesd_model_params *params, size_t struct_size);

/**
 * Opens a model; *model gets a handle for eesd_model_free().
 *
 * Weights are mapped, not read: the model's files must stay as they are until the model and all its sessions are freed.
 *
 * # Safety
 *
 * `params` is NULL or as its struct_size says, its texts end in zeros; `model` is NULL or good to write.
 */
eesd_status eesd_model_load(const struct eesd_model_params *params, struct eesd_model **model);

/**
 * Frees a model's handle; NULL does nothing. Sessions over the model keep it and go on.
 */
eesd_status eesd_model_free(struct eesd_model *model);

/**
 * Describes a model.
 *
 * # Safety
 *
 * `info` is NULL, or as its struct_size, which is set, says.
 */
eesd_status eesd_model_get_info(const struct eesd_model *model, struct eesd_model_info *info);

/**
 * Turns a text into tokens.
 *
 * begin: other than 0 puts before them what the model wants at a text's start, unless the text has it already; 0 for
 * what a chat template wrote. *needed (may be NULL) gets the number of tokens; where it is more than capacity, nothing is
 * written to tokens, and the status is EESD_STATUS_BUFFER_TOO_SMALL: capacity 0 asks for the number.
 *
 * # Safety
 *
 * `data` is good to read for `length` bytes, `tokens` to write for `capacity` tokens, `needed` is NULL or good to write.
 */
eesd_status eesd_tokenize(const struct eesd_model *model,
                          const char *data,
                          size_t length,
                          int32_t begin,
                          uint32_t *tokens,
                          size_t capacity,
                          size_t *needed);

/**
 * Turns tokens into a text, special tokens left out.
 *
 * *needed (may be NULL) gets the text's length in bytes with the final zero; where it is more than capacity, nothing is
 * written to buffer, and the status is EESD_STATUS_BUFFER_TOO_SMALL.
 *
 * # Safety
 *
 * `tokens` is good to read for `count` tokens, `buffer` to write for `capacity` bytes, `needed` is NULL or good to write.
 */
eesd_status eesd_detokenize(const struct eesd_model *model,
                            const uint32_t *tokens,
                            size_t count,
                            char *buffer,
                            size_t capacity,
                            size_t *needed);

/**
 * Writes a conversation as the model's chat template does, up to where the assistant answers; to be tokenized with begin
 * 0. Buffer, capacity and needed as for eesd_detokenize().
 *
 * # Safety
 *
 * `messages` is good to read for `count` messages, whose roles end in zeros and whose contents are as long as they say;
 * `buffer` is good to write for `capacity` bytes, `needed` is NULL or good to write.
 */
eesd_status eesd_apply_chat_template(const struct eesd_model *model,
                                     const struct eesd_chat_message *messages,
                                     size_t count,
                                     char *buffer,
                                     size_t capacity,
                                     size_t *needed);

/**
 * The same for a conversation in JSON: an object with "messages", each with a "role", a "content" (a text, or a list of text
 * parts) and whatever else the template reads ("name", "tool_calls", "tool_call_id", ...), and beside them "tools",
 * "documents" and "chat_template_kwargs", where there are any. These keys of eesd_request's json make the same prompt.
 *
 * # Safety
 *
 * `json` is good to read for `length` bytes, `buffer` to write for `capacity` bytes, `needed` is NULL or good to write.
 */
eesd_status eesd_apply_chat_template_json(const struct eesd_model *model,
                                          const char *json,
                                          size_t length,
                                          char *buffer,
                                          size_t capacity,
                                          size_t *needed);

/**
 * The spelling of a token in the vocabulary, which may be no text: "\u0120def", "<0x0A>", "<|im_end|>". Buffer, capacity and needed
 * as for eesd_detokenize(), which tells a token's text.
 *
 * EESD_STATUS_NOT_FOUND if the vocabulary has no such token.
 *
 * # Safety
 *
 * `buffer` is good to write for `capacity` bytes, `needed` is NULL or good to write.
 */
eesd_status eesd_token_spelling(const struct eesd_model *model,
                                uint32_t token,
                                char *buffer,
                                size_t capacity,
                                size_t *needed);

/**
 * Fills in the defaults, as the fields' comments have them.
 *
 * struct_size: sizeof(eesd_session_params).
 *
 * # Safety
 *
 * `params` is NULL or good to write for `struct_size` bytes.
 */
eesd_status eesd_session_params_default(struct eesd_session_params *params, size_t struct_size);

/**
 * Makes a session over a model; *session gets a handle for eesd_session_free().
 *
 * Lays the weights out for the device, reserves the cache and starts threads: this takes a while and memory of the model's
 * size, so make one session and share it. The session keeps the model: its handle may be freed at once.
 *
 * With "goodput-ts" and more than one slot the first request waits up to about a second longer, in which steps are timed.
 * To have that behind, generate a token.
 *
 * # Safety
 *
 * `params` is NULL or as its struct_size says, its texts end in zeros; `session` is NULL or good to write.
 */
eesd_status eesd_session_create(const struct eesd_model *model,
                                const struct eesd_session_params *params,
                                struct eesd_session **session);

/**
 * Frees a session: ends its threads after the step that they are at, and drops its requests and all events that nobody has
 * pulled; NULL does nothing.
 *
 * Other threads may be in calls of the session, which end with EESD_STATUS_CLOSED; to be freed it needs no care. Not to
 * be called from the session's own callback (EESD_STATUS_REENTRANT: nothing is freed).
 */
eesd_status eesd_session_free(struct eesd_session *session);

/**
 * Describes a session.
 *
 * # Safety
 *
 * `info` is NULL, or as its struct_size, which is set, says.
 */
eesd_status eesd_session_get_info(const struct eesd_session *session, struct eesd_session_info *info);

/**
 * Writes the texts that "shared" looks up, prompts and answers of requests that were finished, in the place of a file, for
 * draft_index of later sessions and eesd-run's --draft-index. It holds them as tokens: keep it as you would keep the texts.
 *
 * EESD_STATUS_UNSUPPORTED if the session does without "shared".
 *
 * # Safety
 *
 * `path` is NULL or ends in a zero.
 */
eesd_status eesd_session_write_draft_index(const struct eesd_session *session,
                                           const char *path);

/**
 * The name of an eesd_source as in lists of draft: "exit", "lookup", "shared" or "grammar"; "nobody" for EESD_SOURCE_NONE, "unknown source"
 * for a number that is none.
 *
 * Never NULL; a constant.
 */
const char *eesd_source_name(int32_t source);

/**
 * Fills in the defaults: no prompt, and lengths and sampling as the model's generation_config.json asks for; where it does not
 * (as for the model inside the library), 256 tokens, greedily. NULL for the model: 256 tokens, greedily. These are eesd-run's
 * defaults too.
 *
 * struct_size: sizeof(eesd_request).
 *
 * # Safety
 *
 * `request` is NULL or good to write for `struct_size` bytes.
 */
eesd_status eesd_request_default(const struct eesd_model *model,
                                 struct eesd_request *request,
                                 size_t struct_size);

/**
 * The name of a reason, as in "EESD_FINISH_LENGTH"; "unknown finish" for a number that is none.
 *
 * Never NULL; a constant.
 */
const char *eesd_finish_name(int32_t finish);

/**
 * Answers a request and returns when it is answered.
 *
 * callback (may be NULL) gets each token as it becomes certain; when it cancels, the status is EESD_STATUS_OK and the
 * completion has what the callback was given, finish EESD_FINISH_CANCELLED (its statistics count what the engine had
 * decoded further). *completion (may be NULL) is filled in when the status is EESD_STATUS_OK; what it points to stays until
 * the same thread's next eesd_generate() or eesd_next_event() returns, and until the thread ends. Several threads may
 * generate on one session: their requests are worked on side by side.
 *
 * # Safety
 *
 * `request` is NULL or as its struct_size says, with arrays as long as their counts say; `callback` may be called with
 * `user_data`; `completion` is NULL, or as its struct_size, which is set, says.
 */
eesd_status eesd_generate(const struct eesd_session *session,
                          const struct eesd_request *request,
                          eesd_token_callback callback,
                          void *user_data,
                          struct eesd_completion *completion);

/**
 * Hands in a request; *id gets its number, by which events name it, the first one 1.
 *
 * A request that is malformed, or has too long a prompt, is refused at once: it has no number and no events. One that the
 * cache cannot hold, or whose pass fails, fails by an event of kind EESD_EVENT_KIND_FAILED. Events that nobody pulls are
 * kept until the session is freed.
 *
 * # Safety
 *
 * `request` is NULL or as its struct_size says, with arrays as long as their counts say; `id` is NULL or good to write.
 */
eesd_status eesd_submit(const struct eesd_session *session,
                        const struct eesd_request *request,
                        uint64_t *id);

/**
 * Hands in a request for n answers, as n requests whose prompt is read once: ids gets their numbers, in order, and each has
 * events of its own. *needed (may be NULL) gets n, which json may say; where that is more than capacity, nothing is handed in,
 * and the status is EESD_STATUS_BUFFER_TOO_SMALL.
 *
 * # Safety
 *
 * `request` is NULL or as its struct_size says, with arrays as long as their counts say; `ids` is good to write for
 * `capacity` numbers; `needed` is NULL or good to write.
 */
eesd_status eesd_submit_n(const struct eesd_session *session,
                          const struct eesd_request *request,
                          uint64_t *ids,
                          size_t capacity,
                          size_t *needed);

/**
 * Waits for the next event of any request that was submitted, by any thread: each event is handed out once. What it points
 * to stays until the same thread's next eesd_next_event() or eesd_generate() returns, and until the thread ends.
 *
 * timeout_ms: longest time to wait, in milliseconds; 0 looks and returns, below 0 waits as long as it takes, for requests
 * that are yet to be submitted too. EESD_STATUS_TIMEOUT if there was no event, EESD_STATUS_CLOSED if the session was freed.
 *
 * # Safety
 *
 * `event` is NULL, or as its struct_size, which is set, says.
 */
eesd_status eesd_next_event(const struct eesd_session *session,
                            int64_t timeout_ms,
                            struct eesd_event *event);

/**
 * Ends a submitted request where it is. Its last event comes in any case: EESD_EVENT_KIND_DONE with finish
 * EESD_FINISH_CANCELLED, or another one if it was finished before. Tokens that the engine decoded before it saw the
 * cancellation still come; how many differs from run to run. The answer's text may end with what was held back in case
 * it became a stop string.
 *
 * EESD_STATUS_NOT_FOUND if there is no unfinished request of this number.
 */
eesd_status eesd_cancel(const struct eesd_session *session, uint64_t id);

/**
 * Writes what the session is doing after the step that it is at, for which this waits; requests that the same thread
 * submitted before are counted.
 *
 * # Safety
 *
 * `snapshot` is NULL, or as its struct_size, which is set, says.
 */
eesd_status eesd_session_get_snapshot(const struct eesd_session *session, struct eesd_snapshot *snapshot);

/**
 * Models and sessions that were made and not freed yet, in the whole process. For tests of hosts: a tool that looks for
 * leaks finds a forgotten handle's memory reachable.
 */
size_t eesd_live_handles(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* EESD_H */
