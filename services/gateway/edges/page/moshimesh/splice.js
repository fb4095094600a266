/** Joining pieces of audio without a click. Lengths are in samples. */

/** From one piece to the other, by raised cosines whose sum is 1.
 * @param {Float32Array} from @param {Float32Array} to of the same length @returns {Float32Array}
 */
export function crossFade(from, to) {
  const out = new Float32Array(to.length);
  for (let i = 0; i < out.length; i++) {
    const weight = 0.5 - 0.5 * Math.cos(Math.PI * (i + 0.5) / out.length);
    out[i] = from[i] * (1 - weight) + to[i] * weight;
  }
  return out;
}

/** How many samples at the begin are quieter than the threshold, in steps of `block`.
 * @param {Float32Array} samples @param {number} block @param {number} threshold of the RMS of a block
 */
export function quietRun(samples, block, threshold) {
  let run = 0;
  for (; run + block <= samples.length; run += block) {
    let energy = 0;
    for (let i = run; i < run + block; i++) energy += samples[i] * samples[i];
    if (energy > block * threshold * threshold) break;
  }
  return run;
}

/** The lag at which the signal repeats itself best: the pitch of a voice.
 *
 * Compares `width` samples at `at` with those `lag` later (earlier if `direction` is -1), by the normalised
 * correlation.
 * @returns {{lag: number, likeness: number}} likeness from -1 to 1
 */
export function pitchLag(samples, at, width, shortest, longest, direction) {
  let best = {lag: longest, likeness: -1};
  let energy = 1e-9;
  for (let i = 0; i < width; i++) energy += samples[at + i] ** 2;
  for (let lag = shortest; lag <= longest; lag++) {
    const other = at + direction * lag;
    let product = 0, otherEnergy = 1e-9;
    for (let i = 0; i < width; i++) {
      product += samples[at + i] * samples[other + i];
      otherEnergy += samples[other + i] ** 2;
    }
    const likeness = product / Math.sqrt(energy * otherEnergy);
    if (likeness > best.likeness) best = {lag, likeness};
  }
  return best;
}

/** What a voice would go on with: its last period again and again, dying away. */
export class Continuation {
  #period;
  #at = 0;
  #said = 0;
  #full;
  #end;

  /** @param {Float32Array} past at least 2 * longest + join @param {object} lengths */
  constructor(past, {shortest, longest, join, full, end}) {
    const {lag} = pitchLag(past, past.length - 2 * join, 2 * join, shortest, longest, -1);
    const begin = past.length - lag;
    this.#period = past.slice(begin);
    // Its end goes over into what came before its begin, so that it can be repeated.
    this.#period.set(crossFade(past.subarray(past.length - join), past.subarray(begin - join, begin)), lag - join);
    this.#full = full;
    this.#end = end;
    /** What shall be heard in place of the last `join` samples of the past. */
    this.seam = this.#period.slice(lag - join);
  }

  /** @param {number} count @returns {Float32Array} */
  next(count) {
    const out = new Float32Array(count);
    for (let i = 0; i < count; i++, this.#said++) {
      const gain = Math.min(Math.max((this.#end - this.#said) / (this.#end - this.#full), 0), 1);
      out[i] = this.#period[this.#at] * gain;
      this.#at = (this.#at + 1) % this.#period.length;
    }
    return out;
  }
}
