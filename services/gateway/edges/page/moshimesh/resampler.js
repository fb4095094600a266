/** A streaming resampler: band-limited interpolation by a windowed sinc, one row of taps for each fraction of a sample.
 *
 * J. O. Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/
 */

const ZERO_CROSSINGS = 16; // on each side, at the lower of the two rates: 0.7 ms of delay at 24 kHz
const KAISER_BETA = 8; // 80 dB of stop band
const PASS_BAND = 0.92; // of the lower rate's half; the rest is for the filter's slope
const MOST_PHASES = 1024; // rates whose ratio needs more are rounded to as many, at -66 dB

export class Resampler {
  #step;
  #phases;
  #half;
  #table;
  #input;
  #position; // of the next output, in samples of #input

  /** @param {number} from Hz @param {number} to Hz */
  constructor(from, to) {
    const lower = Math.min(1, to / from);
    this.#step = from / to;
    this.#phases = Math.min(to / greatestCommonDivisor(from, to), MOST_PHASES);
    this.#half = from === to ? 0 : Math.ceil(ZERO_CROSSINGS / lower);
    this.#table = kernel(this.#phases, this.#half, lower * PASS_BAND);
    this.#input = new Float32Array(this.#half);
    this.#position = this.#half;
  }

  /** Samples at the new rate that are complete with this input; as many as the ratio says, in the long run.
   * @param {Float32Array} samples @returns {Float32Array}
   */
  process(samples) {
    const half = this.#half, taps = 2 * half, phases = this.#phases;
    if (half === 0) return samples.slice();
    const input = new Float32Array(this.#input.length + samples.length);
    input.set(this.#input);
    input.set(samples, this.#input.length);
    const output = new Float32Array(Math.max(0, Math.ceil((input.length - half - this.#position) / this.#step)));
    let position = this.#position, count = 0;
    for (; count < output.length; count++, position += this.#step) {
      let whole = Math.floor(position), phase = Math.round((position - whole) * phases);
      if (phase === phases) { whole++; phase = 0; }
      if (whole + half >= input.length) break;
      let sum = 0;
      for (let tap = 0, row = phase * taps, at = whole - half + 1; tap < taps; tap++) {
        sum += input[at + tap] * this.#table[row + tap];
      }
      output[count] = sum;
    }
    const used = Math.max(Math.min(Math.floor(position) - half, input.length), 0);
    this.#input = input.slice(used);
    this.#position = position - used;
    return count === output.length ? output : output.subarray(0, count);
  }
}

/** Taps [phases, 2 * half]: each row's sum is 1, so that a constant stays one. */
function kernel(phases, half, cutoff) {
  const taps = 2 * half, table = new Float32Array(phases * taps);
  for (let phase = 0; phase < phases; phase++) {
    let sum = 0;
    for (let tap = 0; tap < taps; tap++) {
      const x = tap - half + 1 - phase / phases;
      const value = cutoff * sinc(cutoff * x) * kaiser(x / half);
      table[phase * taps + tap] = value;
      sum += value;
    }
    for (let tap = 0; tap < taps; tap++) table[phase * taps + tap] /= sum;
  }
  return table;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function kaiser(x) {
  return Math.abs(x) >= 1 ? 0 : bessel(KAISER_BETA * Math.sqrt(1 - x * x)) / bessel(KAISER_BETA);
}

/** The modified Bessel function of the first kind, order 0, by its series. */
function bessel(x) {
  let sum = 1, term = 1;
  for (let n = 1; term > 1e-9 * sum; n++) {
    term *= (x / (2 * n)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(a, b) {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
