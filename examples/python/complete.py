"""Continues a text as it comes, and then five side by side: complete.py [MODEL]."""

import sys

import eesd

PROMPTS = [
    "def fibonacci(n):",
    "class Stack:\n    def push(self, item):",
    "import os\n\nfor name in os.listdir('.'):",
    "def test_addition():\n    assert",
    "for i in range(10):\n    print(",
]


def main() -> None:
    with eesd.Model(sys.argv[1] if len(sys.argv) > 1 else None) as model:
        stream = model.stream(PROMPTS[0], max_tokens=48)
        for token in stream:
            print(token.text, end="", flush=True)
        stats = stream.answer().stats
        print(f"\n\n{stats.generated} tokens, {stats.tokens_per_second:.0f} tok/s, of them {stats.accepted} drafted")

        for prompt, answer in zip(PROMPTS, model.map(PROMPTS, max_tokens=12)):
            print(repr(prompt + answer.text))


if __name__ == "__main__":
    main()
