// A conversation, a line at a time: chat MODEL [CHAT_TEMPLATE_FILE]. Drafted words are underlined.

#include <eesd.hpp>

#include <cstdlib>
#include <iostream>

int main(int argc, char **argv) {
    if (argc < 2) {
        std::cerr << "usage: chat MODEL [CHAT_TEMPLATE_FILE]; an empty MODEL is the small one inside the library\n";
        return EXIT_FAILURE;
    }
    try {
        const std::string folder = argv[1];
        eesd::ChatSettings written;
        if (argc > 2) {
            written.template_file = argv[2];
        }
        const auto inside = folder.empty() ? std::nullopt : std::optional(folder);
        const eesd::Model model(inside, {}, std::nullopt, written);
        eesd::SessionParams params;
        params.plain.slots = 1;
        eesd::Session session(model, params);

        std::vector<eesd::Message> messages;
        for (std::string line; std::cout << "> " << std::flush && std::getline(std::cin, line);) {
            messages.push_back({"user", line});
            // The template has written what a text begins with.
            eesd::Request request(model, model.tokenize(model.apply_chat_template(messages), false));
            const eesd::Answer answer = session.generate(request, [](const eesd::Token &token) {
                const bool underlined = token.source != EESD_SOURCE_NONE && !token.text.empty();
                std::cout << (underlined ? "\033[4m" : "") << token.text << (underlined ? "\033[0m" : "") << std::flush;
                return true;
            });
            std::cout << '\n';
            messages.push_back({"assistant", answer.text});
        }
        return EXIT_SUCCESS;
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
