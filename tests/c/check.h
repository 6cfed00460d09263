// What the tests from C share: a check that says what was found, and the common objects.

#ifndef CHECK_H
#define CHECK_H

#include <eesd.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s does not hold; last error: %s\n", __FILE__, __LINE__, #condition,               \
                    eesd_last_error());                                                                                \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

// The call returns this status.
#define EXPECT(status, call)                                                                                           \
    do {                                                                                                               \
        eesd_status found_ = (call);                                                                                   \
        if (found_ != (status)) {                                                                                      \
            fprintf(stderr, "%s:%d: %s is %s, expected %s; last error: %s\n", __FILE__, __LINE__, #call,               \
                    eesd_status_name(found_), eesd_status_name(status), eesd_last_error());                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define OK(call) EXPECT(EESD_STATUS_OK, call)

static inline eesd_model *bundled(void) {
    eesd_model_params params;
    eesd_model *model = NULL;
    OK(eesd_model_params_default(&params, sizeof params));
    OK(eesd_model_load(&params, &model));
    return model;
}

// Small, so that a thousand of them take no hour: few tokens fit, and a thread is enough.
static inline eesd_session_params small_session(void) {
    eesd_session_params params;
    OK(eesd_session_params_default(&params, sizeof params));
    params.threads = 1;
    params.context = 128;
    params.slots = 8;
    return params;
}

static inline eesd_session *session_over(const eesd_model *model, const eesd_session_params *params) {
    eesd_session *session = NULL;
    OK(eesd_session_create(model, params, &session));
    return session;
}

static inline eesd_request request_for(const char *prompt, size_t max_tokens) {
    eesd_request request;
    OK(eesd_request_default(NULL, &request, sizeof request));
    request.prompt = prompt;
    request.prompt_length = prompt ? strlen(prompt) : 0;
    request.max_tokens = max_tokens;
    return request;
}

static inline eesd_completion empty_completion(void) {
    eesd_completion completion;
    memset(&completion, 0, sizeof completion);
    completion.struct_size = sizeof completion;
    return completion;
}

static inline eesd_event empty_event(void) {
    eesd_event event;
    memset(&event, 0, sizeof event);
    event.struct_size = sizeof event;
    return event;
}

#endif
