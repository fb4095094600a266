/** The microphone's side of the audio thread: from the device's rate to the mesh's, in pieces of 20 ms. */

import {Resampler} from './resampler.js';

const MUTE_MS = 5; // a cut at once would click

class Capture extends AudioWorkletProcessor {
  #resampler;
  #piece;
  #filled = 0;
  #gain = 1;
  #wanted = 1;
  #closed = false;

  constructor({processorOptions: {rate, pieceMs}}) {
    super();
    this.#resampler = new Resampler(sampleRate, rate);
    this.#piece = new Float32Array(rate * pieceMs / 1000);
    this.port.onmessage = ({data}) => {
      if (data.type === 'mute') this.#wanted = data.muted ? 0 : 1;
      if (data.type === 'close') this.#closed = true;
    };
  }

  process([channels]) {
    // Without a device there is silence: the mesh's clock is the caller's audio.
    const mono = new Float32Array(channels[0]?.length ?? 128);
    for (const channel of channels) for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / channels.length;
    const step = 1000 / (MUTE_MS * sampleRate);
    for (let i = 0; i < mono.length; i++) {
      this.#gain = Math.min(Math.max(this.#wanted, this.#gain - step), this.#gain + step);
      mono[i] *= this.#gain;
    }
    this.#add(this.#resampler.process(mono));
    return !this.#closed;
  }

  #add(samples) {
    while (samples.length) {
      const part = samples.subarray(0, this.#piece.length - this.#filled);
      this.#piece.set(part, this.#filled);
      this.#filled += part.length;
      samples = samples.subarray(part.length);
      if (this.#filled === this.#piece.length) {
        const piece = this.#piece.slice();
        this.port.postMessage({piece, time: currentTime}, [piece.buffer]);
        this.#filled = 0;
      }
    }
  }
}

registerProcessor('moshimesh-capture', Capture);
