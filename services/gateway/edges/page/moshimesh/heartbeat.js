/** Whether the connection lives, and how long its round trip takes. */

const EVERY_MS = 1000;
const SILENT_MS = 4000; // the mesh answers each ping, so a connection that is silent for longer is dead
const SUSPECT_MS = 1500; // the same after the network has changed

export class Heartbeat {
  #id = 0;
  #sentMs = -Infinity;
  #suspectedMs = -Infinity;

  /** The last round trip; null until one is known. @type {number | null} */
  roundTripMs = null;

  /** The network has changed. */
  suspect() {
    this.#suspectedMs = performance.now();
  }

  /** @param {number} lastHeardMs when the connection said something */
  isDead(lastHeardMs) {
    const nowMs = performance.now();
    return nowMs - lastHeardMs > (nowMs - this.#suspectedMs < SILENT_MS ? SUSPECT_MS : SILENT_MS);
  }

  /** A ping, once a second. @returns {object | null} */
  ping() {
    if (performance.now() - this.#sentMs < EVERY_MS) return null;
    this.#sentMs = performance.now();
    return {type: 'ping', id: ++this.#id};
  }

  /** @param {{id: number}} message */
  pong({id}) {
    if (id === this.#id) this.roundTripMs = performance.now() - this.#sentMs;
  }
}
