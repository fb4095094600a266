/** Where the time of each frame went: a ribbon that moves with the call. */

import {scaled} from './pictures.js';

const SHOWN = 250; // frames, 20 s
export const HOPS = ['gateway.ingest', 'codec.encode', 'lm.step', 'codec.decode', 'gateway.emit'];

/** @typedef {{sequence: number, traceparent: string, hops: Hop[], wholeMs: number, wayMs: number}} Timed
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

/** Events: 'choose' {frame: Timed}, 'leave' {}. */
export class Ribbon extends EventTarget {
  #canvas;
  #frames = [];
  #chosen = null;
  #drawn = 0;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    super();
    this.frameMs = 80;
    this.#canvas = canvas;
    canvas.addEventListener('click', ({offsetX}) => this.#choose(this.#indexAt(offsetX)));
    canvas.addEventListener('keydown', event => {
      const step = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -SHOWN,
        End: SHOWN, Enter: 0, ' ': 0}[event.key];
      if (event.key === 'Escape') this.leave();
      if (step === undefined) return;
      event.preventDefault();
      const at = this.#chosen ? this.#frames.indexOf(this.#chosen) : this.#frames.length - 1;
      this.#choose(Math.min(Math.max(at + step, 0), this.#frames.length - 1));
    });
    new ResizeObserver(() => this.#drawSoon()).observe(canvas);
    addEventListener('theme', () => this.#drawSoon());
  }

  clear(frameMs) {
    this.#frames = [];
    this.leave();
    this.frameMs = frameMs;
  }

  /** @param {Timed} frame */
  add(frame) {
    this.#frames.push(frame);
    if (this.#frames.length > SHOWN) this.#frames.shift();
    this.#canvas.ariaValueMin = this.#frames[0].sequence;
    this.#canvas.ariaValueMax = frame.sequence;
    if (!this.#chosen) this.#canvas.ariaValueNow = frame.sequence;
    this.#drawSoon();
  }

  /** The chosen frame is not looked at any more. */
  leave() {
    if (!this.#chosen) return;
    this.#chosen = null;
    this.#canvas.ariaValueText = null;
    this.dispatchEvent(new CustomEvent('leave'));
    this.#drawSoon();
  }

  /** Median and slowest 1 % of the frames that are shown, ms; null without any. */
  get figures() {
    const sorted = this.#frames.map(frame => frame.wholeMs).sort((a, b) => a - b);
    const at = share => sorted.length ? sorted[Math.min(Math.floor(share * sorted.length), sorted.length - 1)] : null;
    return {p50: at(0.5), p99: at(0.99)};
  }

  #indexAt(x) {
    return Math.floor(x / this.#canvas.clientWidth * SHOWN) - (SHOWN - this.#frames.length);
  }

  #choose(index) {
    const frame = this.#frames[index];
    if (!frame) return;
    this.#chosen = frame;
    this.#canvas.ariaValueMin = Math.min(this.#frames[0].sequence, frame.sequence);
    this.#canvas.ariaValueNow = frame.sequence;
    this.dispatchEvent(new CustomEvent('choose', {detail: {frame}}));
    this.#drawSoon();
  }

  #drawSoon() {
    this.#drawn ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#drawn = 0;
    const {context, width, height} = scaled(this.#canvas), style = getComputedStyle(this.#canvas);
    const colour = name => style.getPropertyValue(name), hops = HOPS.map((_, index) => colour(`--hop-${index}`));
    const waited = colour('--waited'), way = colour('--way');
    const most = Math.max(this.frameMs * 1.1, ...this.#frames.map(frame => frame.wholeMs)), step = width / SHOWN;
    context.clearRect(0, 0, width, height);
    this.#frames.forEach((frame, index) => {
      let y = height;
      const x = width - (this.#frames.length - index) * step;
      if (frame === this.#chosen) {
        context.fillStyle = colour('--chosen');
        context.fillRect(x - 2, 0, step + 4, height);
      }
      const rise = (fill, ms) => {
        const tall = ms / most * height;
        context.fillStyle = fill;
        context.fillRect(x, y - tall, Math.max(step - 0.75, 0.75), tall);
        y -= tall;
      };
      let waitedMs = 0;
      for (const hop of frame.hops) {
        rise(hops[HOPS.indexOf(hop.hop)], hop.computedMs);
        waitedMs += hop.waitedMs;
      }
      rise(waited, waitedMs);
      rise(way, frame.wayMs);
    });
    // The line that a frame must stay below: one frame's time.
    context.fillStyle = colour('--deadline');
    const y = Math.round(height - this.frameMs / most * height);
    for (let x = 0; x < width; x += 8) context.fillRect(x, y, 4, 1);
    context.font = `12px ${style.fontFamily}`;
    context.fillText(`${this.frameMs} ms`, 2, y > 16 ? y - 4 : y + 14);
  }
}
