// Streams one answer: stream [PROMPT] [MODEL_FOLDER].

#include <eesd.hpp>

#include <cstdlib>
#include <iostream>

int main(int argc, char **argv) {
    const std::string prompt = argc > 1 ? argv[1] : "def fibonacci(n):";
    try {
        const eesd::Model model(argc > 2 ? std::optional<std::string>(argv[2]) : std::nullopt);
        eesd::SessionParams params;
        params.plain.slots = 1;
        params.plain.threads = 1;
        eesd::Session session(model, params);

        eesd::Request request(model, prompt);
        request.plain.max_tokens = 48;
        const eesd::Answer answer = session.generate(request, [](const eesd::Token &token) {
            std::cout << token.text << std::flush;
            return true;
        });

        const eesd_stats &stats = answer.stats;
        std::cerr << '\n'
                  << answer.tokens.size() << " tokens, " << stats.tokens_per_second << " tok/s, " << stats.rounds
                  << " rounds, mean accepted length " << stats.mean_accepted_length << '\n';
        return EXIT_SUCCESS;
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
