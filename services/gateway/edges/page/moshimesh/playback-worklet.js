/** The loudspeaker's side of the audio thread: the jitter buffer, and its statistics ten times a second. */

import {Playout} from './playout.js';
import {Resampler} from './resampler.js';

const BLOCK_MS = 2.5;
const REPORT_MS = 100;

class Playback extends AudioWorkletProcessor {
  #playout;
  #resampler;
  #rate;
  #block;
  #waiting = new Float32Array(0); // at the device's rate
  #played = []; // blocks at the mesh's rate since the last report
  #reportedAt = currentTime;
  #closed = false;

  constructor({processorOptions: {rate, frameMs}}) {
    super();
    this.#rate = rate;
    this.#block = Math.round(rate * BLOCK_MS / 1000);
    this.#playout = new Playout({rate, frameMs});
    this.#resampler = new Resampler(rate, sampleRate);
    this.port.onmessage = ({data}) => this.#told(data);
  }

  process(_, [channels]) {
    while (this.#waiting.length < channels[0].length) {
      const block = this.#playout.pull(this.#block), more = this.#resampler.process(block);
      this.#played.push(block);
      const both = new Float32Array(this.#waiting.length + more.length);
      both.set(this.#waiting);
      both.set(more, this.#waiting.length);
      this.#waiting = both;
    }
    for (const channel of channels) channel.set(this.#waiting.subarray(0, channel.length));
    this.#waiting = this.#waiting.slice(channels[0].length);
    for (const {sequence, whole} of this.#playout.left()) {
      this.port.postMessage({type: whole ? 'played' : 'begun', sequence, time: currentTime});
    }
    if (this.#played.length * BLOCK_MS >= REPORT_MS) this.#report();
    return !this.#closed;
  }

  #told(message) {
    if (message.type === 'frame') this.#playout.push(message.sequence, message.samples, message.atMs);
    if (message.type === 'interrupt') this.#playout.interrupt(message.firstHeard);
    if (message.type === 'restart') this.#playout.restart();
    if (message.type === 'end') this.#playout.end();
    if (message.type === 'close') this.#closed = true;
  }

  #report() {
    const samples = new Float32Array(this.#played.length * this.#block);
    this.#played.forEach((block, index) => samples.set(block, index * this.#block));
    this.#played = [];
    const {depthMs, targetMs, delayMs, jitterMs, frames, lost, late, underruns, playedMs, concealedMs, droppedMs,
      stretchedMs, drained} = this.#playout;
    this.port.postMessage({
      type: 'report', time: this.#reportedAt, samples,
      statistics: {depthMs, targetMs, delayMs, jitterMs, frames, lost, late, underruns, playedMs, concealedMs,
        droppedMs, stretchedMs, drained},
    }, [samples.buffer]);
    this.#reportedAt = currentTime;
  }
}

registerProcessor('moshimesh-playback', Playback);
