/** One WebSocket to the mesh: docs/websocket.md. */

const OPEN_WITHIN_MS = 10_000; // a network that drops packets never refuses

/** @typedef {object} MeshError {code, reason, message, retry_after_ms?}; reason UNREACHABLE when there was none */

export class Connection {
  #socket;
  #frame = null; // what the audio to come belongs to
  #error = null;
  #timer;

  /** @param {string} url @param {string} ticket may be empty @param {object} open the first message
   * @param {{message: (m: object) => void, audio: (frame: object, data: ArrayBuffer) => void,
   *          closed: (error: MeshError) => void}} handlers
   */
  constructor(url, ticket, open, handlers) {
    this.lastHeardMs = performance.now();
    const socket = this.#socket = new WebSocket(url, ['moshimesh', ...(ticket ? [`moshimesh.ticket.${ticket}`] : [])]);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => {
      clearTimeout(this.#timer);
      this.send(open);
    };
    socket.onmessage = ({data}) => {
      this.lastHeardMs = performance.now();
      if (typeof data !== 'string') {
        if (this.#frame) handlers.audio(this.#frame, data);
        return;
      }
      const message = JSON.parse(data);
      if (message.type === 'frame') this.#frame = message;
      if (message.type === 'error') this.#error = message;
      else handlers.message(message);
    };
    socket.onclose = ({reason}) => {
      this.#forget();
      handlers.closed(this.#error ?? {code: 'UNAVAILABLE', reason: 'UNREACHABLE', message: reason});
    };
    this.#timer = setTimeout(() => socket.onclose?.({reason: 'no answer'}), OPEN_WITHIN_MS);
  }

  /** @param {object} message dropped when the socket is not open */
  send(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** @param {ArrayBuffer | ArrayBufferView} data */
  sendAudio(data) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(data);
  }

  /** Bytes that have not left. */
  get waiting() {
    return this.#socket.bufferedAmount;
  }

  /** Leave, without hearing of it. */
  close() {
    this.#forget();
  }

  #forget() {
    clearTimeout(this.#timer);
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }
}
