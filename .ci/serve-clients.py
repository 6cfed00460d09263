"""Asks the server with curl and the `openai` package: see .ci/serve-clients.

Every field of the table in docs/serving.md has a check here: that it changes the answer as it should, or that it is refused by
its name. A field that the table has and this file does not, or the other way round, fails.
"""

import json
import re
import subprocess
import tempfile
import time
import urllib.request

import openai

from serve_server import ROOT, SMOLLM2, served

KEY = "secret"
PROMPT = "def fibonacci(n):\n"
USER = [{"role": "user", "content": "def f(x):"}]
TEMPLATE = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}{% if loud %}LOUD{% endif %}\
{{ documents | tojson if documents else '' }}{{ tools | tojson if tools else '' }}"

# What the model is to copy, so that even a small one calls a tool.
TOOL_TEMPLATE = """{%- if tools %}You have these tools: {{ tools | tojson }}

{% endif %}Question: What is the weather in Rome?
Answer: <tool_call>
{"name": "weather", "arguments": {"city": "Rome"}}
</tool_call>

Question: What is the weather in Madrid?
Answer: <tool_call>
{"name": "weather", "arguments": {"city": "Madrid"}}
</tool_call>

Question: {{ messages[-1].content }}
Answer:"""
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def text(client, **fields):
    """The answer to a prompt, 24 tokens long where nothing else is said."""
    fields = {"prompt": PROMPT, "max_tokens": 24, "extra_body": {"ignore_eos": True}} | fields
    return client.completions.create(model="tried", **fields)


def chat(client, **fields):
    fields = {"messages": USER, "max_tokens": 24, "extra_body": {"ignore_eos": True}} | fields
    return client.chat.completions.create(model="tried", **fields)


def said(answer):
    choice = answer.choices[0]
    return choice.text if hasattr(choice, "text") else choice.message.content


def own(client, **fields):
    """The answer with fields that are this server's own."""
    return said(text(client, extra_body={"ignore_eos": True} | fields))


def refused(ask, field, fragment=""):
    """The request is refused, and the field is to blame."""
    try:
        ask()
    except openai.BadRequestError as error:
        assert error.param == field and fragment in error.message, (field, error.message)
    else:
        raise AssertionError(f"{field} was not refused")


def ids_of(client, content):
    """The tokens of a text."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    place = str(client.base_url).removesuffix("/v1/") + "/tokenize"
    request = urllib.request.Request(place, json.dumps(content).encode(), headers)
    return json.load(urllib.request.urlopen(request))["tokens"]


def fields(client):
    """A check for each field, by its name."""
    plain, talk = said(text(client)), said(chat(client))
    tokens = ids_of(client, {"content": plain})
    first = tokens[0]

    def changes(**more):
        assert said(text(client, **more)) != plain, more

    def same(**more):
        assert said(text(client, **more)) == plain, more

    def own_changes(**more):
        assert own(client, **more) != plain, more

    def model():
        try:
            client.completions.create(model="other", prompt="x")
        except openai.NotFoundError as error:
            assert error.param == "model" and error.code == "model_not_found"
        else:
            raise AssertionError("another model was served")

    def messages():
        parts = [{"role": "user", "content": [{"type": "text", "text": "def f(x):"}]}]
        assert said(chat(client, messages=parts)) == talk

    def prompt():
        many = text(client, prompt=[PROMPT, "class A:"])
        assert len(many.choices) == 2 and many.choices[0].text == plain
        begun = ids_of(client, {"content": PROMPT, "add_special": True})
        same(prompt=begun)

    def most():
        assert text(client, max_tokens=3).usage.completion_tokens == 3

    def most_of_chat():
        answer = client.chat.completions.create(model="tried", messages=USER, max_completion_tokens=2)
        assert answer.usage.completion_tokens <= 2

    def several():
        answer = text(client, n=3, temperature=1.0, seed=5)
        alone = [said(text(client, temperature=1.0, seed=seed)) for seed in (5, 6, 7)]
        assert [choice.text for choice in answer.choices] == alone

    def seed():
        drawn = {said(text(client, temperature=1.5, seed=seed)) for seed in range(4)}
        assert len(drawn) > 1 and said(text(client, temperature=1.5, seed=0)) in drawn

    def stop():
        word = plain.split()[-1]
        answer = text(client, stop=[word])
        assert said(answer) == plain[: plain.index(word)] and answer.choices[0].finish_reason == "stop"

    def logprobs():
        told = text(client, logprobs=2).choices[0].logprobs
        assert len(told.tokens) == 24 and all(len(top) >= 2 for top in told.top_logprobs)
        told = chat(client, logprobs=True).choices[0].logprobs.content
        assert len(told) == 24 and all(entry.logprob <= 0 for entry in told)

    def top_logprobs():
        told = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
        assert all(len(entry.top_logprobs) == 3 for entry in told)

    def echo():
        assert said(text(client, echo=True)) == PROMPT + plain
        refused(lambda: text(client, echo=True, logprobs=1), "logprobs")

    def stream():
        chunks = list(text(client, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == plain
        assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
        deltas = list(chat(client, stream=True))
        assert deltas[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == talk

    def usage():
        *chunks, last = chat(client, stream=True, stream_options={"include_usage": True})
        assert last.usage.completion_tokens == 24 and all(chunk.usage is None for chunk in chunks)

    def drafts():
        fields = {"ignore_eos": True, "draft": "exit"}
        chunks = text(client, stream=True, stream_options={"include_drafts": True}, extra_body=fields)
        pieces = [piece for chunk in chunks for piece in getattr(chunk.choices[0], "pieces", None) or []]
        assert "".join(piece["text"] for piece in pieces) == plain
        assert {piece["drafted"] for piece in pieces} == {"exit", None}

    def tools():
        assert chat(client, tools=[WEATHER]).usage.prompt_tokens > chat(client).usage.prompt_tokens
        refused(lambda: chat(client, tools=[{"type": "web_search"}]), "tools")

    def tool_choice():
        assert said(chat(client, tools=[WEATHER], tool_choice="none")) == talk
        for choice in ["required", {"type": "function", "function": {"name": "weather"}}]:
            refused(lambda: chat(client, tools=[WEATHER], tool_choice=choice), "tool_choice")

    def for_template(field, value):
        assert chat(client, extra_body={field: value}).usage.prompt_tokens > chat(client).usage.prompt_tokens

    def passed_over(field, value):
        assert said(text(client, extra_body={"ignore_eos": True, field: value})) == plain

    def only(ask, field, nothing, something):
        ask(extra_body={field: nothing})
        refused(lambda: ask(extra_body={field: something}), field)

    def response_format():
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        assert json.loads(said(chat(client, response_format=form, extra_body={})))["a"] in (1, 2)
        refused(lambda: chat(client, response_format={"type": "poem"}), "response_format")

    def in_text(**more):
        return text(client, **more)

    def in_chat(**more):
        return chat(client, **more)

    return {
        "model": model,
        "messages": messages,
        "prompt": prompt,
        "max_tokens": most,
        "max_completion_tokens": most_of_chat,
        "n": several,
        "temperature": lambda: changes(temperature=2.0, seed=1),
        "top_p": lambda: same(temperature=1.5, top_p=1e-9, seed=1),
        "presence_penalty": lambda: changes(presence_penalty=2.0),
        "frequency_penalty": lambda: changes(frequency_penalty=2.0),
        "logit_bias": lambda: changes(logit_bias={str(first): -100}),
        "seed": seed,
        "stop": stop,
        "logprobs": logprobs,
        "top_logprobs": top_logprobs,
        "echo": echo,
        "stream": stream,
        "stream_options.include_usage": usage,
        "stream_options.include_drafts": drafts,
        "tools": tools,
        "tool_choice": tool_choice,
        "documents": lambda: for_template("documents", [{"title": "t", "text": "x"}]),
        "chat_template_kwargs": lambda: for_template("chat_template_kwargs", {"loud": True}),
        "top_k": lambda: same(temperature=1.5, seed=1, extra_body={"ignore_eos": True, "top_k": 1}),
        "min_p": lambda: same(temperature=1.5, seed=1, extra_body={"ignore_eos": True, "min_p": 1.0}),
        "min_tokens": lambda: refused(lambda: own(client, min_tokens=25), "min_tokens"),
        "repetition_penalty": lambda: own_changes(repetition_penalty=5.0),
        "suppress_tokens": lambda: own_changes(suppress_tokens=[first]),
        "bad_words": lambda: own_changes(bad_words=[[first]]),
        "stop_token_ids": lambda: own_changes(stop_token_ids=[tokens[5]]),
        "ignore_eos": lambda: own(client, ignore_eos=True),
        "verify": lambda: refused(lambda: own(client, verify="perhaps"), "verify"),
        "draft": lambda: own(client, draft="off") == plain or 1 / 0,
        "speculate": lambda: own(client, speculate=False) == plain or 1 / 0,
        "draft_max": lambda: own(client, draft_max=1) == plain or 1 / 0,
        "user": lambda: passed_over("user", "u"),
        "metadata": lambda: passed_over("metadata", {"a": "b"}),
        "store": lambda: passed_over("store", True),
        "service_tier": lambda: passed_over("service_tier", "auto"),
        "safety_identifier": lambda: passed_over("safety_identifier", "s"),
        "prompt_cache_key": lambda: passed_over("prompt_cache_key", "k"),
        "modalities": lambda: only(in_chat, "modalities", ["text"], ["text", "audio"]),
        "parallel_tool_calls": lambda: only(in_chat, "parallel_tool_calls", True, False),
        "suffix": lambda: only(in_text, "suffix", "", "x"),
        "best_of": lambda: only(in_text, "best_of", 1, 2),
        "response_format": response_format,
        "json_schema": lambda: json.loads(said(text(client, extra_body={"json_schema": SCHEMA})))["a"] in (1, 2) or 1 / 0,
        "grammar": lambda: said(text(client, extra_body={"grammar": 'start: "yes" | "no"'})) in ("yes", "no") or 1 / 0,
        "any other": lambda: refused(lambda: own(client, tempratur=1), "tempratur", "unknown key"),
    }


def documented():
    """The fields of the table in docs/serving.md."""
    page = (ROOT / "docs/serving.md").read_text()
    table = page[page.index("## Fields"):]
    table = re.search(r"\| field \|.*?\n\n", table, re.S).group()
    rows = [row.split(" | ")[0] for row in table.strip().splitlines()[2:]]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row) or [row.strip("| ")]}


def every_field(client):
    checks = fields(client)
    assert checks.keys() == documented(), checks.keys() ^ documented()
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            raise AssertionError(f"the field {name}: {error!r}") from error
    print(f"{len(checks)} fields are honoured, or refused by name")


def models(client):
    assert [model.id for model in client.models.list()] == ["tried"]
    assert client.models.retrieve("tried").owned_by == "eesd"


def keys(client):
    try:
        client.with_options(api_key="wrong").models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key opened")


def cancel(client, server):
    """Who goes away has their request cancelled: by closing a stream, and by giving up on an answer."""
    cut_short = 'eesd_requests_ended_total{outcome="cut_short"}'
    long = {"max_tokens": 900, "n": 50}

    def settled():
        """How many were cut short, once nobody is being answered."""
        states = ["waiting", "prefilling", "decoding"]
        while any(server.metric(f'eesd_requests{{state="{state}"}}', KEY) for state in states):
            time.sleep(0.05)
        return server.metric(cut_short, KEY)

    stream = text(client, stream=True, **long)
    next(iter(stream))
    stream.close()
    # What the server tells of itself may be a step behind what it has sent.
    until = time.monotonic() + 30
    while (by_closing := settled()) == 0:
        assert time.monotonic() < until, "closing a stream cancelled nothing"
        time.sleep(0.05)
    patience = 0.2  # seconds; more where the machine is so busy that the server has not begun by then
    while settled() == by_closing:
        try:
            text(client.with_options(timeout=patience, max_retries=0), **long)
        except openai.APITimeoutError:
            patience *= 2
        else:
            raise AssertionError(f"50 answers in {patience} s")
    print("who goes away is cancelled")


def curl(server):
    """As in docs/serving.md."""

    def run(*arguments):
        return subprocess.run(["curl", "-sS", *arguments], check=True, capture_output=True, text=True).stdout

    authorised = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    body = {"messages": USER, "max_tokens": 9, "stream": True}
    streamed = run("-N", server.address + "/v1/chat/completions", *authorised, "-d", json.dumps(body))
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events[-1] == "[DONE]" and json.loads(events[-2])["choices"][0]["finish_reason"], streamed
    whole = json.loads(run(server.address + "/v1/chat/completions", *authorised, "-d", json.dumps(body | {"stream": False})))
    told = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(told) == whole["choices"][0]["message"]["content"]
    status = ["-o", "/dev/null", "-w", "%{http_code}"]
    assert run(*status, server.address + "/v1/models") == "401"
    assert run(*status, server.address + "/health") == "200"
    assert run(*status, *authorised, server.address + "/v1/completions", "-d", "{") == "400"
    print("curl is answered")


def tool_calls(address):
    """With a real model, and a template that shows it how to call."""
    client = openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)
    ask = {"model": "tried", "messages": [{"role": "user", "content": "What is the weather in Berlin?"}], "tools": [WEATHER]}
    answer = client.chat.completions.create(**ask).choices[0]
    (call,) = answer.message.tool_calls
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None), answer
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Berlin"}, call

    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls
    assert final.finish_reason == "tool_calls" and len(streamed.id) == 9
    assert streamed.function.arguments == call.function.arguments

    without = client.chat.completions.create(**ask | {"tool_choice": "none"}).choices[0]
    assert not without.message.tool_calls and without.finish_reason == "stop"
    print("tools are called")


def main():
    with tempfile.TemporaryDirectory() as folder:
        for name, template in [("chat.jinja", TEMPLATE), ("tools.jinja", TOOL_TEMPLATE)]:
            with open(f"{folder}/{name}", "w") as file:
                file.write(template)
        flags = ["--alias", "tried", "--api-key", KEY, "--chat-template", f"{folder}/chat.jinja", "-b", 4]
        flags += ["--controller", "fixed:4"]  # which drafts however fast the machine is
        with served(*flags) as server:
            client = openai.OpenAI(base_url=server.address + "/v1", api_key=KEY, max_retries=0)
            models(client)
            keys(client)
            every_field(client)
            curl(server)
            cancel(client, server)
        assert SMOLLM2, "tools/get-smollm2 fetches the model"
        template = ["--chat-template", f"{folder}/tools.jinja", "--stop", "\n\nQuestion:"]
        with served("-m", SMOLLM2, "--alias", "tried", *template) as server:
            tool_calls(server.address)


if __name__ == "__main__":
    main()
