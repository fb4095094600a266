/** Both voices as living pictures: soft shapes with the sound's spectrum as their edge, and a ring that is its level. */

const POINTS = 48; // of the edge; half of it mirrors the other
const LOWEST_HERTZ = 90, HIGHEST_HERTZ = 4000; // what the edge shows: most of a voice
const QUIET_DB = -54; // the ring is empty
const RISES = 0.7, FALLS = 0.19; // share of the way to the new level in one picture
const EVERY_MS = 30; // 30 pictures a second: enough for the eye, and half the work for a phone
// Size beside the middle one, opacity, and how strongly the edge moves, from the back to the front.
const LAYERS = [[1.22, 0.14, 1], [1.08, 0.28, 0.7], [0.92, 1, 0.35]];

/** Draws a voice while there is one. */
export class VoicePicture {
  #canvas;
  #analyser = null;
  #samples;
  #spectrum;
  #edge = new Float32Array(POINTS / 2 + 1);
  #still = matchMedia('(prefers-reduced-motion: reduce)');
  #frame = 0;
  #drawnMs = 0;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    /** Of this moment, 0 to 1, in dB above QUIET_DB. */
    this.level = 0;
    new ResizeObserver(() => this.#analyser ?? this.#draw()).observe(canvas);
    addEventListener('theme', () => this.#analyser ?? this.#draw());
  }

  /** @param {AnalyserNode | null} analyser */
  show(analyser) {
    cancelAnimationFrame(this.#frame);
    this.#analyser = analyser;
    this.#samples = analyser && new Float32Array(analyser.fftSize);
    this.#spectrum = analyser && new Uint8Array(analyser.frequencyBinCount);
    this.level = 0;
    this.#edge.fill(0);
    this.#draw();
  }

  #drawAgain() {
    this.#frame = requestAnimationFrame(now => {
      if (now - this.#drawnMs < EVERY_MS) this.#drawAgain();
      else {
        this.#drawnMs = now;
        this.#draw();
      }
    });
  }

  #draw() {
    const {context, width, height} = scaled(this.#canvas), middle = Math.min(width, height) / 2;
    if (this.#analyser) {
      this.#listen();
      this.#drawAgain();
    }
    const colour = getComputedStyle(this.#canvas).color;
    context.clearRect(0, 0, width, height);
    context.save();
    context.translate(width / 2, height / 2);
    context.fillStyle = context.strokeStyle = colour;
    this.#drawRing(context, middle - 3);
    const moves = !this.#still.matches, radius = middle * (0.5 + 0.16 * this.level);
    for (const [size, opacity, swing] of LAYERS) {
      context.globalAlpha = opacity;
      this.#drawShape(context, radius * size, moves ? middle * 0.3 * swing : 0);
    }
    const light = context.createRadialGradient(-radius * 0.3, -radius * 0.35, 0, 0, 0, radius * 1.1);
    light.addColorStop(0, 'rgb(255 255 255 / 40%)');
    light.addColorStop(1, 'rgb(255 255 255 / 0%)');
    context.fillStyle = light;
    const [size, , swing] = LAYERS.at(-1);
    this.#drawShape(context, radius * size, moves ? middle * 0.3 * swing : 0);
    context.restore();
  }

  #listen() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    const power = this.#samples.reduce((sum, sample) => sum + sample * sample, 0) / this.#samples.length;
    const level = Math.min(Math.max(1 - 10 * Math.log10(power + 1e-12) / QUIET_DB, 0), 1);
    this.level += (level - this.level) * (level > this.level ? RISES : FALLS);
    this.#analyser.getByteFrequencyData(this.#spectrum);
    const perBin = this.#analyser.context.sampleRate / this.#analyser.fftSize;
    for (let i = 0; i < this.#edge.length; i++) {
      const hertz = LOWEST_HERTZ * (HIGHEST_HERTZ / LOWEST_HERTZ) ** (i / (this.#edge.length - 1));
      const loud = Math.max(this.#spectrum[Math.round(hertz / perBin)] / 255 - 0.25, 0) * level;
      this.#edge[i] += (loud - this.#edge[i]) * 0.6;
    }
  }

  #drawRing(context, radius) {
    context.lineWidth = 3;
    context.lineCap = 'round';
    context.globalAlpha = 0.16;
    context.beginPath();
    context.arc(0, 0, radius, 0, 2 * Math.PI);
    context.stroke();
    if (this.level < 0.01) return;
    context.globalAlpha = 1;
    context.beginPath();
    context.arc(0, 0, radius, Math.PI / 2 - Math.PI * this.level, Math.PI / 2 + Math.PI * this.level);
    context.stroke();
  }

  /** A closed curve through the middles between the points: no corners. */
  #drawShape(context, radius, swing) {
    const point = i => {
      const along = i % POINTS, angle = 2 * Math.PI * along / POINTS + Math.PI / 2;
      const at = radius + swing * this.#edge[Math.min(along, POINTS - along)];
      return [at * Math.cos(angle), at * Math.sin(angle)];
    };
    const between = ([x, y], [u, v]) => [(x + u) / 2, (y + v) / 2];
    context.beginPath();
    context.moveTo(...between(point(0), point(1)));
    for (let i = 1; i <= POINTS; i++) context.quadraticCurveTo(...point(i), ...between(point(i), point(i + 1)));
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
