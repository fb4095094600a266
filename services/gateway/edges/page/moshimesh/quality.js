/** What a call is like for its caller. */

const WINDOW_S = 10; // of the concealed share

/** Estimated mean opinion score, 1 to 4.5, by the E-model (ITU-T G.107), simplified.
 *
 * The delay's impairment is the approximation of Cole and Rosenbluth, "Voice over IP performance monitoring" (2001);
 * the loss's is Ie,eff of G.107 7-29 with the Bpl of a codec that conceals (G.113, 19). Of Mimi itself nothing is
 * taken off: this is what the network and the buffer do to a call.
 * @param {{delayMs: number, concealedShare: number}} heard delay from mouth to ear, without the model's own
 */
export function meanOpinionScore({delayMs, concealedShare}) {
  const percent = concealedShare * 100;
  const rating = Math.min(Math.max(
    93.2 - 0.024 * delayMs - 0.11 * Math.max(delayMs - 177.3, 0) - 95 * percent / (percent + 19), 0), 100);
  return Math.max(1 + 0.035 * rating + rating * (rating - 60) * (100 - rating) * 7e-6, 1);
}

/** @typedef {object} Statistics the playback worklet's counters (frames, lost, late, underruns; depthMs, targetMs,
 * delayMs, jitterMs; playedMs, concealedMs, droppedMs, stretchedMs), and roundTripMs (null: unknown), latencyMs of the
 * device, skipped by the mesh, waitingBytes to be sent, concealedShare of the last 10 s, mos from 1 to 4.5
 */

export class Figures {
  #history = []; // counters, one a second

  /** @param {object} counters of the worklet, once a second @param {object} others @returns {Statistics} */
  of(counters, others) {
    this.#history.push(counters);
    if (this.#history.length > WINDOW_S) this.#history.shift();
    const [before] = this.#history, playedMs = counters.playedMs - before.playedMs;
    const concealedShare = playedMs ? (counters.concealedMs - before.concealedMs) / playedMs : 0;
    const delayMs = (others.roundTripMs ?? 0) / 2 + counters.delayMs + others.latencyMs;
    return {...counters, ...others, concealedShare, mos: meanOpinionScore({delayMs, concealedShare})};
  }
}
