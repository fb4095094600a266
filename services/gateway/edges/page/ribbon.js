/** Where the time of each frame went: a ribbon that moves with the call, and the waterfall of one frame. */

import {scaled} from './pictures.js';

const SHOWN = 250; // frames, 20 s
const HOPS = ['gateway.ingest', 'codec.encode', 'lm.step', 'codec.decode', 'gateway.emit'];

/** @typedef {{sequence: number, traceparent: string, hops: Hop[], wholeMs: number, way: number}} Timed
 * @typedef {{hop: string, waitedMs: number, computedMs: number, batch: number}} Hop
 */

/** A frame's timings; durations only, since hosts have clocks of their own. @returns {Timed | null} */
export function timed({sequence, traceparent, hops}) {
  if (!hops?.length) return null;
  const parts = hops.map(([hop, received, , started, finished, batch]) =>
    ({hop, waitedMs: (started - received) / 1000, computedMs: (finished - started) / 1000, batch}));
  const wholeMs = (hops.at(-1)[4] - hops[0][1]) / 1000; // both are the gateway's clock
  const known = parts.reduce((sum, part) => sum + part.waitedMs + part.computedMs, 0);
  return {sequence, traceparent, hops: parts, wholeMs, wayMs: Math.max(wholeMs - known, 0)};
}

/** Events: 'choose' {frame: Timed}. */
export class Ribbon extends EventTarget {
  #canvas;
  #frames = [];
  #chosen = null;
  #drawn = 0;
  #frameMs = 80;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    super();
    this.#canvas = canvas;
    canvas.addEventListener('click', ({offsetX}) => this.#choose(this.#indexAt(offsetX)));
    canvas.addEventListener('keydown', event => {
      const step = {ArrowLeft: -1, ArrowRight: 1, Home: -SHOWN, End: SHOWN}[event.key];
      if (!step) return;
      event.preventDefault();
      const at = this.#chosen ? this.#frames.indexOf(this.#chosen) : this.#frames.length - 1;
      this.#choose(Math.min(Math.max(at + step, 0), this.#frames.length - 1));
    });
  }

  clear(frameMs) {
    this.#frames = [];
    this.#chosen = null;
    this.#frameMs = frameMs;
  }

  /** @param {Timed} frame */
  add(frame) {
    this.#frames.push(frame);
    if (this.#frames.length > SHOWN) this.#frames.shift();
    this.#canvas.ariaValueMin = this.#frames[0].sequence;
    this.#canvas.ariaValueMax = frame.sequence;
    if (!this.#chosen) this.#canvas.ariaValueNow = frame.sequence;
    this.#drawn ||= requestAnimationFrame(() => this.#draw());
  }

  #indexAt(x) {
    return Math.floor(x / this.#canvas.clientWidth * SHOWN) - (SHOWN - this.#frames.length);
  }

  #choose(index) {
    const frame = this.#frames[index];
    if (!frame) return;
    this.#chosen = frame;
    this.#canvas.ariaValueNow = frame.sequence;
    this.#canvas.ariaValueText = `${frame.sequence}: ${frame.wholeMs.toFixed(1)} ms`;
    this.dispatchEvent(new CustomEvent('choose', {detail: {frame}}));
    this.#draw();
  }

  #draw() {
    this.#drawn = 0;
    const {context, width, height} = scaled(this.#canvas), style = getComputedStyle(this.#canvas);
    const most = Math.max(this.#frameMs, ...this.#frames.map(frame => frame.wholeMs)), step = width / SHOWN;
    context.clearRect(0, 0, width, height);
    this.#frames.forEach((frame, index) => {
      let y = height;
      const x = width - (this.#frames.length - index) * step;
      if (frame === this.#chosen) {
        context.fillStyle = style.getPropertyValue('--chosen');
        context.fillRect(x - 1, 0, step + 2, height);
      }
      for (const {colour, ms} of layers(frame, style)) {
        const tall = ms / most * height;
        context.fillStyle = colour;
        context.fillRect(x, y - tall, Math.max(step - 0.5, 0.5), tall);
        y -= tall;
      }
    });
    // The line that a frame must stay below: one frame's time.
    const y = height - this.#frameMs / most * height;
    context.fillStyle = style.getPropertyValue('--deadline');
    context.fillRect(0, Math.max(y, 0), width, 1);
  }
}

/** One frame, hop below hop. @param {HTMLCanvasElement} canvas @param {Timed} frame */
export function drawWaterfall(canvas, frame) {
  const {context, width, height} = scaled(canvas), style = getComputedStyle(canvas);
  const row = height / frame.hops.length, scale = width / Math.max(frame.wholeMs, 1);
  const gap = frame.wayMs / Math.max(frame.hops.length - 1, 1); // the ways between them, together
  let x = 0;
  context.clearRect(0, 0, width, height);
  frame.hops.forEach(({hop, waitedMs, computedMs}, index) => {
    context.fillStyle = style.getPropertyValue('--waited');
    context.fillRect(x * scale, index * row + 2, waitedMs * scale, row - 4);
    context.fillStyle = colourOf(hop, style);
    context.fillRect((x + waitedMs) * scale, index * row + 2, Math.max(computedMs * scale, 1), row - 4);
    x += waitedMs + computedMs + gap;
  });
}

function layers(frame, style) {
  const waited = frame.hops.reduce((sum, hop) => sum + hop.waitedMs, 0);
  return [...frame.hops.map(({hop, computedMs}) => ({colour: colourOf(hop, style), ms: computedMs})),
    {colour: style.getPropertyValue('--waited'), ms: waited}, {colour: style.getPropertyValue('--way'), ms: frame.wayMs}];
}

function colourOf(hop, style) {
  return style.getPropertyValue(`--hop-${HOPS.indexOf(hop)}`);
}
