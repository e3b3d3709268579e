// Reads server-sent events with fetch, since an EventSource cannot send a key, and comes back by itself.

const KEY = "expertmesh-key";
const FIRST_WAIT_S = 1;
const LONGEST_WAIT_S = 15;
const SILENT_S = 8; // the gateway says something every second, even if the controller is away

/** Whole events out of text that comes in pieces: calls back with (name, data). */
export function eventParser(onEvent) {
  let rest = "";
  return (text) => {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => {
        const at = line.indexOf(": ");
        return [line.slice(0, at), line.slice(at + 2)];
      }));
      if (fields.data !== undefined) onEvent(fields.event ?? "message", JSON.parse(fields.data));
    }
  };
}

/** onEvent(name, data); onConnection(state, details): connecting, live, lost {waitS, why}, key {why}. */
export class Stream {
  constructor(url, onEvent, onConnection) {
    Object.assign(this, { url, onEvent, onConnection, waitS: FIRST_WAIT_S, hasHeard: false, stop: null, timer: null });
  }

  useKey(key) {
    sessionStorage.setItem(KEY, key);
    this.start();
  }

  pause() {
    clearTimeout(this.timer);
    this.stop?.abort();
    this.stop = null;
  }

  async start() {
    this.pause();
    const stop = this.stop = new AbortController();
    this.hasHeard = false;
    this.onConnection("connecting", {});
    try {
      await this.#read(stop);
      if (stop !== this.stop) return;
      if (this.hasHeard) this.start(); // a stream has its time, then it is asked for anew
      else this.#later("the gateway ended the stream");
    } catch (error) {
      if (stop === this.stop) this.#later(error.message);
    }
  }

  async #read(stop) {
    const key = sessionStorage.getItem(KEY);
    const headers = { accept: "text/event-stream", ...(key ? { authorization: `Bearer ${key}` } : {}) };
    let silence = setTimeout(() => stop.abort(new Error("no answer")), 1000 * SILENT_S);
    try {
      const answer = await fetch(this.url, { headers, signal: stop.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        this.stop = null;
        sessionStorage.removeItem(KEY);
        return this.onConnection("key", { why: key ? await reason(answer) : "" });
      }
      if (!answer.ok) throw new Error(await reason(answer));
      const parse = eventParser((name, data) => {
        Object.assign(this, { waitS: FIRST_WAIT_S, hasHeard: true });
        this.onEvent(name, data);
      });
      const pieces = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      this.onConnection("live", {});
      for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) {
        clearTimeout(silence);
        silence = setTimeout(() => stop.abort(new Error("the gateway fell silent")), 1000 * SILENT_S);
        parse(piece.value);
      }
    } finally {
      clearTimeout(silence);
    }
  }

  #later(why) {
    this.onConnection("lost", { why, waitS: this.waitS });
    this.timer = setTimeout(() => this.start(), 1000 * this.waitS);
    this.waitS = Math.min(LONGEST_WAIT_S, 2 * this.waitS);
  }
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `HTTP ${answer.status}`;
  }
}

export function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}
