// A conversation with the model, over the same endpoint as everybody else's. Nothing of it is kept but in this page; the key
// stays in the tab's session.
"use strict";

const element = (id) => document.getElementById(id);
const KEY = "eesd-key";

/** The conversation as the server gets it, without the system prompt. */
let turns = [];
/** What stops the answer that is under way. */
let stopping = null;

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/** What the server says is wrong, in its own words. */
async function failure(response) {
  const body = await response.json().catch(() => ({}));
  return body.error?.message ?? `The server answered with status ${response.status}.`;
}

/** Learns the model's name; where that needs a key, asks for one. */
async function begin() {
  const response = await fetch("v1/models", { headers: headers() }).catch(() => null);
  if (response?.status === 401) {
    askForKey(sessionStorage.getItem(KEY) ? "That key is not one of the server's." : "");
  } else if (response?.ok) {
    element("key-form").hidden = true;
    const name = (await response.json()).data[0].id;
    element("model").textContent = name;
    document.title = name;
    element("state").textContent = "";
  } else if (response) {
    element("state").textContent = `${await failure(response)} Trying again …`;
    setTimeout(begin, 1000);
  } else {
    element("state").textContent = "The server is not there. Trying again …";
    setTimeout(begin, 1000);
  }
}

function askForKey(error) {
  element("key-form").hidden = false;
  element("key-error").textContent = error;
  element("key").focus();
}

/** Adds a message to the page; returns the place for its text, and for what is said about it. */
function show(role, text) {
  const item = document.createElement("li");
  item.className = role;
  const who = document.createElement("span");
  who.className = "unseen";
  who.textContent = role === "user" ? "You: " : "Model: ";
  const place = document.createElement("div");
  place.className = "text";
  place.textContent = text;
  const note = document.createElement("div");
  note.className = "note";
  item.append(who, place, note);
  element("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return { place, note };
}

/** Appends text, told apart by who drafted it. */
function append(place, text, drafted) {
  const kind = drafted === null ? "" : drafted === "exit" ? "exit" : "lookup";
  const last = place.lastElementChild;
  if (last && last.className === kind) {
    last.firstChild.appendData(text);
  } else {
    const span = document.createElement("span");
    span.className = kind;
    span.append(text);
    place.append(span);
  }
}

/** The data of each server-sent event of a response. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield part.slice("data: ".length);
    }
  }
}

/** What is asked. */
function body() {
  const number = (id) => (element(id).value === "" ? undefined : Number(element(id).value));
  const system = element("system").value.trim();
  return {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    temperature: number("temperature"),
    max_tokens: number("most"),
    stream: true,
    stream_options: { include_usage: true, include_drafts: true },
  };
}

/** Follows an answer to its end; returns its text, and says about it what there is to say. */
async function follow(response, place, note) {
  const main = document.querySelector("main");
  const begun = performance.now();
  let text = "", reason = null, usage = null, whole = false, atEnd = true;
  const drafts = { drafted: 0, all: 0 };
  for await (const data of events(response)) {
    if (data === "[DONE]") {
      whole = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices[0];
    atEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 40;
    for (const piece of choice?.pieces ?? []) {
      text += piece.text;
      drafts.all += 1;
      drafts.drafted += piece.drafted === null ? 0 : 1;
      append(place, piece.text, piece.drafted);
    }
    reason = choice?.finish_reason ?? reason;
    if (atEnd) main.scrollTop = main.scrollHeight;
  }
  if (!whole) throw new Error("The answer was cut off.");
  const seconds = (performance.now() - begun) / 1000;
  const tokens = usage.completion_tokens;
  const share = drafts.all ? Math.round((100 * drafts.drafted) / drafts.all) : 0;
  note.textContent = `${tokens} tokens, ${(tokens / seconds).toFixed(0)} a second, ${share} % drafted`;
  if (reason === "length") note.textContent += "; cut at the most tokens that were asked for, or that fit";
  if (atEnd) main.scrollTop = main.scrollHeight;
  return text;
}

async function ask(text) {
  // Whoever begins a new one while this is answered leaves the old one as it is.
  const conversation = turns;
  conversation.push({ role: "user", content: text });
  const asked = show("user", text);
  const { place, note } = show("assistant", "");
  stopping = new AbortController();
  working(true);
  try {
    const request = { method: "POST", headers: headers(), body: JSON.stringify(body()), signal: stopping.signal };
    const response = await fetch("v1/chat/completions", request);
    if (response.status === 401) askForKey("");
    if (!response.ok) throw new Error(await failure(response));
    conversation.push({ role: "assistant", content: (await follow(response, place, note)).trim() });
    element("state").textContent = "The answer is there.";
  } catch (error) {
    const stopped = error.name === "AbortError";
    note.textContent = stopped ? "Stopped." : error.message;
    note.classList.toggle("error", !stopped);
    element("state").textContent = stopped ? "Stopped." : "";
    if (place.textContent) {
      conversation.push({ role: "assistant", content: place.textContent.trim() });
    } else {
      // Without an answer it has not been asked: roles alternate.
      conversation.pop();
      asked.note.textContent = "Not answered, and not part of the conversation.";
    }
  } finally {
    stopping = null;
    working(false);
  }
}

function working(is) {
  element("send").hidden = is;
  element("stop").hidden = !is;
  element("messages").setAttribute("aria-busy", is);
  if (is) element("state").textContent = "Answering …";
  element(is ? "stop" : "text").focus();
}

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("text").value.trim();
  if (!text || stopping || !element("ask").reportValidity()) return;
  element("text").value = "";
  ask(text);
});

element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
});

element("stop").addEventListener("click", () => stopping?.abort());

element("clear").addEventListener("click", () => {
  stopping?.abort();
  turns = [];
  element("messages").replaceChildren();
  element("state").textContent = "";
  element("text").focus();
});

element("drafts").addEventListener("change", (event) => {
  element("messages").classList.toggle("drafts", event.target.checked);
  element("legend").hidden = !event.target.checked;
});

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, element("key").value.trim());
  element("key").value = "";
  begin();
});

begin();
