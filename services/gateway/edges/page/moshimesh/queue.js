/** Samples that wait, first in, first out, and which frame each belongs to. */
export class SampleQueue {
  #data;
  #head = 0;
  #tail = 0;
  #position = 0; // samples that have left
  #marks = []; // frames that have not left: {sequence, begin, end}, in samples since the start
  #left = []; // what `left` will tell

  /** @param {number} most samples; beyond that the oldest are dropped */
  constructor(most) {
    this.most = most;
    this.#data = new Float32Array(2 * most);
  }

  get length() {
    return this.#tail - this.#head;
  }

  /** The last sequence whose samples are here, or have been. */
  last = -1;

  /** @param {number} sequence @param {Float32Array} samples */
  push(sequence, samples) {
    if (this.length + samples.length > this.most) this.drop(this.length + samples.length - this.most);
    if (this.#tail + samples.length > this.#data.length) {
      this.#data.copyWithin(0, this.#head, this.#tail);
      this.#tail -= this.#head;
      this.#head = 0;
    }
    const begin = this.#position + this.length, end = begin + samples.length;
    this.#data.set(samples, this.#tail);
    this.#tail += samples.length;
    const mark = this.#marks.at(-1);
    if (mark?.sequence === sequence) mark.end = end;
    else this.#marks.push({sequence, begin, end, begun: false});
    this.last = sequence;
  }

  /** Samples without taking them; valid until the next push. */
  peek(begin, end) {
    return this.#data.subarray(this.#head + begin, this.#head + end);
  }

  /** @param {number} count @returns {Float32Array} */
  take(count) {
    const samples = this.#data.slice(this.#head, this.#head + count);
    this.drop(count);
    return samples;
  }

  drop(count) {
    this.#head += count;
    this.#position += count;
    while (this.#marks.length && this.#marks[0].begin < this.#position) {
      const mark = this.#marks[0];
      if (!mark.begun) this.#left.push({sequence: mark.sequence, whole: false});
      mark.begun = true;
      if (mark.end > this.#position) break;
      this.#left.push({sequence: mark.sequence, whole: true});
      this.#marks.shift();
    }
  }

  /** Drop everything, as if it had never been there. */
  clear() {
    this.#position += this.length;
    this.#head = this.#tail = 0;
    this.#marks = [];
  }

  /** The frames that have begun to leave (whole: false) or have left (whole: true) since it was asked last.
   * @returns {{sequence: number, whole: boolean}[]}
   */
  left() {
    return this.#left.splice(0);
  }
}
