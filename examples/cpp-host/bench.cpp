// A minimal benchmark: bench [REPETITIONS] [TOKENS]. Plain decoding and the default controller, in turns.

#include <eesd.hpp>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>

namespace {

double seconds(eesd::Session &session, const eesd::Request &request, std::vector<std::uint32_t> &tokens) {
    const auto begun = std::chrono::steady_clock::now();
    tokens = session.generate(request, [](const eesd::Token &) { return true; }).tokens;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

} // namespace

int main(int argc, char **argv) {
    const std::size_t repetitions = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 5;
    const std::size_t length = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 128;
    try {
        const eesd::Model model;
        eesd::SessionParams params;
        params.plain.slots = 1;
        params.plain.threads = 1;
        eesd::Session session(model, params);
        eesd::Request drafting(model, std::string("def fibonacci(n):"));
        drafting.plain.max_tokens = length;
        eesd::Request plain = drafting;
        plain.plain.speculate = 0;

        std::vector<std::uint32_t> expected, tokens;
        seconds(session, plain, expected); // also warms up
        double fastest_plain = 1e9, fastest_drafting = 1e9;
        for (std::size_t i = 0; i < repetitions; i++) {
            fastest_plain = std::min(fastest_plain, seconds(session, plain, tokens));
            fastest_drafting = std::min(fastest_drafting, seconds(session, drafting, tokens));
            if (tokens != expected) {
                std::cerr << "error: drafts changed the answer\n";
                return EXIT_FAILURE;
            }
        }
        const double count = double(expected.size());
        std::cout << session.info().device << ", " << session.info().controller << ": plain " << count / fastest_plain
                  << " tok/s, drafting " << count / fastest_drafting << " tok/s\n";
        return EXIT_SUCCESS;
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
