// A thousand sessions made, used by callback and by events, cancelled and freed: memory stays where it was.
// cycles [CYCLES]; prints the resident memory on the way.

#include "check.h"

#include <unistd.h>

static long resident_kib(void) {
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &pages, &resident) == 2);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int32_t cancel_at_third(const eesd_token *token, void *user_data) {
    (void)token;
    return ++*(int *)user_data == 3;
}

static void cycle(eesd_model *shared, int number) {
    // Every tenth one opens its own model too, and frees it before the session.
    eesd_model *own = number % 10 == 0 ? bundled() : NULL;
    eesd_session_params params = small_session();
    params.slots = 2;
    eesd_session *session = session_over(own ? own : shared, &params);
    OK(eesd_model_free(own));

    eesd_request request = request_for("def fibonacci(n):", 6);
    request.logprobs = 3;
    eesd_completion completion = empty_completion();
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    CHECK(completion.token_count == 6 && completion.logprobs != NULL && completion.logprobs[5].top_count == 3);
    int calls = 0;
    OK(eesd_generate(session, &request, cancel_at_third, &calls, &completion));
    CHECK(completion.token_count == 3 && completion.finish == EESD_FINISH_CANCELLED);

    uint64_t first = 0, second = 0;
    request.max_tokens = 60;
    request.ignore_end = 1;
    OK(eesd_submit(session, &request, &first));
    OK(eesd_submit(session, &request, &second));
    OK(eesd_cancel(session, second));
    eesd_event event = empty_event();
    do {
        OK(eesd_next_event(session, -1, &event));
    } while (event.kind == EESD_EVENT_KIND_TOKEN);
    CHECK(event.kind == EESD_EVENT_KIND_DONE);
    // Freed with a request and its events on the way.
    OK(eesd_session_free(session));
}

int main(int argc, char **argv) {
    const int cycles = argc > 1 ? atoi(argv[1]) : 1000;
    const int warm = cycles / 10;
    eesd_model *model = bundled();
    long before = 0;
    for (int i = 0; i < cycles; i++) {
        if (i == warm) {
            before = resident_kib();
        }
        cycle(model, i);
    }
    OK(eesd_model_free(model));
    CHECK(eesd_live_handles() == 0);
    const long after = resident_kib();
    printf("cycles: %d, resident memory %ld KiB after %d of them, %ld KiB at the end\n", cycles, before, warm, after);
    // A leak of a small session's cache alone would be a hundred times this.
    CHECK(cycles < 100 || after - before < 8 * 1024);
    return 0;
}
