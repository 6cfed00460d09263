"""JSON of a schema, and texts of a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import eesd
import pytest
from conftest import FOLDER, PROMPTS, eesd_run

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["function", "class", "module"]},
        "lines": {"type": "integer", "minimum": 1, "maximum": 500},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["kind", "lines", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def drafting() -> Iterator[eesd.Model]:
    """Every round drafts, whatever it costs."""
    with eesd.Model(FOLDER, exit_block=1, controller="fixed:4", slots=4, threads=1, context=512) as model:
        yield model


def check(answer: eesd.Answer) -> None:
    found = json.loads(answer.text)
    assert list(found) == ["kind", "lines", "tags"]
    assert found["kind"] in ("function", "class", "module")
    assert type(found["lines"]) is int and 1 <= found["lines"] <= 500
    assert len(found["tags"]) <= 2 and all(len(tag) <= 6 for tag in found["tags"])
    assert answer.finish == "complete"


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 3}])
def test_answers_fit_their_schema_and_are_those_of_plain_decoding(drafting: eesd.Model, sampling: Any) -> None:
    answers = list(drafting.map(PROMPTS, json_schema=SCHEMA, max_tokens=150, **sampling))
    for prompt, answer in zip(PROMPTS, answers):
        check(answer)
        plain = drafting.generate(prompt, json_schema=SCHEMA, max_tokens=150, speculate=False, **sampling)
        assert (plain.tokens, plain.stats.drafted) == (answer.tokens, 0)
    assert sum(answer.stats.accepted for answer in answers) > 10


def test_answers_are_those_of_eesd_run(drafting: eesd.Model, tmp_path: Path) -> None:
    (schema := tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (line,) = eesd_run("-p", PROMPTS[0], "--json-schema", schema, "-n", 150)
    for given in (SCHEMA, json.dumps(SCHEMA)):
        assert drafting.generate(PROMPTS[0], json_schema=given, max_tokens=150).tokens == line["tokens"]


def test_openai_asks_for_the_same(drafting: eesd.Model) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "file", "strict": True, "schema": SCHEMA}}
    with drafting.stream(PROMPTS[1], response_format=asked, max_tokens=150) as stream:
        text = "".join(token.text for token in stream)
    assert text == drafting.generate(PROMPTS[1], json_schema=SCHEMA, max_tokens=150).text


def test_texts_of_a_grammar(drafting: eesd.Model) -> None:
    answer = drafting.generate(PROMPTS[0], grammar='start: "yes" | "no"', temperature=1.5, seed=1)
    assert answer.text in ("yes", "no") and answer.finish == "complete"


def test_a_request_has_another_constraint_than_its_batch(drafting: eesd.Model) -> None:
    requests: list[eesd.Prompt | eesd.Request] = [
        PROMPTS[0],
        eesd.Request(PROMPTS[0], grammar='start: /[0-9]{3}/'),
        eesd.Request(PROMPTS[0], response_format={"type": "text"}),
    ]
    schema, digits, free = drafting.map(requests, json_schema=SCHEMA, max_tokens=100)
    check(schema)
    assert len(digits.text) == 3 and digits.text.isdigit()
    assert free.tokens == drafting.generate(PROMPTS[0], max_tokens=100).tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"json_schema": {"type": "strin"}}, '^"json_schema": .*"/type": Invalid type: strin'),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "/uniqueItems"),
        ({"json_schema": "{"}, "json_schema: .*no JSON: .*expected a schema, or its text"),
        ({"json_schema": "3"}, "json_schema: .*expected a schema as an object"),
        ({"json_schema": None}, "json_schema: None: expected a schema as an object"),
        ({"json_schema": {"enum": [object()]}}, "json_schema: .* is a object .expected what JSON can say"),
        ({"json_schema": {"enum": [float("nan")]}}, "json_schema: .*expected what JSON can say"),
        ({"grammar": "start: nobody"}, '^"grammar": .*unknown name: "nobody"'),
        ({"grammar": 3}, "grammar: 3: expected a text of a grammar"),
        ({"response_format": {"type": "xml"}}, '^"response_format": "type" is "xml"'),
        ({"response_format": "json"}, "response_format: .json.: expected an object"),
        ({"json_schema": True, "grammar": "start: /a/"}, 'both "json_schema" and "grammar"'),
        ({"tools": []}, "tools: .*expected messages as the prompt"),
    ],
)
def test_mistakes(drafting: eesd.Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(eesd.InvalidArgument, match=message):
        drafting.generate(PROMPTS[0], **settings)


def test_tools_go_to_the_template(chat_folder: Path, tmp_path: Path) -> None:
    for file in chat_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    template = "{% for tool in tools %}# {{ tool.name }}\n{% endfor %}{% for m in messages %}# {{ m.content }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text(template)
    messages = [{"role": "user", "content": "Add."}]
    with eesd.Model(tmp_path, slots=1, threads=1, context=256) as chat:
        assert chat.apply_chat_template(messages, tools=[{"name": "adder"}]) == "# adder\n# Add.\n"
        answer = chat.generate(messages, tools=[{"name": "adder"}], max_tokens=4)
        assert answer.stats.prompt_tokens == len(chat.tokenize("# adder\n# Add.\n", begin=False))
        for wrong in ([3], {"name": "adder"}, "adder"):
            with pytest.raises(eesd.InvalidArgument, match='^"tools" .*list of objects'):
                chat.generate(messages, tools=wrong)  # type: ignore[arg-type]
