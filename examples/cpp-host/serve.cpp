// Serves many prompts from threads over one session: serve [THREADS] [REQUESTS].
//
// Client threads hand their prompts in and wait for their own answers; the session works on them side by side. A thread of
// its own watches. Every answer is checked against the one that the same request has alone.

#include <eesd.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

namespace {

const char *const PROMPTS[] = {
    "def fibonacci(n):",
    "class Stack:\n    def push(self, item):",
    "import os\n\nfor name in os.listdir('.'):",
    "def test_addition():\n    assert",
    "for i in range(10):\n    print(",
};
constexpr std::size_t KINDS = 20; // of requests: prompts, each greedy or by one of three seeds

eesd::Request request(const eesd::Model &model, std::size_t kind) {
    eesd::Request request(model, PROMPTS[kind % 5]);
    request.plain.max_tokens = 12;
    if (kind >= 5) {
        request.plain.temperature = 0.8;
        request.seed(kind / 5);
    }
    return request;
}

} // namespace

int main(int argc, char **argv) {
    const std::size_t clients = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 4;
    const std::size_t requests = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 40;
    try {
        const eesd::Model model;
        eesd::SessionParams params;
        params.plain.slots = clients;
        params.plain.context = 256;
        params.plain.threads = 1;
        eesd::Session session(model, params);

        std::vector<std::vector<std::uint32_t>> alone;
        for (std::size_t kind = 0; kind < KINDS; kind++) {
            alone.push_back(session.generate(request(model, kind)).tokens);
        }

        std::atomic<std::size_t> next{0}, wrong{0}, tokens{0};
        const auto begun = std::chrono::steady_clock::now();
        std::vector<std::thread> threads;
        for (std::size_t client = 0; client < clients; client++) {
            threads.emplace_back([&] {
                try {
                    for (std::size_t job; (job = next++) < requests;) {
                        const eesd::Answer answer = session.generate(request(model, job % KINDS));
                        tokens += answer.tokens.size();
                        wrong += answer.tokens != alone[job % KINDS];
                    }
                } catch (const std::exception &error) {
                    wrong++;
                    std::cerr << "error: " << error.what() << '\n';
                }
            });
        }
        std::size_t most = 0;
        while (next < requests) {
            const eesd_snapshot now = session.snapshot();
            most = std::max(most, now.decoding + now.prefilling);
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
        std::cout << requests << " requests from " << clients << " threads in " << took.count() << " s, "
                  << double(tokens) / took.count() << " tok/s together, at most " << most << " side by side, " << wrong
                  << " unlike alone\n";
        return wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
