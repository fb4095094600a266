/** The caller's audio as the mesh counts it: cut into frames, numbered, the last ones kept for a call that is resumed. */

const KEPT_S = 45; // what the codec remembers, and what was said during a cut, with room to spare; 4 MB

export class Outgoing {
  #samples; // of a frame
  #frameMs;
  #kept = []; // the last frames, Float32Array each; the newest is number `next` - 1
  #partial;
  #filled = 0;
  #aligned = false;
  #dueAtMs = null;

  /** @param {number} rate Hz @param {number} frameMs @param {number} [first] number of the first frame */
  constructor(rate, frameMs, first = 0) {
    this.#frameMs = frameMs;
    this.#samples = rate * frameMs / 1000;
    this.#partial = new Float32Array(this.#samples);
    /** Number of the frame that is being said. */
    this.next = first;
  }

  /** When the mesh would like a frame to be complete, on the clock of `add`: now or any number of frames later. */
  align(dueAtMs) {
    this.#dueAtMs = dueAtMs;
  }

  /** One more piece, at most a frame. @param {Float32Array} piece @param {number} nowMs
   * @returns {Float32Array | null} the frame that it completes, whose number is `next` - 1
   */
  add(piece, nowMs) {
    if (!this.#aligned) {
      this.#aligned = true;
      if (this.#dueAtMs !== null) this.#filled = this.#silenceBefore(piece, nowMs);
    }
    const room = this.#samples - this.#filled, rest = piece.subarray(room);
    this.#partial.set(piece.subarray(0, room), this.#filled);
    this.#filled += piece.length;
    if (rest.length === 0 && this.#filled < this.#samples) return null;
    const frame = this.#partial;
    this.#partial = new Float32Array(this.#samples);
    this.#partial.set(rest);
    this.#filled = rest.length;
    this.#kept.push(frame);
    if (this.#kept.length * this.#frameMs > KEPT_S * 1000) this.#kept.shift();
    this.next++;
    return frame;
  }

  /** Number of the earliest frame that is kept. */
  get earliest() {
    return this.next - this.#kept.length;
  }

  /** The frames from this number on, silence where they are not kept any more.
   * @param {number} first @returns {Float32Array[]}
   */
  from(first) {
    const missing = Math.max(this.earliest - first, 0);
    return [...Array.from({length: missing}, () => new Float32Array(this.#samples)),
      ...this.#kept.slice(Math.max(first - this.earliest, 0))];
  }

  /** How much silence lets frames be complete with the piece that comes nearest to the mesh's moment. */
  #silenceBefore(piece, nowMs) {
    const pieceMs = piece.length / this.#samples * this.#frameMs, frame = this.#frameMs;
    const untilDue = ((this.#dueAtMs - nowMs) % frame + frame) % frame;
    const pieces = Math.round(untilDue / pieceMs) % Math.round(frame / pieceMs); // that still fit before it
    return this.#samples - (pieces + 1) * piece.length;
  }
}
