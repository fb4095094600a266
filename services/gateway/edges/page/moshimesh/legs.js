/** The connections of a call: the one in use, and beside it the next one, until it has caught up with the first. */

/** @typedef {import('./leg.js').Leg} Leg */

// A connection that answers the newest frame so soon after the other one did will be in time with the next one, too.
const IN_STEP_MS = 20;

export class Legs {
  #next = null;
  #held = []; // what the next one has told since its last answer: if the answer came already, so did these
  #answeredMs = 0;
  #handlers;

  /** @param {{told: (message: object) => void, changed: (leg: Leg) => void}} handlers `changed`: from now on this one
   * is in use
   * @param {number} answered
   */
  constructor(handlers, answered) {
    this.#handlers = handlers;
    /** The one in use. @type {Leg | null} */
    this.current = null;
    /** Number of the last frame whose answer came; -1: none. */
    this.answered = answered;
  }

  /** Take one that is ready. It is in use when it has caught up, at once if there is no other. @param {Leg} leg */
  add(leg) {
    this.#next = leg;
    if (!this.current) this.#change();
  }

  /** Whether an answer's audio is to be played: each comes once, whichever connection has it first.
   * @param {Leg} leg @param {number} sequence of the answer @param {number} nowMs
   */
  wants(leg, sequence, nowMs) {
    if (leg === this.#next) {
      const inStep = sequence === this.answered && nowMs - this.#answeredMs < IN_STEP_MS;
      if (sequence > this.answered || inStep) this.#change();
      else this.#held = this.#held.filter(({type}) => type === 'go_away');
    }
    if (leg !== this.current || sequence <= this.answered) return false;
    this.answered = sequence;
    this.#answeredMs = nowMs;
    return true;
  }

  /** @param {Leg} leg @param {object} message that it has told */
  told(leg, message) {
    if (leg === this.#next) this.#held.push(message);
    else this.#handlers.told(message);
  }

  /** It is gone. @param {Leg} leg @returns {boolean} whether the call goes on without another connection */
  lost(leg) {
    if (leg === this.#next) this.#next = null;
    if (leg !== this.current) return this.current !== null;
    this.current = null;
    this.hurry();
    return this.current !== null;
  }

  /** Use the next one now, if there is one, whether it has caught up or not. */
  hurry() {
    if (this.#next) this.#change();
  }

  /** @param {object} message to each: they hear the same audio before it */
  send(message) {
    this.current?.send(message);
    this.#next?.send(message);
  }

  /** @param {Float32Array} audio likewise */
  say(audio) {
    this.current?.say(audio);
    this.#next?.say(audio);
  }

  /** Leave. */
  close() {
    this.current?.close();
    this.#next?.close();
    this.current = this.#next = null;
  }

  #change() {
    const held = this.#held;
    this.current?.close();
    this.current = this.#next;
    this.#next = null;
    this.#held = [];
    this.#handlers.changed(this.current);
    for (const message of held) this.#handlers.told(message);
  }
}
