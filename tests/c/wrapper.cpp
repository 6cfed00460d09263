// Requests in JSON through eesd.hpp: one answer, several, and what is wrong.

#include <eesd.hpp>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::cerr << __FILE__ << ':' << __LINE__ << ": " #condition " does not hold\n";                            \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

int main() {
    const eesd::Model model;
    eesd::SessionParams params;
    params.plain.threads = 1;
    params.plain.context = 128;
    params.draft = "exit,lookup,shared";
    eesd::Session session(model, params);

    eesd::Request several(model, eesd::Json{R"({"prompt": "def f(x):", "n": 3, "temperature": 1, "seed": 5, "max_tokens": 6})"});
    const std::vector<std::uint64_t> ids = session.submit_n(several);
    CHECK(ids.size() == 3);
    std::map<std::uint64_t, std::vector<std::uint32_t>> answers;
    while (answers.size() < ids.size()) {
        const std::optional<eesd::Event> event = session.next_event(std::chrono::milliseconds(-1));
        CHECK(event && !event->error);
        if (event->answer) {
            answers[event->request] = event->answer->tokens;
        } else {
            CHECK(event->drafted == (event->source != EESD_SOURCE_NONE));
        }
    }
    for (std::size_t i = 0; i < ids.size(); i++) {
        eesd::Request alone(model, "def f(x):");
        alone.json = R"({"temperature": 1, "max_tokens": 6})";
        alone.seed(5 + i);
        CHECK(session.generate(alone).tokens == answers[ids[i]]);
    }

    try {
        session.generate(eesd::Request(model, eesd::Json{R"({"prompt": "x", "heat": 1})"}));
        CHECK(!"it was taken");
    } catch (const eesd::Error &error) {
        CHECK(error.status() == EESD_STATUS_INVALID_ARGUMENT && std::string(error.what()).find("heat") != std::string::npos);
    }
    std::cout << "wrapper: all well\n";
    return 0;
}
