// The tokens of one answer, as eesd-run writes them in JSON: ids PROMPT MAX_TOKENS TEMPERATURE SEED CONTROLLER.

#include "check.h"

int main(int argc, char **argv) {
    CHECK(argc == 6);
    eesd_model *model = bundled();
    eesd_session_params params = small_session();
    params.context = 0;
    params.slots = 1;
    params.controller = argv[5];
    eesd_session *session = session_over(model, &params);
    eesd_request request;
    OK(eesd_request_default(model, &request, sizeof request));
    request.prompt = argv[1];
    request.prompt_length = strlen(argv[1]);
    request.max_tokens = strtoul(argv[2], NULL, 10);
    request.temperature = strtod(argv[3], NULL);
    request.has_seed = 1;
    request.seed = strtoull(argv[4], NULL, 10);
    eesd_completion completion = empty_completion();
    OK(eesd_generate(session, &request, NULL, NULL, &completion));
    for (size_t i = 0; i < completion.token_count; i++) {
        printf("%c%u", i ? ',' : '[', completion.tokens[i]);
    }
    puts("]");
    OK(eesd_session_free(session));
    OK(eesd_model_free(model));
    return 0;
}
