/** Finds out whether the microphone hears the loudspeaker: a caller without headphones, and an echo that stays. */

const STEP_MS = 20; // one level each
const WINDOW = 250; // levels: 5 s
const MOST_LAG = 25; // 500 ms: buffers of the device, and a Bluetooth loudspeaker
const LIKE = 0.75; // correlation of levels; two people who talk at once stay below 0.5
const QUIET = 0.003; // RMS: below that there is nothing to hear, or nothing that matters

export class EchoDetector {
  #played = [];
  #heard = [];
  #step;

  /** @param {number} rate Hz of both */
  constructor(rate) {
    this.#step = rate * STEP_MS / 1000;
  }

  /** @param {Float32Array} samples */
  played(samples) {
    add(this.#played, samples, this.#step);
  }

  heard(samples) {
    add(this.#heard, samples, this.#step);
  }

  /** Whether the last 5 s sound like an echo. */
  get echoes() {
    if (this.#heard.length < WINDOW || this.#played.length < WINDOW) return false;
    const heard = this.#heard.slice(-WINDOW), played = this.#played.slice(-WINDOW);
    if (loudness(heard) < QUIET || loudness(played) < QUIET) return false;
    for (let lag = 0; lag <= MOST_LAG; lag++) {
      if (correlation(played.slice(0, WINDOW - lag), heard.slice(lag)) > LIKE) return true;
    }
    return false;
  }
}

function add(levels, samples, step) {
  for (let begin = 0; begin + step <= samples.length; begin += step) {
    let energy = 0;
    for (let i = begin; i < begin + step; i++) energy += samples[i] ** 2;
    levels.push(Math.sqrt(energy / step));
  }
  levels.splice(0, levels.length - 2 * WINDOW);
}

function loudness(levels) {
  return Math.sqrt(levels.reduce((sum, level) => sum + level * level, 0) / levels.length);
}

function correlation(a, b) {
  const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
  const meanA = mean(a), meanB = mean(b);
  let product = 0, energyA = 1e-12, energyB = 1e-12;
  for (let i = 0; i < a.length; i++) {
    product += (a[i] - meanA) * (b[i] - meanB);
    energyA += (a[i] - meanA) ** 2;
    energyB += (b[i] - meanB) ** 2;
  }
  return product / Math.sqrt(energyA * energyB);
}
