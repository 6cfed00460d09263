// The tokens of one answer, as eesd-run writes them in JSON: ids PROMPT MAX_TOKENS TEMPERATURE SEED CONTROLLER, and QUANTIZE
// and KV where they are not the defaults.

#include "check.h"

int main(int argc, char **argv) {
    CHECK(argc == 6 || argc == 8);
    eesd_model_params of_model;
    eesd_model *model = NULL;
    OK(eesd_model_params_default(&of_model, sizeof of_model));
    of_model.quantize = argc == 8 ? argv[6] : NULL;
    OK(eesd_model_load(&of_model, &model));
    eesd_session_params params = small_session();
    params.context = 0;
    params.slots = 1;
    params.controller = argv[5];
    params.kv = argc == 8 ? argv[7] : NULL;
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
