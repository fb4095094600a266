/** One connection of a call, and the audio that goes through it. A call that is cut off goes on with another one. */

import {Connection} from './connection.js';

/** @typedef {import('./connection.js').MeshError} MeshError */

export class Leg {
  #connection = null;
  #codec;
  #handlers;
  #sequence = null; // the frame that comes
  #wanted = false;
  #cameMs = 0;
  #refuse = null;
  #closed = false;

  /** @param {{url: string, ticket: string | (() => Promise<string>), format: object, open: object}} how
   * @param {object} handlers told(leg, message), came(frame), wanted(leg, sequence), heard(sequence, samples, atMs),
   * lost(leg, error) after it was ready
   */
  constructor({url, ticket, format: {name, rate, codec}, open}, handlers) {
    this.#handlers = handlers;
    this.#codec = new codec(data => this.#connection.sendAudio(data),
      (sequence, samples) => handlers.heard(sequence, samples, this.#cameMs));
    /** Number of the first frame that it sends. */
    this.first = open.resume?.first_sequence ?? 0;
    /** The mesh's ready message. */
    this.ready = null;
    /** When the mesh is ready; rejects with a MeshError. @type {Promise<Leg>} */
    this.opened = new Promise((resolve, reject) => {
      this.#refuse = reject;
      this.#dial(url, ticket, {type: 'open', format: name, rate, ...open}, resolve);
    });
  }

  async #dial(url, ticket, open, resolve) {
    let proof;
    try {
      proof = typeof ticket === 'function' ? await ticket() : ticket;
    } catch (error) {
      this.#refuse({code: 'UNAUTHENTICATED', reason: 'NO_TICKET', message: String(error)});
      return;
    }
    if (this.#closed) return;
    this.#connection = new Connection(url, proof, open, {
      message: message => {
        if (message.type !== 'ready') {
          this.#handlers.told(this, message);
          return;
        }
        this.ready = message;
        resolve(this);
      },
      audio: (frame, data) => this.#audio(frame, data),
      closed: error => {
        this.#codec.close();
        if (this.ready) this.#handlers.lost(this, error);
        else this.#refuse(error);
      },
    });
  }

  /** Audio of a frame, the whole or a part. */
  #audio(frame, data) {
    if (frame.sequence !== this.#sequence) {
      this.#sequence = frame.sequence;
      this.#cameMs = performance.now();
      this.#wanted = this.#handlers.wanted(this, frame.sequence);
      if (this.#wanted) this.#handlers.came(frame);
    }
    if (this.#wanted) this.#codec.decode(frame.sequence, data);
  }

  /** @param {object} message */
  send(message) {
    this.#connection?.send(message);
  }

  /** @param {Float32Array} audio of the caller, whole frames */
  say(audio) {
    this.#codec.encode(audio);
  }

  get lastHeardMs() {
    return this.#connection.lastHeardMs;
  }

  /** Bytes that have not left. */
  get waiting() {
    return this.#connection.waiting;
  }

  /** Leave, without hearing of it. */
  close() {
    this.#closed = true;
    this.#connection?.close();
    this.#codec.close();
    this.#refuse({code: 'CANCELLED', reason: 'CANCELLED', message: 'left'});
  }
}
