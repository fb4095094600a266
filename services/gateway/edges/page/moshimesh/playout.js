/** The jitter buffer: frames in, whenever they come; an unbroken stream of samples out.
 *
 * Its delay follows the measured jitter (arrivals.js). It grows and shrinks by stretching and dropping silence, and by
 * repeating or leaving out periods of a voice when that is not enough. A frame that is late is replaced by what the
 * voice would go on with, dying away; each join is a cross-fade. Knows nothing of the browser: time is an argument.
 */

import {Arrivals} from './arrivals.js';
import {SampleQueue} from './queue.js';
import {Continuation, crossFade, pitchLag, quietRun} from './splice.js';

const MOST_QUEUED_S = 20; // what a resumed call may owe is 10 s; more is never heard
const HOP_MS = 10; // how much is decided at once
const FADE_MS = 10; // of a join, an interruption, the first samples
const JOIN_MS = 2.5; // held back at the end, to go over into a continuation
const SHORTEST_LAG_MS = 2.5, LONGEST_LAG_MS = 15; // 400 to 67 Hz: voices
const CONTINUE_FULL_MS = 10, CONTINUE_MS = 80; // a continuation is as loud as the voice, then dies away
const WAIT_AGAIN_MS = 400; // so long without a frame, and the buffer fills up again before it goes on
const QUIET = 0.004; // RMS, -48 dBFS: what may be dropped or stretched unheard
const SLACK_MS = 10; // nothing is done about less than that
const HURRY_MS = 60; // so far off, and periods of the voice are left out or repeated, too
const HURRIED_EVERY_MS = 30; // one period in so much, so that speech stays speech
const MOST_LATE_MS = 1000; // so much too late, and the oldest is left out: this is a conversation

/** @typedef {'waiting' | 'playing' | 'continuing'} PlayoutState */

export class Playout {
  #queue;
  #arrivals;
  #perMs;
  #ready = new Float32Array(0); // decided, not pulled
  #past; // the last samples that were played
  #continuation = null;
  #waited = 0; // samples, since the first frame waits
  #sinceHurry = 0;
  #dry = 0; // samples without a frame
  #ending = false;
  #fading = false;
  #hushedBefore = 0; // frames before this one are not played

  /** @param {{rate: number, frameMs: number}} format */
  constructor({rate, frameMs}) {
    this.#perMs = rate / 1000;
    this.#queue = new SampleQueue(MOST_QUEUED_S * rate);
    this.#arrivals = new Arrivals(frameMs);
    this.#past = new Float32Array(this.#samples(3 * LONGEST_LAG_MS));
    /** @type {PlayoutState} */
    this.state = 'waiting';
    this.frameMs = frameMs;
    /** How long after the fastest frame's arrival a sample is played. */
    this.delayMs = 0;
    this.frames = this.lost = this.late = this.underruns = 0;
    this.playedMs = this.concealedMs = this.droppedMs = this.stretchedMs = 0;
  }

  get depthMs() {
    return (this.#queue.length + this.#ready.length) / this.#perMs;
  }

  /** What `delayMs` shall be. */
  get targetMs() {
    return this.#arrivals.targetMs;
  }

  get jitterMs() {
    return this.#arrivals.jitterMs;
  }

  /** A frame, or a part of one, has come.
   * @param {number} sequence @param {Float32Array} samples @param {number} atMs when
   */
  push(sequence, samples, atMs) {
    const {last} = this.#queue, gap = last >= 0 && sequence > last + 1;
    if (sequence > last) {
      this.frames++;
      if (gap) this.lost += sequence - last - 1;
      if (this.state === 'continuing') this.late++;
      const lateMs = this.#arrivals.arrived(sequence, atMs);
      if (lateMs !== null) this.delayMs = this.depthMs + lateMs;
    }
    if (sequence < this.#hushedBefore) {
      this.#queue.last = sequence;
      return;
    }
    const joined = gap && (this.state === 'playing' || this.#queue.length > 0);
    this.#queue.push(sequence, joined ? this.#overGap(samples) : samples);
  }

  /** The next samples. @param {number} count @returns {Float32Array} */
  pull(count) {
    while (this.#ready.length < count) {
      this.#ready = joinedTo(this.#ready, this.#decide());
    }
    const out = this.#ready.slice(0, count);
    this.#ready = this.#ready.slice(count);
    this.playedMs += count / this.#perMs;
    return out;
  }

  /** Fade out what is heard, drop what waits, and all frames before this one that are still on their way.
   * @param {number} firstHeard
   */
  interrupt(firstHeard) {
    this.#hushedBefore = firstHeard;
    if (this.state === 'waiting') this.#queue.clear();
    else this.#fading = true;
  }

  /** No more frames will come: the last ones are played, and then silence is no underrun. */
  end() {
    this.#ending = true;
  }

  /** Whether all has been played after `end`. */
  get drained() {
    return this.#ending && this.state === 'waiting' && this.#queue.length === 0;
  }

  /** The frames come another way from now on, after a reconnect. */
  restart() {
    this.#arrivals.restart();
  }

  /** See SampleQueue.left. */
  left() {
    return this.#queue.left();
  }

  #samples(ms) {
    return Math.round(ms * this.#perMs);
  }

  /** The next piece, 1 to some 20 ms. */
  #decide() {
    if (this.#fading) return this.#fadeOut();
    if (this.state === 'waiting') return this.#wait();
    if (this.state === 'continuing') return this.#goOn();
    const join = this.#samples(JOIN_MS), {length} = this.#queue;
    if (length > this.#samples(HOP_MS) + join) return this.#heard(this.#adapt());
    if (length > join) return this.#heard(this.#queue.take(length - join));
    return this.#runDry();
  }

  #wait() {
    const {length} = this.#queue, step = this.#samples(JOIN_MS);
    if (length === 0) {
      this.#waited = 0;
      return new Float32Array(step);
    }
    this.#waited += step;
    const enough = length >= (this.frameMs + this.targetMs) * this.#perMs || this.#ending;
    if (!enough && this.#waited < this.targetMs * this.#perMs) return new Float32Array(step);
    this.state = 'playing';
    this.#waited = 0;
    this.delayMs = this.targetMs;
    const begin = this.#queue.take(Math.min(this.#samples(FADE_MS), length));
    return this.#heard(crossFade(new Float32Array(begin.length), begin));
  }

  #fadeOut() {
    const fade = this.#samples(FADE_MS);
    const end = this.state === 'continuing' ? this.#continuation.next(fade)
      : this.#queue.take(Math.min(fade, this.#queue.length));
    this.#queue.clear();
    this.#fading = false;
    this.state = 'waiting';
    return this.#heard(crossFade(end, new Float32Array(end.length)));
  }

  /** The frame that should be here is not: go over into what the voice would go on with. */
  #runDry() {
    const join = this.#samples(JOIN_MS), rest = this.#queue.take(this.#queue.length);
    if (this.#ending) {
      this.state = 'waiting';
      return crossFade(rest, new Float32Array(rest.length));
    }
    this.underruns++;
    this.#dry = 0;
    this.state = 'continuing';
    this.#continuation = new Continuation(joinedTo(this.#past, rest), {
      shortest: this.#samples(SHORTEST_LAG_MS), longest: this.#samples(LONGEST_LAG_MS),
      join: Math.min(join, rest.length), full: this.#samples(CONTINUE_FULL_MS), end: this.#samples(CONTINUE_MS),
    });
    return this.#continuation.seam;
  }

  #goOn() {
    const fade = this.#samples(FADE_MS), step = this.#samples(JOIN_MS);
    if (this.#queue.length >= fade + step) {
      this.state = 'playing';
      return this.#heard(crossFade(this.#continuation.next(fade), this.#queue.take(fade)));
    }
    this.#dry += step;
    if (!this.#ending) this.concealedMs += step / this.#perMs;
    if (this.#dry > WAIT_AGAIN_MS * this.#perMs) this.state = 'waiting';
    return this.#continuation.next(step);
  }

  /** The next hop, shortened or stretched towards the target. */
  #adapt() {
    const queue = this.#queue, hop = this.#samples(HOP_MS), fade = this.#samples(FADE_MS);
    const excess = this.delayMs - this.targetMs, longest = this.#samples(LONGEST_LAG_MS);
    this.#sinceHurry += HOP_MS;
    const room = queue.length - this.#samples(JOIN_MS) - fade;
    if (excess > MOST_LATE_MS && room > 0) return this.#leaveOut(Math.min(room, this.#samples(excess)), fade);
    if (Math.abs(excess) <= SLACK_MS) return queue.take(hop);
    const quiet = quietRun(queue.peek(0, queue.length), this.#samples(JOIN_MS), QUIET) - fade;
    if (excess > 0 && quiet > 0) return this.#leaveOut(Math.min(quiet, this.#samples(excess), Math.max(room, 0)), fade);
    if (excess < 0 && quiet > 0) return this.#stretch(Math.min(quiet, this.#samples(-excess)), fade);
    const far = Math.abs(excess) > HURRY_MS && this.#sinceHurry >= HURRIED_EVERY_MS;
    if (far && queue.length >= 2 * longest + fade) {
      this.#sinceHurry = 0;
      const {lag} = pitchLag(queue.peek(0, queue.length), 0, fade, this.#samples(SHORTEST_LAG_MS), longest, 1);
      return excess > 0 ? this.#leaveOut(lag, fade) : this.#stretch(lag, fade);
    }
    return queue.take(hop);
  }

  /** Go over into what comes `count` samples later. */
  #leaveOut(count, fade) {
    const out = crossFade(this.#queue.peek(0, fade), this.#queue.peek(count, count + fade));
    this.#queue.drop(count + fade);
    this.delayMs -= count / this.#perMs;
    this.droppedMs += count / this.#perMs;
    return out;
  }

  /** Play the next `count` samples, and then go back to where they began. */
  #stretch(count, fade) {
    const out = new Float32Array(count + fade);
    out.set(this.#queue.peek(0, count));
    out.set(crossFade(this.#queue.peek(count, count + fade), this.#queue.peek(0, fade)), count);
    this.#queue.drop(fade);
    this.delayMs += count / this.#perMs;
    this.stretchedMs += count / this.#perMs;
    return out;
  }

  /** The begin of a frame after frames that the mesh has skipped, joined to the end of what waits. */
  #overGap(samples) {
    const fade = this.#samples(FADE_MS), before = joinedTo(this.#past, this.#queue.peek(0, this.#queue.length));
    const out = samples.slice(), end = before.length - 1;
    // Mirrored in its last sample, the past goes on as smoothly as it was.
    const onwards = Float32Array.from({length: fade}, (_, i) => 2 * before[end] - before[end - 1 - i]);
    out.set(crossFade(onwards, samples.subarray(0, fade)));
    return out;
  }

  /** Remember what was played, as the past of a continuation. */
  #heard(samples) {
    const past = this.#past, kept = Math.min(samples.length, past.length);
    past.copyWithin(0, kept);
    past.set(samples.subarray(samples.length - kept), past.length - kept);
    return samples;
  }
}

function joinedTo(first, second) {
  const both = new Float32Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
