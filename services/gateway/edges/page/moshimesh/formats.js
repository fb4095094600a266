/** How audio travels: 16 bit samples, or Opus by the browser's own WebCodecs. */

const FULL_SCALE = 32768;
const OPUS_RATE = 48_000, OPUS_PACKET_US = 20_000, OPUS_BITS = 32_000; // transparent for one voice

/** Whether this browser can speak and understand Opus. @returns {Promise<boolean>} */
export async function hasOpus() {
  if (!globalThis.AudioEncoder || !globalThis.AudioDecoder) return false;
  const [encoder, decoder] = await Promise.all([
    AudioEncoder.isConfigSupported(OPUS_ENCODER), AudioDecoder.isConfigSupported(OPUS_DECODER)]).catch(() => [{}, {}]);
  return Boolean(encoder.supported && decoder.supported);
}

/** @param {'s16le' | 'opus'} name
 * @returns {{name: string, rate: number, keptS: number, codec: object}} keptS: how much of the caller's audio to keep
 * for a call that is resumed: what the mesh's encoder remembers, and what was said during a cut. Opus keeps less, since
 * each packet is a message, and the mesh takes 1000 at once.
 */
export function format(name) {
  return name === 'opus' ? {name, rate: OPUS_RATE, keptS: 15, codec: Opus}
    : {name: 's16le', rate: 24_000, keptS: 45, codec: Pcm16};
}

/** Audio of one connection, both ways. */
class Pcm16 {
  /** @param {(data: ArrayBufferView) => void} send
   * @param {(sequence: number, samples: Float32Array) => void} heard
   */
  constructor(send, heard) {
    this.#send = send;
    this.#heard = heard;
  }

  #send;
  #heard;

  /** @param {Float32Array} frame or several */
  encode(frame) {
    const data = new Int16Array(frame.length);
    for (let i = 0; i < data.length; i++) {
      data[i] = Math.max(-FULL_SCALE, Math.min(FULL_SCALE - 1, Math.round(frame[i] * FULL_SCALE)));
    }
    this.#send(data);
  }

  /** @param {number} sequence @param {ArrayBuffer} data */
  decode(sequence, data) {
    this.#heard(sequence, Float32Array.from(new Int16Array(data), sample => sample / FULL_SCALE));
  }

  close() {}
}

const OPUS_ENCODER = {codec: 'opus', sampleRate: OPUS_RATE, numberOfChannels: 1, bitrate: OPUS_BITS,
  opus: {frameDuration: OPUS_PACKET_US}};
const OPUS_DECODER = {codec: 'opus', sampleRate: OPUS_RATE, numberOfChannels: 1};

class Opus {
  #encoder;
  #decoder;
  #encodedUs = 0;
  #sequences = new Map(); // of the packets that are being decoded, by timestamp
  #decodedUs = 0;

  constructor(send, heard) {
    this.#encoder = new AudioEncoder({
      output: packet => {
        const data = new Uint8Array(packet.byteLength);
        packet.copyTo(data);
        send(data);
      },
      error: error => console.error(error),
    });
    this.#encoder.configure(OPUS_ENCODER);
    this.#decoder = new AudioDecoder({
      output: audio => {
        const samples = new Float32Array(audio.numberOfFrames);
        audio.copyTo(samples, {planeIndex: 0, format: 'f32-planar'});
        const sequence = this.#sequences.get(audio.timestamp);
        this.#sequences.delete(audio.timestamp);
        audio.close();
        if (sequence !== undefined) heard(sequence, samples);
      },
      error: error => console.error(error),
    });
    this.#decoder.configure(OPUS_DECODER);
  }

  encode(frame) {
    const audio = new AudioData({format: 'f32-planar', sampleRate: OPUS_RATE, numberOfChannels: 1,
      numberOfFrames: frame.length, timestamp: this.#encodedUs, data: frame.slice()});
    this.#encodedUs += frame.length / OPUS_RATE * 1e6;
    this.#encoder.encode(audio);
    audio.close();
  }

  decode(sequence, data) {
    this.#sequences.set(this.#decodedUs, sequence);
    this.#decoder.decode(new EncodedAudioChunk(
      {type: 'key', timestamp: this.#decodedUs, duration: OPUS_PACKET_US, data}));
    this.#decodedUs += OPUS_PACKET_US;
  }

  close() {
    for (const codec of [this.#encoder, this.#decoder]) if (codec.state !== 'closed') codec.close();
  }
}
