/** The caller's audio as the mesh counts it: in numbered frames, the last ones kept for a call that is resumed. */

export class Outgoing {
  #samples; // of a frame
  #frameMs;
  #mostKept;
  #kept = []; // the last frames, Float32Array each; the newest is number `next` - 1
  #partial;
  #filled = 0;
  #aligned = false;
  #dueAtMs = null;

  /** @param {{rate: number, keptS: number}} format Hz, and how much is kept @param {number} frameMs
   * @param {number} [first] number of the first frame
   */
  constructor({rate, keptS}, frameMs, first = 0) {
    this.#frameMs = frameMs;
    this.#mostKept = Math.floor(keptS * 1000 / frameMs);
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
    if (this.#kept.length > this.#mostKept) this.#kept.shift();
    this.next++;
    return frame;
  }

  /** Number of the earliest frame that is kept. */
  get earliest() {
    return this.next - this.#kept.length;
  }

  /** The audio from this frame on, silence where it is not kept any more; in pieces of up to a second, which is the
   * longest that the mesh takes.
   * @param {number} first @returns {Float32Array[]}
   */
  from(first) {
    const most = Math.floor(1000 / this.#frameMs), pieces = [];
    for (let begin = first; begin < this.next; begin += most) {
      const end = Math.min(begin + most, this.next), piece = new Float32Array((end - begin) * this.#samples);
      for (let frame = Math.max(begin, this.earliest); frame < end; frame++) {
        piece.set(this.#kept[frame - this.earliest], (frame - begin) * this.#samples);
      }
      pieces.push(piece);
    }
    return pieces;
  }

  /** How much silence lets frames be complete with the piece that comes nearest to the mesh's moment. */
  #silenceBefore(piece, nowMs) {
    const pieceMs = piece.length / this.#samples * this.#frameMs, frame = this.#frameMs;
    const untilDue = ((this.#dueAtMs - nowMs) % frame + frame) % frame;
    const pieces = Math.round(untilDue / pieceMs) % Math.round(frame / pieceMs); // that still fit before it
    return this.#samples - (pieces + 1) * piece.length;
  }
}
