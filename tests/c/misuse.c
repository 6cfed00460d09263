// Everything that a host can do wrong and that can be seen: a status each time, no crash, and the session goes on.

#include "check.h"

#include <math.h>
#include <pthread.h>
#include <unistd.h>

static const char PROMPT[] = "def fibonacci(n):";

static void wrong_pointers(eesd_model *model, eesd_session *session) {
    eesd_request request = request_for(PROMPT, 4);
    eesd_completion completion = empty_completion();
    eesd_event event = empty_event();
    eesd_model_params model_params;
    eesd_session_params params = small_session();
    eesd_session *no_session = NULL;
    eesd_model *no_model = NULL;
    uint64_t id = 0;
    OK(eesd_model_params_default(&model_params, sizeof model_params));

    // NULL.
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_params_default(NULL, sizeof model_params));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_load(NULL, &no_model));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_load(&model_params, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_get_info(NULL, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_get_info(model, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_session_create(NULL, &params, &no_session));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_session_create(model, NULL, &no_session));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_session_create(model, &params, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_session_get_info(session, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_session_get_snapshot(session, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_generate(NULL, &request, NULL, NULL, &completion));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_generate(session, NULL, NULL, NULL, &completion));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_submit(session, &request, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_submit(session, NULL, &id));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_next_event(session, 0, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_cancel(NULL, 1));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_tokenize(model, NULL, 3, 1, NULL, 0, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_detokenize(model, NULL, 3, NULL, 0, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_apply_chat_template(model, NULL, 0, NULL, 0, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_device_get_info("cpu", NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_cuda_device_count(NULL));
    CHECK(no_model == NULL && no_session == NULL && id == 0);
    OK(eesd_model_free(NULL));
    OK(eesd_session_free(NULL));

    // Handles of the other kind, and what never was one.
    char byte = 0;
    for (uintptr_t number = 0; number < 16; number++) {
        eesd_session *made_up = (eesd_session *)((uintptr_t)&byte + number);
        EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_generate(made_up, &request, NULL, NULL, &completion));
        EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_session_free(made_up));
    }
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_session_free((eesd_session *)model));
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_model_free((eesd_model *)session));
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_next_event((eesd_session *)model, 0, &event));

    // Misaligned, where a structure has to be.
    char *shifted = (char *)&request + 1;
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_submit(session, (const eesd_request *)(const void *)shifted, &id));
}

static void wrong_sizes(eesd_model *model, eesd_session *session) {
    const size_t sizes[] = {0, 1, sizeof(size_t), sizeof(eesd_request) - 1, sizeof(eesd_request) + 1, SIZE_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        eesd_request request = request_for(PROMPT, 4);
        eesd_completion completion = empty_completion();
        eesd_event event = empty_event();
        eesd_model_params model_params;
        eesd_session_params params = small_session();
        eesd_model_info info;
        eesd_session_info session_info;
        eesd_snapshot snapshot;
        eesd_device_info device;
        eesd_session *made = NULL;
        eesd_model *opened = NULL;
        uint64_t id = 0;
        OK(eesd_model_params_default(&model_params, sizeof model_params));
        request.struct_size = completion.struct_size = event.struct_size = sizes[i];
        params.struct_size = model_params.struct_size = info.struct_size = sizes[i];
        session_info.struct_size = snapshot.struct_size = device.struct_size = sizes[i];
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_submit(session, &request, &id));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_generate(session, &request, NULL, NULL, NULL));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_generate(session, &request, NULL, NULL, &completion));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_next_event(session, 0, &event));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_model_load(&model_params, &opened));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_session_create(model, &params, &made));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_model_get_info(model, &info));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_session_get_info(session, &session_info));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_session_get_snapshot(session, &snapshot));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_device_get_info("cpu", &device));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_request_default(NULL, &request, sizes[i]));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_session_params_default(&params, sizes[i]));
        EXPECT(EESD_STATUS_INVALID_STRUCT_SIZE, eesd_model_params_default(&model_params, sizes[i]));
        CHECK(made == NULL && opened == NULL && id == 0);
    }
}

static void wrong_texts(eesd_model *model, eesd_session *session) {
    const char bad[] = "def \xff\xfe";
    size_t needed = 77;
    uint32_t tokens[8];
    EXPECT(EESD_STATUS_INVALID_UTF8, eesd_tokenize(model, bad, sizeof bad - 1, 1, tokens, 8, &needed));
    CHECK(needed == 77 && strstr(eesd_last_error(), "byte 4") != NULL);

    eesd_request request = request_for(PROMPT, 4);
    uint64_t id = 0;
    request.prompt = bad;
    request.prompt_length = sizeof bad - 1;
    EXPECT(EESD_STATUS_INVALID_UTF8, eesd_submit(session, &request, &id));
    request = request_for(PROMPT, 4);
    eesd_text stop = {bad, sizeof bad - 1};
    request.stop = &stop;
    request.stop_count = 1;
    EXPECT(EESD_STATUS_INVALID_UTF8, eesd_submit(session, &request, &id));
    stop.length = 0;
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_submit(session, &request, &id));

    eesd_model_params params;
    eesd_model *none = NULL;
    OK(eesd_model_params_default(&params, sizeof params));
    params.folder = bad;
    EXPECT(EESD_STATUS_INVALID_UTF8, eesd_model_load(&params, &none));
    params.folder = "/nowhere/at/all";
    EXPECT(EESD_STATUS_LOAD_FAILED, eesd_model_load(&params, &none));
    CHECK(strstr(eesd_last_error(), "/nowhere/at/all") != NULL);
    params.folder = NULL;
    params.exit_layer = 7;
    EXPECT(EESD_STATUS_LOAD_FAILED, eesd_model_load(&params, &none));
    params.exit_layer = -5;
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_load(&params, &none));
    params.exit_layer = 1;
    params.exit_file = "exit.safetensors";
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_load(&params, &none));
    params.exit_layer = EESD_EXIT_DEFAULT;
    EXPECT(EESD_STATUS_LOAD_FAILED, eesd_model_load(&params, &none));
    params.exit_file = NULL;
    params.quantize = "q5";
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_load(&params, &none));
    CHECK(strstr(eesd_last_error(), "\"q5\" (expected \"q8\", \"q4\"") != NULL);
    params.quantize = bad;
    EXPECT(EESD_STATUS_INVALID_UTF8, eesd_model_load(&params, &none));
    CHECK(none == NULL);

    // Zeros inside a text are part of it.
    const char zeros[] = "a\0b";
    OK(eesd_tokenize(model, zeros, 3, 0, tokens, 8, &needed));
    char text[16];
    size_t length = 0;
    OK(eesd_detokenize(model, tokens, needed, text, sizeof text, &length));
    CHECK(length == 4 && memcmp(text, zeros, 4) == 0);
    EXPECT(EESD_STATUS_BUFFER_TOO_SMALL, eesd_detokenize(model, tokens, needed, text, 3, &length));
    CHECK(length == 4);
    eesd_chat_message message = {"user", {"hello", 5}};
    eesd_status status = eesd_apply_chat_template(model, &message, 1, NULL, 0, &length);
    CHECK(status == EESD_STATUS_UNSUPPORTED || status == EESD_STATUS_BUFFER_TOO_SMALL);
}

static void wrong_numbers(eesd_model *model, eesd_session *session) {
    uint64_t id = 0;
    const eesd_request good = request_for(PROMPT, 4);
    eesd_request request;
#define REFUSED(status, change)                                                                                        \
    do {                                                                                                               \
        request = good;                                                                                                \
        change;                                                                                                        \
        EXPECT(status, eesd_submit(session, &request, &id));                                                           \
        EXPECT(status, eesd_generate(session, &request, NULL, NULL, NULL));                                            \
    } while (0)
    const eesd_logit_bias outside = {UINT32_MAX, 1}, nan_bias = {1, NAN};
    const uint32_t unknown = UINT32_MAX;
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.temperature = NAN);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.temperature = -1);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.top_p = 0);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.min_p = 2);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.repetition_penalty = 0);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.presence_penalty = INFINITY);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.frequency_penalty = NAN);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.verify = 9);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.logprobs = -2);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.logprobs = 101);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.max_tokens = 0);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.prompt = NULL);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.tokens = &unknown, request.token_count = 1));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.logit_bias = &outside, request.logit_bias_count = 1));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.logit_bias = &nan_bias, request.logit_bias_count = 1));
    const eesd_tokens none = {NULL, 0}, nowhere = {NULL, 2}, endless = {&unknown, SIZE_MAX}, strange = {&unknown, 1};
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.min_tokens = request.max_tokens + 1);
    CHECK(strstr(eesd_last_error(), "min_tokens") != NULL && strstr(eesd_last_error(), "max_tokens") != NULL);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.stop_token_ids = &unknown, request.stop_token_id_count = 1));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.suppress_tokens = &unknown, request.suppress_token_count = 1));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.bad_words = &strange, request.bad_word_count = 1));
    CHECK(strstr(eesd_last_error(), "bad_words") != NULL);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.bad_words = &none, request.bad_word_count = 1));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.bad_words = &nowhere, request.bad_word_count = 1));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.bad_words = NULL, request.bad_word_count = 1));
    // Lengths that no memory has.
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.stop_token_ids = &unknown, request.stop_token_id_count = SIZE_MAX));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.suppress_tokens = &unknown, request.suppress_token_count = SIZE_MAX));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.bad_words = &endless, request.bad_word_count = 1));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.bad_words = &strange, request.bad_word_count = SIZE_MAX));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.prompt_length = SIZE_MAX);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, request.prompt_length = (size_t)1 << 40);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.logit_bias = &outside, request.logit_bias_count = SIZE_MAX));
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.stop = (const eesd_text[]){{"a", 1}}, request.stop_count = SIZE_MAX));
    REFUSED(EESD_STATUS_TOO_LONG,
            (request.prompt = NULL, request.tokens = &unknown, request.token_count = SIZE_MAX));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_tokenize(model, PROMPT, SIZE_MAX, 1, NULL, 0, NULL));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_detokenize(model, &unknown, SIZE_MAX / 4, NULL, 0, NULL));

    // A prompt that is longer than the context, in truth.
    char *text = malloc(1 << 11);
    CHECK(text != NULL);
    memset(text, 'x', 1 << 11);
    REFUSED(EESD_STATUS_TOO_LONG, (request.prompt = text, request.prompt_length = 1 << 11));
    free(text);
    REFUSED(EESD_STATUS_INVALID_ARGUMENT, (request.prompt = NULL, request.tokens = &unknown, request.token_count = 1));
    CHECK(strstr(eesd_last_error(), "vocabulary") != NULL);
    // None of them has left an event.
    eesd_event event = empty_event();
    EXPECT(EESD_STATUS_TIMEOUT, eesd_next_event(session, 0, &event));
    // Found out by the engine, whose cache is too small: an event for what was submitted, a status for what waits.
    eesd_session_params narrow = small_session();
    narrow.cache_tokens = 64;
    eesd_session *small = session_over(model, &narrow);
    request = request_for(PROMPT, 100);
    EXPECT(EESD_STATUS_TOO_LONG, eesd_generate(small, &request, NULL, NULL, NULL));
    OK(eesd_submit(small, &request, &id));
    OK(eesd_next_event(small, -1, &event));
    CHECK(event.kind == EESD_EVENT_KIND_FAILED && event.request == id && event.status == EESD_STATUS_TOO_LONG);
    CHECK(strstr(event.message, "cache") != NULL);
    eesd_session_free(small);

    eesd_session *made = NULL;
    const eesd_session_params fine = small_session();
    eesd_session_params params;
#define NO_SESSION(status, change)                                                                                     \
    do {                                                                                                               \
        params = fine;                                                                                                 \
        change;                                                                                                        \
        EXPECT(status, eesd_session_create(model, &params, &made));                                                    \
        CHECK(made == NULL);                                                                                           \
    } while (0)
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.device = "tpu");
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.device = "cuda:x");
    NO_SESSION(EESD_STATUS_DEVICE_FAILED, params.device = "cuda:4000");
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.slots = 0);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.slots = SIZE_MAX);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.threads = SIZE_MAX);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.context = SIZE_MAX);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.cache_tokens = SIZE_MAX);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.kv = "q4");
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, (params.kv = "f32", params.device = "cuda:0"));
    NO_SESSION(EESD_STATUS_INVALID_UTF8, params.kv = "\xff");
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.draft_max = 0);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.token_budget = 0);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.gpu_memory_fraction = NAN);
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.controller = "guess");
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.controller = "fixed:many");
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.draft = "exits");
    NO_SESSION(EESD_STATUS_INVALID_ARGUMENT, params.draft = "");
    EXPECT(EESD_STATUS_NOT_FOUND, eesd_cancel(session, 0));
    EXPECT(EESD_STATUS_NOT_FOUND, eesd_cancel(session, id));
    EXPECT(EESD_STATUS_NOT_FOUND, eesd_cancel(session, UINT64_MAX));
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_set_log_callback(NULL, NULL, 0));
    EXPECT(EESD_STATUS_TIMEOUT, eesd_next_event(session, 0, &event));
    EXPECT(EESD_STATUS_TIMEOUT, eesd_next_event(session, 5, &event));
}

struct callback {
    eesd_session *session;
    const eesd_model *model;
    size_t calls, cancel_after, refused;
    char text[4096];
    size_t length;
};

static int32_t count(const eesd_token *token, void *user_data) {
    struct callback *callback = user_data;
    CHECK(callback->length + token->text.length < sizeof callback->text);
    CHECK(token->text.data[token->text.length] == 0);
    memcpy(callback->text + callback->length, token->text.data, token->text.length);
    callback->length += token->text.length;
    return ++callback->calls == callback->cancel_after;
}

static int32_t call_back(const eesd_token *token, void *user_data) {
    struct callback *callback = user_data;
    eesd_request request = request_for(PROMPT, 4);
    eesd_session_info info;
    eesd_snapshot snapshot;
    eesd_event event = empty_event();
    uint64_t id = 0;
    info.struct_size = sizeof info;
    snapshot.struct_size = sizeof snapshot;
    EXPECT(EESD_STATUS_REENTRANT, eesd_generate(callback->session, &request, NULL, NULL, NULL));
    EXPECT(EESD_STATUS_REENTRANT, eesd_submit(callback->session, &request, &id));
    EXPECT(EESD_STATUS_REENTRANT, eesd_next_event(callback->session, -1, &event));
    EXPECT(EESD_STATUS_REENTRANT, eesd_cancel(callback->session, 1));
    EXPECT(EESD_STATUS_REENTRANT, eesd_session_get_info(callback->session, &info));
    EXPECT(EESD_STATUS_REENTRANT, eesd_session_get_snapshot(callback->session, &snapshot));
    EXPECT(EESD_STATUS_REENTRANT, eesd_session_free(callback->session));
    // The model is nobody's.
    size_t needed = 0;
    char text[64];
    OK(eesd_detokenize(callback->model, &token->id, 1, text, sizeof text, &needed));
    callback->refused++;
    return 0;
}

static void callbacks(eesd_model *model, eesd_session *session) {
    eesd_request request = request_for(PROMPT, 24);
    eesd_completion completion = empty_completion();
    struct callback whole = {session, model, 0, 0, 0, {0}, 0};
    OK(eesd_generate(session, &request, count, &whole, &completion));
    CHECK(whole.calls == completion.token_count && completion.token_count == 24);
    CHECK(whole.length == completion.text.length && memcmp(whole.text, completion.text.data, whole.length) == 0);
    CHECK(completion.finish == EESD_FINISH_LENGTH && completion.text.data[completion.text.length] == 0);
    CHECK(strcmp(eesd_finish_name(completion.finish), "EESD_FINISH_LENGTH") == 0);
    CHECK(strcmp(eesd_finish_name(99), "unknown finish") == 0);
    uint32_t tokens[24];
    memcpy(tokens, completion.tokens, sizeof tokens);

    // A callback that cancels gets no more, and the answer is what it was given.
    for (size_t after = 1; after <= 24; after += 7) {
        struct callback some = {session, model, 0, after, 0, {0}, 0};
        OK(eesd_generate(session, &request, count, &some, &completion));
        CHECK(some.calls == after && completion.token_count == after);
        CHECK(completion.finish == EESD_FINISH_CANCELLED);
        CHECK(memcmp(completion.tokens, tokens, after * sizeof *tokens) == 0);
        CHECK(completion.text.length == some.length && memcmp(completion.text.data, whole.text, some.length) == 0);
    }
    // The last token is the end, cancelled or not.
    struct callback last = {session, model, 0, 24, 0, {0}, 0};
    OK(eesd_generate(session, &request, count, &last, &completion));
    CHECK(last.calls == 24 && completion.token_count == 24 && completion.finish == EESD_FINISH_LENGTH);

    struct callback back = {session, model, 0, 0, 0, {0}, 0};
    request.max_tokens = 3;
    OK(eesd_generate(session, &request, call_back, &back, NULL));
    CHECK(back.refused == 3);
    OK(eesd_generate(session, &request, NULL, NULL, NULL)); // nobody listens
}

// Each setting against the answer without it.
static void forbidding(eesd_session *session) {
    eesd_completion completion = empty_completion();
    eesd_request request = request_for(PROMPT, 12);
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.token_count == 12);
    uint32_t free[12];
    memcpy(free, completion.tokens, sizeof free);

    request.suppress_tokens = free;
    request.suppress_token_count = 1;
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    for (size_t i = 0; i < completion.token_count; i++) {
        CHECK(completion.tokens[i] != free[0]);
    }

    const eesd_tokens run = {free + 1, 3};
    request = request_for(PROMPT, 12);
    request.bad_words = &run;
    request.bad_word_count = 1;
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(memcmp(completion.tokens, free, 3 * sizeof *free) == 0 && completion.tokens[3] != free[3]);

    request = request_for(PROMPT, 12);
    request.stop_token_ids = free + 5;
    request.stop_token_id_count = 1;
    request.ignore_end = 1;
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.finish == EESD_FINISH_END_TOKEN && completion.end_token == free[5]);
    CHECK(completion.token_count <= 6);
    request.min_tokens = 12;
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.finish == EESD_FINISH_LENGTH && completion.token_count == 12);
}

static void *wait_for_events(void *session) {
    eesd_event event = empty_event();
    return (void *)(intptr_t)eesd_next_event(session, -1, &event);
}

static int32_t slowly(const eesd_token *token, void *user_data) {
    (void)token;
    *(volatile int *)user_data = 1;
    return 0;
}

struct endless {
    eesd_session *session;
    volatile int begun;
};

static void *generate_endlessly(void *user_data) {
    struct endless *endless = user_data;
    eesd_status status = EESD_STATUS_OK;
    eesd_request request = request_for(PROMPT, 100);
    request.ignore_end = 1;
    while (status == EESD_STATUS_OK) {
        status = eesd_generate(endless->session, &request, slowly, (void *)&endless->begun, NULL);
    }
    return (void *)(intptr_t)status;
}

static void order_of_freeing(void) {
    eesd_model *model = bundled();
    eesd_session_params params = small_session();
    eesd_session *session = session_over(model, &params);
    eesd_request request = request_for(PROMPT, 4);
    CHECK(eesd_live_handles() >= 2);
    OK(eesd_model_free(model));
    // Freed twice, used after.
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_model_free(model));
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_tokenize(model, PROMPT, 3, 1, NULL, 0, NULL));
    // The session keeps its model.
    OK(eesd_generate(session, &request, NULL, NULL, NULL));

    // Freed while others wait and generate: they are told.
    struct endless endless = {session, 0};
    pthread_t waiting, generating;
    CHECK(pthread_create(&waiting, NULL, wait_for_events, session) == 0);
    CHECK(pthread_create(&generating, NULL, generate_endlessly, &endless) == 0);
    while (!endless.begun) {
        usleep(1000);
    }
    OK(eesd_session_free(session));
    void *status = NULL;
    CHECK(pthread_join(waiting, &status) == 0);
    CHECK((intptr_t)status == EESD_STATUS_CLOSED || (intptr_t)status == EESD_STATUS_INVALID_HANDLE);
    CHECK(pthread_join(generating, &status) == 0);
    CHECK((intptr_t)status == EESD_STATUS_CLOSED || (intptr_t)status == EESD_STATUS_INVALID_HANDLE);
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_session_free(session));
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_generate(session, &request, NULL, NULL, NULL));
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_cancel(session, 1));
    // A new handle is never an old one.
    eesd_model *again = bundled();
    CHECK(again != model);
    EXPECT(EESD_STATUS_INVALID_HANDLE, eesd_model_free(model));
    OK(eesd_model_free(again));
}

static size_t messages;

static void listen(int32_t level, const char *message, void *user_data) {
    CHECK(level >= EESD_LOG_LEVEL_ERROR && level <= EESD_LOG_LEVEL_INFO && message[0] != 0 && user_data == &messages);
    EXPECT(EESD_STATUS_REENTRANT, eesd_set_log_callback(NULL, NULL, EESD_LOG_LEVEL_INFO));
    messages++;
}

int main(void) {
    CHECK(eesd_abi_version() == EESD_ABI_VERSION && eesd_version()[0] != 0);
    CHECK(strcmp(eesd_last_error(), "") == 0 && strcmp(eesd_status_name(6), "EESD_STATUS_TIMEOUT") == 0);
    CHECK(strcmp(eesd_status_name(-1), "unknown status") == 0);
    OK(eesd_set_log_callback(listen, &messages, EESD_LOG_LEVEL_INFO));
    eesd_model *model = bundled();
    eesd_session_params params = small_session();
    eesd_session *session = session_over(model, &params);
    CHECK(messages == 2); // opened, made
    OK(eesd_set_log_callback(NULL, NULL, EESD_LOG_LEVEL_INFO));

    wrong_pointers(model, session);
    wrong_sizes(model, session);
    wrong_texts(model, session);
    wrong_numbers(model, session);
    callbacks(model, session);
    forbidding(session);
    order_of_freeing();

    // After all that, it answers.
    eesd_request request = request_for(PROMPT, 4);
    eesd_completion completion = empty_completion();
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.token_count == 4);
    OK(eesd_session_free(session));
    OK(eesd_model_free(model));
    CHECK(eesd_live_handles() == 0 && messages == 2);
    puts("misuse: every mistake is a status");
    return 0;
}
