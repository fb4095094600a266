/** How regularly frames arrive, and how much must be buffered for that. */

const WINDOW_FRAMES = 250; // 20 s: long enough to see a stall that comes every few seconds, and to forget a bad minute
const COVERED = 0.99; // of the frames shall be there in time: a hole is heard more than the delay that hides it
const MARGIN_MS = 15; // for what is not the network: the page's thread, the device's own buffer
const FIRST_MS = 80; // the target until some frames have come: the first seconds of a page are its busiest
const FIRST_FRAMES = 25;
const MOST_MS = 400; // beyond that a conversation suffers more from the delay than from a hole
const REGULAR = 0.75; // of a frame's time between two frames: the mesh is not catching up

export class Arrivals {
  #frameMs;
  #transits = []; // arrival against the caller's own audio clock, of the last WINDOW_FRAMES
  #previous = null; // {sequence, atMs}
  #catchingUp = true;

  /** @param {number} frameMs */
  constructor(frameMs) {
    this.#frameMs = frameMs;
    /** Interarrival jitter of RFC 3550, 6.4.1, in ms. */
    this.jitterMs = 0;
    /** How much later than the fastest frame is still in time: the target depth of the buffer. */
    this.targetMs = FIRST_MS;
  }

  /** One more frame. Frames may be missing between two of them.
   * @param {number} sequence @param {number} atMs
   * @returns {number | null} how much later it came than the fastest, in ms; null when that is not known, because the
   * mesh catches up with a caller it could not hear for a while
   */
  arrived(sequence, atMs) {
    const previous = this.#previous, transit = atMs - sequence * this.#frameMs;
    this.#previous = {sequence, atMs};
    if (previous === null) return null;
    if (this.#catchingUp && atMs - previous.atMs < REGULAR * this.#frameMs) return null;
    this.#catchingUp = false;
    const change = transit - (previous.atMs - previous.sequence * this.#frameMs);
    this.jitterMs += (Math.abs(change) - this.jitterMs) / 16;
    this.#transits.push(transit);
    if (this.#transits.length > WINDOW_FRAMES) this.#transits.shift();
    const sorted = Float64Array.from(this.#transits).sort(), late = transit - sorted[0];
    if (late > 2 * MOST_MS) { // no jitter: something was held up, and what was owed comes at once
      this.#transits.pop();
      this.#catchingUp = true;
      return null;
    }
    const needed = sorted[Math.ceil(COVERED * sorted.length) - 1] - sorted[0] + MARGIN_MS;
    this.targetMs = Math.min(Math.max(needed, sorted.length < FIRST_FRAMES ? FIRST_MS : 0), MOST_MS);
    return late;
  }

  /** Forget what was: the frames come another way from now on. */
  restart() {
    this.#transits = [];
    this.#previous = null;
    this.#catchingUp = true;
  }
}
