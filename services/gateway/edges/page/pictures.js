/** Both voices as living pictures: a ring whose edge is the sound of this moment. */

const POINTS = 96;

/** Draws a voice until `stop`. */
export class VoicePicture {
  #canvas;
  #analyser = null;
  #samples;
  #still = matchMedia('(prefers-reduced-motion: reduce)');
  #frame = 0;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    /** RMS of this moment, 0 to 1. */
    this.level = 0;
    this.#draw();
  }

  /** @param {AnalyserNode | null} analyser */
  show(analyser) {
    cancelAnimationFrame(this.#frame);
    this.#analyser = analyser;
    this.#samples = analyser && new Float32Array(analyser.fftSize);
    this.#draw();
  }

  #draw() {
    const {context, width, height} = scaled(this.#canvas), samples = this.#samples;
    this.level = 0;
    if (this.#analyser) {
      this.#analyser.getFloatTimeDomainData(samples);
      this.level = Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
      this.#frame = requestAnimationFrame(() => this.#draw());
    }
    const middle = Math.min(width, height) / 2, radius = middle * (0.45 + 0.4 * Math.min(1, 3 * this.level));
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(this.#canvas).color;
    context.beginPath();
    for (let i = 0; i < POINTS; i++) {
      const ripple = this.#analyser && !this.#still.matches ? samples[Math.floor(i * samples.length / POINTS / 2)] : 0;
      const angle = 2 * Math.PI * i / POINTS, at = radius * (1 + 0.5 * ripple);
      context.lineTo(width / 2 + at * Math.cos(angle), height / 2 + at * Math.sin(angle));
    }
    context.fill();
  }
}

/** The canvas' context in CSS pixels, sharp on any screen. */
export function scaled(canvas) {
  const ratio = devicePixelRatio || 1, {clientWidth: width, clientHeight: height} = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return {context, width, height};
}
