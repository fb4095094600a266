/** Both sides of a conversation as a stereo WAV: the caller left, Moshi right, as they were heard. */

const MOST_S = 1800; // half an hour takes 170 MB of the page's memory

export class Recording {
  #rate;
  #sides = {left: new Side(), right: new Side()};

  /** @param {number} rate Hz */
  constructor(rate) {
    this.#rate = rate;
  }

  /** @param {'left' | 'right'} side @param {Float32Array} samples @param {number} time of the first, s; any clock */
  add(side, samples, time) {
    const into = this.#sides[side];
    into.begin ??= time;
    if (into.length < MOST_S * this.#rate) into.add(samples);
  }

  /** @returns {Blob} 16 bit, stereo */
  wav() {
    const {left, right} = this.#sides, begin = Math.min(left.begin ?? Infinity, right.begin ?? Infinity);
    const offsets = [left, right].map(side => Math.round(((side.begin ?? begin) - begin) * this.#rate));
    const count = Math.max(left.length + offsets[0], right.length + offsets[1], 0) || 0;
    const data = new Int16Array(2 * count);
    left.writeTo(data, 2 * (offsets[0] || 0));
    right.writeTo(data, 2 * (offsets[1] || 0) + 1);
    return new Blob([header(data.byteLength, this.#rate), data], {type: 'audio/wav'});
  }
}

/** One side, 16 bit. */
class Side {
  begin = null;
  length = 0;
  #pieces = [];

  add(samples) {
    this.#pieces.push(Int16Array.from(samples, one => Math.max(-32768, Math.min(32767, Math.round(one * 32768)))));
    this.length += samples.length;
  }

  /** Every second value from `at` on. */
  writeTo(data, at) {
    for (const piece of this.#pieces) for (const sample of piece) {
      data[at] = sample;
      at += 2;
    }
  }
}

/** RIFF, PCM, 2 channels of 16 bits. */
function header(bytes, rate) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (at, value) => [...value].forEach((char, i) => view.setUint8(at + i, char.charCodeAt(0)));
  text(0, 'RIFF');
  view.setUint32(4, 36 + bytes, true);
  text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 2, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 4 * rate, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 16, true);
  text(36, 'data');
  view.setUint32(40, bytes, true);
  return view.buffer;
}
