// Server-sent events over fetch, as EventSource can send no key; and it comes back by itself.
// Source: https://html.spec.whatwg.org/multipage/server-sent-events.html

import { Problem } from "./api.js";

// The service says something every ten seconds.
const SILENCE_MS = 25_000;
const AGAIN_MS = [250, 500, 1000, 2000, 4000];
const FINAL = new Set([400, 401, 403, 404, 422]);

/** Cuts what comes into messages: `{event, data, id}`. */
export class Parser {
  constructor() {
    this.rest = "";
    this.clear();
    this.id = "";
  }

  clear() {
    this.data = [];
    this.event = "";
  }

  *feed(text) {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) {
      if (line !== "") this.take(line);
      else if (this.data.length) {
        yield { event: this.event || "message", data: this.data.join("\n"), id: this.id };
        this.clear();
      } else this.clear();
    }
  }

  take(line) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value;
    else if (field === "id") this.id = value;
  }
}

/**
 * Follows a stream until the function that it gives back is called. `message(event, value)` has what came;
 * `state("live" | "waiting" | "refused", problem)` how it stands. Refused is for good.
 */
export function follow(api, path, { message, state }) {
  const over = new AbortController();
  let last = "";

  /** What is wrong with the page itself must be seen, and must not end the stream. */
  function deliver(event, data) {
    try {
      message(event, JSON.parse(data));
    } catch (error) {
      console.error(error);
    }
  }

  async function once(alive) {
    const headers = { accept: "text/event-stream", ...(last && { "last-event-id": last }) };
    const answer = await api.open(path, { headers, signal: alive.signal });
    const parser = new Parser();
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let silence;
    try {
      for (;;) {
        clearTimeout(silence);
        silence = setTimeout(() => alive.abort(), SILENCE_MS);
        const { done, value } = await reader.read();
        if (done) return;
        for (const { event, data, id } of parser.feed(value)) {
          last = id;
          state("live");
          tries = 0;
          deliver(event, data);
        }
      }
    } finally {
      clearTimeout(silence);
    }
  }

  let tries = 0;
  async function run() {
    while (!over.signal.aborted) {
      const alive = new AbortController();
      const stop = () => alive.abort();
      over.signal.addEventListener("abort", stop);
      try {
        await once(alive);
      } catch (error) {
        if (error instanceof Problem && FINAL.has(error.status)) {
          state("refused", error);
          return;
        }
      } finally {
        over.signal.removeEventListener("abort", stop);
      }
      if (over.signal.aborted) return;
      state("waiting");
      await rest(AGAIN_MS[Math.min(tries++, AGAIN_MS.length - 1)], over.signal);
    }
  }

  run();
  return () => over.abort();
}

/** Waits, give or take a quarter, so that not all pages come back at once; less if the network says it is back. */
function rest(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms * (0.75 + Math.random() / 2));
    addEventListener("online", done);
    signal.addEventListener("abort", done);
  });
}
