// Requests in JSON: what lines for `eesd-run generate` can say, hosts can; and what is wrong in them is named.

#include "check.h"

#include <stdbool.h>
#include <unistd.h>

static const char TEMPLATE[] = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}def {{ name }}(";

static eesd_request json_request(const char *json, size_t most) {
    eesd_request request;
    OK(eesd_request_default(NULL, &request, sizeof request));
    request.json = json;
    request.json_length = strlen(json);
    request.max_tokens = most;
    return request;
}

static void refused(eesd_session *session, const char *json, eesd_status status, const char *part) {
    const eesd_request request = json_request(json, 4);
    uint64_t id = 0;
    EXPECT(status, eesd_generate(session, &request, NULL, NULL, NULL));
    CHECK(strstr(eesd_last_error(), part) != NULL);
    EXPECT(status, eesd_submit(session, &request, &id));
}

// The text that a conversation becomes; to be freed.
static char *written(eesd_model *model, const char *json) {
    size_t needed = 0;
    EXPECT(EESD_STATUS_BUFFER_TOO_SMALL, eesd_apply_chat_template_json(model, json, strlen(json), NULL, 0, &needed));
    char *text = malloc(needed);
    CHECK(text != NULL);
    OK(eesd_apply_chat_template_json(model, json, strlen(json), text, needed, &needed));
    return text;
}

static void conversations(eesd_model *model, eesd_session *session) {
    const char *parts = "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"hi\"}]}]}";
    char *text = written(model, parts);
    CHECK(strcmp(text, "# user: hi\ndef f(") == 0);
    eesd_completion plain = empty_completion(), json = empty_completion();
    // The template has written what a text begins with.
    uint32_t prompt[64], tokens[8];
    size_t length = 0;
    OK(eesd_tokenize(model, text, strlen(text), 0, prompt, 64, &length));
    eesd_request as_tokens = request_for(NULL, 8);
    as_tokens.tokens = prompt;
    as_tokens.token_count = length;
    OK(eesd_generate(session, &as_tokens, NULL, NULL, &plain));
    const size_t count = plain.token_count;
    CHECK(count > 0 && count <= 8);
    memcpy(tokens, plain.tokens, count * sizeof *tokens);
    const eesd_request as_json = json_request("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"id\": 7}", 8);
    OK(eesd_generate(session, &as_json, NULL, NULL, &json));
    CHECK(json.token_count == count && memcmp(json.tokens, tokens, count * sizeof *tokens) == 0);
    free(text);
    const char *named = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"chat_template_kwargs\": {\"name\": \"g\"}}";
    text = written(model, named);
    CHECK(strcmp(text, "# user: x\ndef g(") == 0);
    free(text);
    size_t needed = 0;
    const char *none = "{\"prompt\": \"x\"}";
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_apply_chat_template_json(model, none, strlen(none), NULL, 0, &needed));
}

static void settings(eesd_session *session) {
    // Over the fields, and one of them alone.
    eesd_completion completion = empty_completion();
    eesd_request request = json_request("{\"prompt\": \"def f(x):\", \"max_tokens\": 3}", 100);
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.token_count == 3 && completion.finish == EESD_FINISH_LENGTH);
    request = request_for("def f(x):", 100);
    request.json = "{\"max_tokens\": 2}";
    request.json_length = strlen(request.json);
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.token_count == 2);

    // A schema that leaves one answer. Whether its grammar drafts is decided by times; what it drafts is right.
    request = json_request("{\"prompt\": \"x = \", \"json_schema\": {\"const\": {\"name\": \"fibonacci\"}}}", 100);
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.finish == EESD_FINISH_COMPLETE && strstr(completion.text.data, "\"fibonacci\"") != NULL);
    CHECK(strcmp(eesd_finish_name(completion.finish), "EESD_FINISH_COMPLETE") == 0);
    const eesd_source_stats *grammar = &completion.stats.by_source[EESD_SOURCE_GRAMMAR - 1];
    CHECK(grammar->drafted == grammar->accepted);
    CHECK(strcmp(eesd_source_name(EESD_SOURCE_GRAMMAR), "grammar") == 0);

    // (With numbers in a schema valgrind takes the optimiser's early look at an option's value, in llguidance, for a mistake.)
    request = json_request("{\"prompt\": \"x = \", \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": "
                           "{\"enum\": [\"left\", \"right\"]}}}}", 12);
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(strcmp(completion.text.data, "\"left\"") == 0 || strcmp(completion.text.data, "\"right\"") == 0);
    // Other settings leave no token that the schema allows.
    request = json_request("{\"prompt\": \"x = \", \"grammar\": \"start: \\\"a\\\"\", \"bad_words\": [\"a\"]}", 12);
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_generate(session, &request, NULL, NULL, NULL));
    CHECK(strstr(eesd_last_error(), "bad_words") != NULL);

    // Several answers: their seeds follow each other.
    uint64_t ids[3] = {0};
    size_t needed = 0;
    request = json_request("{\"prompt\": \"def f(x):\", \"n\": 3, \"temperature\": 1, \"seed\": 5}", 4);
    request.stream = 0;
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_submit(session, &request, ids));
    EXPECT(EESD_STATUS_BUFFER_TOO_SMALL, eesd_submit_n(session, &request, ids, 2, &needed));
    CHECK(needed == 3 && ids[0] == 0);
    OK(eesd_submit_n(session, &request, ids, 3, &needed));
    CHECK(ids[1] == ids[0] + 1 && ids[2] == ids[0] + 2);
    for (int i = 0; i < 3; i++) {
        eesd_event event = empty_event();
        OK(eesd_next_event(session, -1, &event));
        CHECK(event.kind == EESD_EVENT_KIND_DONE);
        CHECK(event.completion.has_seed && event.completion.seed == 5 + (event.request - ids[0]));
    }
}

static void mistakes(eesd_session *session) {
    const eesd_status wrong = EESD_STATUS_INVALID_ARGUMENT;
    refused(session, "{\"prompt\": \"x\", \"heat\": 1}", wrong, "\"heat\"");
    refused(session, "{\"prompt\": \"x\", \"temperature\": \"hot\"}", wrong, "\"temperature\"");
    refused(session, "{\"prompt\": \"x\",", wrong, "column 15");
    refused(session, "{\"messages\": [{\"role\": 1}]}", wrong, "\"messages\"");
    refused(session, "{\"prompt\": \"x\", \"response_format\": {\"type\": \"poem\"}}", wrong, "\"response_format\"");
    refused(session, "[1]", wrong, "json: ");
    refused(session, "", wrong, "json");
    refused(session, "{}", wrong, "no \"messages\" or \"prompt\"");
    refused(session, "{\"prompt\": \"x\", \"n\": 2}", wrong, "eesd_submit_n");
    refused(session, "{\"prompt\": \"x\", \"n\": 100000}", wrong, "\"n\"");
    refused(session, "{\"prompt\": \"x\", \"json_schema\": {\"type\": \"nothing\"}}", wrong, "\"json_schema\"");
    refused(session, "{\"prompt\": \"x\", \"grammar\": \"start: \"}", wrong, "\"grammar\"");
    refused(session, "{\"prompt\": \"\xff\"}", EESD_STATUS_INVALID_UTF8, "byte");
    eesd_request both = request_for("x", 4);
    both.json = "{\"prompt\": \"y\"}";
    both.json_length = strlen(both.json);
    EXPECT(wrong, eesd_generate(session, &both, NULL, NULL, NULL));
    CHECK(strstr(eesd_last_error(), "expected one of them") != NULL);
    eesd_request nowhere = json_request("{}", 4);
    nowhere.json = NULL;
    EXPECT(wrong, eesd_generate(session, &nowhere, NULL, NULL, NULL));
    EXPECT(wrong, eesd_submit_n(session, &both, NULL, 0, NULL));
}

static long size_of(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    const long size = ftell(file);
    fclose(file);
    return size;
}

static bool same_bytes(const char *a, const char *b) {
    FILE *one = fopen(a, "rb"), *other = fopen(b, "rb");
    CHECK(one != NULL && other != NULL);
    int found, expected;
    do {
        found = fgetc(one);
        expected = fgetc(other);
    } while (found == expected && found != EOF);
    fclose(one);
    fclose(other);
    return found == expected;
}

static void kept_texts(eesd_model *model, const char *file) {
    eesd_session_params params = small_session();
    params.draft = "lookup,shared";
    eesd_session *session = session_over(model, &params);
    eesd_request request = request_for("def fibonacci(n):", 24);
    eesd_completion completion = empty_completion();
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    OK(eesd_session_write_draft_index(session, file));
    EXPECT(EESD_STATUS_IO_FAILED, eesd_session_write_draft_index(session, "/nowhere/at/all/texts"));
    OK(eesd_session_free(session));
    params.draft_index = file;
    session = session_over(model, &params);
    // Whether they draft is decided by times; that they are there is seen when they are written again.
    char again[64];
    snprintf(again, sizeof again, "%s-again", file);
    OK(eesd_session_write_draft_index(session, again));
    CHECK(size_of(file) > 0 && same_bytes(file, again));
    unlink(again);
    OK(eesd_session_free(session));
    params.draft = "lookup";
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_session_create(model, &params, &session));
    CHECK(strstr(eesd_last_error(), "draft_index") != NULL);
}

int main(void) {
    char file[] = "eesd-template-XXXXXX";
    const int descriptor = mkstemp(file);
    CHECK(descriptor >= 0 && write(descriptor, TEMPLATE, sizeof TEMPLATE - 1) == (ssize_t)(sizeof TEMPLATE - 1));
    close(descriptor);
    eesd_model_params params;
    eesd_model *model = NULL;
    OK(eesd_model_params_default(&params, sizeof params));
    params.chat_template = file;
    params.template_arguments = "[1]";
    EXPECT(EESD_STATUS_INVALID_ARGUMENT, eesd_model_load(&params, &model));
    CHECK(strstr(eesd_last_error(), "template_arguments") != NULL);
    params.template_arguments = "{\"name\": \"f\"}";
    OK(eesd_model_load(&params, &model));
    const eesd_session_params small = small_session();
    eesd_session *session = session_over(model, &small);
    conversations(model, session);
    settings(session);
    mistakes(session);
    OK(eesd_session_free(session));
    kept_texts(model, file);
    OK(eesd_model_free(model));
    unlink(file);
    CHECK(eesd_live_handles() == 0);
    puts("requests: all well");
    return 0;
}
