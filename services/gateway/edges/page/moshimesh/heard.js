/** What of the answers was really heard: their text in time with the voice, and the last one that was played out. */

export class Heard {
  #texts = []; // {sequence, text} that wait for their voice
  #played = []; // {sequence, time} that have left the worklet, not yet the loudspeaker
  #hushedBefore = 0;
  #tell;

  /** @param {(text: {sequence: number, text: string, heard: boolean}) => void} tell */
  constructor(tell) {
    this.#tell = tell;
    /** Number of the last frame that the loudspeaker has played; -1: none. */
    this.until = -1;
  }

  /** @param {{sequence: number, text: string}} frame that has come */
  came({sequence, text}) {
    if (text) this.#texts.push({sequence, text});
    if (sequence < this.#hushedBefore) this.#flush(sequence, false);
  }

  /** The voice of this frame begins. */
  begun(sequence) {
    this.#flush(sequence, true);
  }

  /** No frame before this one that has not begun will be heard. */
  hush(before) {
    this.#hushedBefore = before;
    this.#flush(before - 1, false);
  }

  /** The worklet has given all of a frame to the device. @param {{sequence: number, time: number}} frame */
  played(frame) {
    this.#played.push(frame);
  }

  /** Time has passed. @param {{now: number, latency: number}} clock of the audio context, s */
  tick({now, latency}) {
    while (this.#played.length && this.#played[0].time + latency <= now) this.until = this.#played.shift().sequence;
  }

  #flush(until, heard) {
    while (this.#texts.length && this.#texts[0].sequence <= until) this.#tell({...this.#texts.shift(), heard});
  }
}
