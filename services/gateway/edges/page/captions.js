/** What Moshi said, in time with its voice, and as a transcript. */

const STORED = 'moshimesh.captions';
const PAUSE_MS = 1500; // a new line after that
const SHOWN = 200; // lines; the transcript has all

export class Captions {
  #box;
  #lines = []; // {at: Date, parts: {text, heard}[]}
  #lastMs = -Infinity;
  #element = null;
  #placeholder;

  /** @param {HTMLElement} box @param {HTMLElement} placeholder shown until there is something */
  constructor(box, placeholder) {
    this.#box = box;
    this.#placeholder = placeholder;
  }

  get empty() {
    return this.#lines.length === 0;
  }

  clear() {
    this.#lines = [];
    this.#box.replaceChildren();
    this.#lastMs = -Infinity;
    this.#placeholder.hidden = false;
  }

  /** @param {{text: string, heard: boolean}} said heard is false for what an interruption has dropped */
  add({text, heard}, now = Date.now()) {
    if (now - this.#lastMs > PAUSE_MS || !this.#element) {
      this.#lines.push({at: now, parts: []});
      this.#element = document.createElement('p');
      this.#box.append(this.#element);
      if (this.#box.children.length > SHOWN) this.#box.firstChild.remove();
    }
    this.#lastMs = now;
    this.#placeholder.hidden = true;
    const {parts} = this.#lines.at(-1), last = parts.at(-1);
    if (last?.heard === heard) last.text += text;
    else parts.push({text, heard});
    const word = document.createElement('span');
    word.textContent = text;
    word.classList.toggle('unheard', !heard);
    this.#element.append(word);
    this.#box.scrollTop = this.#box.scrollHeight;
  }

  /** One line each, with the time it began; what was not heard is in brackets. */
  transcript() {
    return this.#lines.map(({at, parts}) =>
      `${new Date(at).toISOString()} ${parts.map(({text, heard}) => heard ? text : ` [${text.trim()}]`).join('').trim()}\n`
    ).join('');
  }

  /** Over a reload, in this tab alone. */
  keep() {
    sessionStorage.setItem(STORED, JSON.stringify(this.#lines));
  }

  recall() {
    const lines = JSON.parse(sessionStorage.getItem(STORED) ?? '[]');
    sessionStorage.removeItem(STORED);
    for (const {at, parts} of lines) {
      this.#element = null;
      for (const part of parts) this.add(part, at);
    }
  }
}
