// Eight threads, 500 requests, one session: each answer has the tokens that the request has alone. Half of the requests go
// by callback, half by events that another thread may have pulled. threads [REQUESTS].

#include "check.h"

#include <pthread.h>

enum { THREADS = 8, KINDS = 25, LENGTH = 12 };

static const char *const PROMPTS[] = {
    "def fibonacci(n):",
    "class Stack:\n    def push(self, item):",
    "import os\n\nfor name in os.listdir('.'):",
    "def test_addition():\n    assert",
    // So long that its answer goes on in another page of the cache.
    "def test_addition():\n    assert 1 + 1 == 2\n\ndef test_subtraction():\n    assert 3 - 1 == 2\n\n"
    "def test_multiplication():\n    assert 2 * 3 == 6\n",
};

// Prompts, each greedy or by one of four seeds, one of them with log-probabilities, one with a stop string.
static eesd_request request_of(int kind) {
    static const eesd_text line_break = {"\n\n", 2};
    eesd_request request = request_for(PROMPTS[kind % 5], LENGTH);
    const int seed = kind / 5;
    if (seed > 0) {
        request.temperature = 0.9;
        request.top_k = 50;
        request.has_seed = 1;
        request.seed = (uint64_t)seed;
    }
    request.logprobs = seed == 2 ? 2 : -1;
    request.stop = &line_break;
    request.stop_count = seed == 3;
    request.ignore_end = seed == 4;
    request.stream = kind % 2;
    return request;
}

struct answer {
    size_t count;
    uint32_t tokens[LENGTH];
};

static struct answer alone[KINDS];
static eesd_session *session;
static int requests;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int next_job, answered, submitted_kinds[1 << 16];

static int take_job(void) {
    pthread_mutex_lock(&lock);
    const int job = next_job < requests ? next_job++ : -1;
    pthread_mutex_unlock(&lock);
    return job;
}

static void compare(const eesd_completion *completion, int kind) {
    CHECK(completion->token_count == alone[kind].count);
    CHECK(memcmp(completion->tokens, alone[kind].tokens, alone[kind].count * sizeof(uint32_t)) == 0);
    CHECK((completion->logprobs != NULL) == (kind / 5 == 2 && completion->token_count > 0));
    pthread_mutex_lock(&lock);
    answered++;
    pthread_mutex_unlock(&lock);
}

static int32_t count(const eesd_token *token, void *user_data) {
    CHECK(token->id == alone[((int *)user_data)[1]].tokens[((int *)user_data)[0]]);
    ((int *)user_data)[0]++;
    return 0;
}

static void *client(void *unused) {
    int job, events_due = 0;
    while ((job = take_job()) >= 0 || events_due > 0) {
        const int kind = job % KINDS;
        if (job >= 0 && job % 2) {
            eesd_request request = request_of(kind);
            eesd_completion completion = empty_completion();
            int calls[2] = {0, kind};
            OK(eesd_generate(session, &request, count, calls, &completion));
            CHECK((size_t)calls[0] == completion.token_count);
            compare(&completion, kind);
        } else if (job >= 0) {
            eesd_request request = request_of(kind);
            uint64_t id = 0;
            // Before anybody can pull its events, its kind has to be known.
            pthread_mutex_lock(&lock);
            OK(eesd_submit(session, &request, &id));
            submitted_kinds[id % (1 << 16)] = kind;
            pthread_mutex_unlock(&lock);
            events_due++;
        }
        // As many last events as submissions, whoever's they are.
        while (events_due > 0 && (events_due > 3 || job < 0)) {
            eesd_event event = empty_event();
            OK(eesd_next_event(session, -1, &event));
            CHECK(event.kind != EESD_EVENT_KIND_FAILED);
            if (event.kind == EESD_EVENT_KIND_DONE) {
                pthread_mutex_lock(&lock);
                const int of = submitted_kinds[event.request % (1 << 16)];
                pthread_mutex_unlock(&lock);
                compare(&event.completion, of);
                events_due--;
            }
        }
    }
    return unused;
}

int main(int argc, char **argv) {
    requests = argc > 1 ? atoi(argv[1]) : 500;
    eesd_model *model = bundled();
    eesd_session_params params = small_session();
    // Too small for all of them at once, so that some are set aside and go on.
    params.cache_tokens = 320;
    session = session_over(model, &params);
    OK(eesd_model_free(model));

    for (int kind = 0; kind < KINDS; kind++) {
        eesd_request request = request_of(kind);
        eesd_completion completion = empty_completion();
        OK(eesd_generate(session, &request, NULL, NULL, &completion));
        CHECK(completion.token_count <= LENGTH);
        alone[kind].count = completion.token_count;
        memcpy(alone[kind].tokens, completion.tokens, completion.token_count * sizeof(uint32_t));
    }
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, client, NULL) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(answered == requests);
    eesd_snapshot snapshot;
    snapshot.struct_size = sizeof snapshot;
    OK(eesd_session_get_snapshot(session, &snapshot));
    CHECK(snapshot.totals.finished == (size_t)requests + KINDS && snapshot.totals.failed == 0);
    CHECK(snapshot.waiting + snapshot.prefilling + snapshot.decoding + snapshot.swapped_out == 0);
    CHECK(snapshot.free_pages == snapshot.pages);
    OK(eesd_session_free(session));
    CHECK(eesd_live_handles() == 0);
    printf("threads: %d requests from %d threads as alone; %zu rounds, %.2f side by side, %zu preempted\n", requests,
           THREADS, snapshot.totals.rounds, (double)snapshot.totals.sequences / (double)snapshot.totals.rounds,
           snapshot.totals.preemptions);
    return 0;
}
