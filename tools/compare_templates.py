#!/usr/bin/env python3
"""Renders chat templates with Hugging Face transformers and with eesd, and tells where the two differ.

For every *.jinja file of a folder, conversations of many kinds are rendered twice: by `apply_chat_template` of
transformers, and by examples/render_chat.rs. Both must give the same text, or both must refuse.

    pip install transformers jinja2 tokenizers
    cargo build --release --example render_chat
    python3 tools/compare_templates.py FOLDER

Prints a table of templates, and exits with 1 where there is a difference; --show N prints the first N of them in full.
"""

import argparse
import difflib
import json
import logging
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPECIALS = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather \"now\" & here, in °C <or °F>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "Which days"},
            },
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "description": "The time", "parameters": {"type": "object", "properties": {}}}}


def call(name, arguments, identity):
    return {"type": "function", "id": identity, "function": {"name": name, "arguments": arguments}}


def message(role, content, **others):
    return {"role": role, "content": content, **others}


ASKED = message("user", "How warm is it in Zürich?")
CALLED = message("assistant", "", tool_calls=[call("get_weather", {"city": "Zürich", "days": [1, 2], "limit": 1.0, "now": True}, "callabcde")])
RESULT = message("tool", "{\"temperature\": 21.5}", name="get_weather", tool_call_id="callabcde")
THOUGHT = message("assistant", "4", reasoning_content="Two and two\nare four.")

CONVERSATIONS = {
    "plain": {"messages": [message("user", "Hello!")]},
    "system": {"messages": [message("system", "You are terse."), message("user", "Hello!")]},
    "turns": {"messages": [message("system", "You are terse."), message("user", "2+2?"), message("assistant", "4"), message("user", "And 3+3?")]},
    "no system": {"messages": [message("user", " a \n"), message("assistant", "\n b "), message("user", "c"), message("assistant", "d"), message("user", "e")]},
    "tools": {"messages": [message("system", "Use tools."), ASKED], "tools": [WEATHER, TIME]},
    "calls": {"messages": [ASKED, CALLED, RESULT], "tools": [WEATHER, TIME]},
    "answered": {"messages": [message("system", "s"), ASKED, CALLED, RESULT, message("assistant", "21.5 °C."), message("user", "Thanks")], "tools": [WEATHER]},
    "null content": {"messages": [ASKED, {**CALLED, "content": None}, RESULT]},
    "reasoning": {"messages": [message("user", "2+2?"), THOUGHT, message("user", "And 3+3?")]},
    "thinking on": {"messages": [message("user", "2+2?")], "arguments": {"enable_thinking": True}},
    "thinking off": {"messages": [message("user", "2+2?"), THOUGHT, message("user", "More?")], "arguments": {"enable_thinking": False}},
    "think tags": {"messages": [message("user", "2+2?"), message("assistant", "<think>\nhm\n</think>\n\n4"), message("user", "And 3+3?")]},
    "parts": {"messages": [message("user", [{"type": "text", "text": "What is this?"}])]},
    "several parts": {"messages": [message("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])]},
    "system parts": {"messages": [message("system", [{"type": "text", "text": "Be terse."}]), message("user", [{"type": "text", "text": "What is this?"}])]},
    "empty content": {"messages": [message("user", ""), message("assistant", ""), message("user", "x")]},
    "unicode": {"messages": [message("user", "naïve 😀 \u2028 <b>&amp;</b> 'a' \"b\" {{ x }} {% y %} \\n \t\u0000"), message("assistant", "日本語"), message("user", "ok")]},
    "assistant last": {"messages": [message("user", "Say yes."), message("assistant", "Yes")]},
    "odd roles": {"messages": [message("developer", "Be terse."), message("user", "x"), message("narrator", "y")]},
    "two users": {"messages": [message("user", "a"), message("user", "b")]},
    "no prompt": {"messages": [message("user", "a"), message("assistant", "b")], "arguments": {"add_generation_prompt": False}},
    "documents": {"messages": [ASKED], "documents": [{"title": "Weather", "text": "It is warm."}]},
}


def reference_tokenizer():
    import tokenizers
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({token: i for i, token in enumerate(SPECIALS.values())}, "<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIALS)


def join_parts(messages):
    """The parts of contents put together, as for a template that does not know of parts."""

    def joined(content):
        return "\n".join(part["text"] for part in content) if isinstance(content, list) else content

    return [{**message, "content": joined(message["content"])} for message in messages]


def reference(tokenizer, template, chat):
    """The text by transformers, or what it raised."""

    def render(messages):
        others = {"add_generation_prompt": True, **chat.get("arguments", {})}
        return tokenizer.apply_chat_template(
            messages,
            tools=chat.get("tools"),
            documents=chat.get("documents"),
            chat_template=template,
            tokenize=False,
            **others,
        )

    messages = chat["messages"]
    texts = [part["text"] for message in messages if isinstance(message["content"], list) for part in message["content"]]
    try:
        if texts:
            try:
                text = render(messages)
                if all(part in text for part in texts) and "'type'" not in text and '"type"' not in text:
                    return {"prompt": text}
            except Exception:
                pass
            messages = join_parts(messages)
        return {"prompt": render(messages)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def ours(program, lines):
    run = subprocess.run([program], input="\n".join(map(json.dumps, lines)), capture_output=True, text=True, check=True)
    # Not splitlines(), which also splits at line separators within texts.
    answers = [json.loads(line) for line in run.stdout.split("\n") if line]
    assert len(answers) == len(lines), run.stderr
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with *.jinja files")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/examples/render_chat")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N differences")
    args = parser.parse_args()

    templates = sorted(args.folder.glob("*.jinja"))
    if not templates:
        parser.error(f"{args.folder}: no *.jinja files")
    tokenizer = reference_tokenizer()
    shown = 0
    sums = dict.fromkeys(["equal", "both refuse", "different"], 0)
    width = max(len(path.name) for path in templates)
    print(f"{'template':{width}}  equal  both refuse  different")
    for path in templates:
        text = path.read_text()
        lines = [{"template": str(path), "specials": SPECIALS, **chat} for chat in CONVERSATIONS.values()]
        counts, differing = dict.fromkeys(sums, 0), []
        for (name, chat), answer in zip(CONVERSATIONS.items(), ours(args.program, lines)):
            expected = reference(tokenizer, text, chat)
            if "error" in expected and "error" in answer:
                counts["both refuse"] += 1
            elif expected == answer:
                counts["equal"] += 1
            else:
                counts["different"] += 1
                differing.append((name, expected, answer))
        for outcome, count in counts.items():
            sums[outcome] += count
        names = ", ".join(name for name, _, _ in differing)
        print(f"{path.name:{width}}  {counts['equal']:5}  {counts['both refuse']:11}  {counts['different']:9}  {names}")
        for name, expected, answer in differing:
            if shown < args.show:
                shown += 1
                show(name, expected, answer)
    total = len(templates) * len(CONVERSATIONS)
    print(f"{len(templates)} templates, {total} conversations: " + ", ".join(f"{count} {outcome}" for outcome, count in sums.items()))
    sys.exit(sums["different"] > 0)


def show(name, expected, answer):
    print(f"--- {name}")
    if "prompt" in expected and "prompt" in answer:
        a, b = (side["prompt"].split("\n") for side in (expected, answer))
        print("\n".join(difflib.unified_diff(a, b, "transformers", "eesd", lineterm="", n=1)))
    else:
        print(f"transformers: {expected}\neesd: {answer}")


if __name__ == "__main__":
    main()
