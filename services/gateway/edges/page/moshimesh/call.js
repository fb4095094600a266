/** A conversation with a moshi-mesh: the microphone goes there, Moshi's voice is played, and a call that is cut off
 * goes on by itself. See README.md beside this file.
 */

import {EchoDetector} from './echo.js';
import {format} from './formats.js';
import {Heard} from './heard.js';
import {Heartbeat} from './heartbeat.js';
import {Leg} from './leg.js';
import {Legs} from './legs.js';
import {Outgoing} from './outgoing.js';
import {Figures} from './quality.js';
import {Recording} from './recording.js';
import {Sound} from './sound.js';

const FIRST_RETRY_MS = 50, LONGEST_RETRY_MS = 1000;
const PLAYED_EVERY_MS = 250; // what the mesh is told about the loudspeaker
const FAREWELL_MS = 4000; // for the answers that are owed after `end`
const STORED = 'moshimesh.call';
const HANDED_ON = {queued: 'queued', event: 'event', resume_status: 'resumable'}; // from the mesh, as events

/** @typedef {'idle' | 'starting' | 'connecting' | 'queued' | 'live' | 'resuming' | 'ending' | 'ended'} State */
/** @typedef {object} Sampling temperature, top_k, text_temperature, text_top_k, seed; absent: as the model has it */

/** Events, each a CustomEvent with a `detail`:
 * - `state` {state, previous}
 * - `queued` {position, estimated_wait_ms}
 * - `ready` the mesh's message: session_id, model_id, sampling, frame_ms ...; again after each resume
 * - `frame` {sequence, text, skipped, traceparent, hops} when it arrives
 * - `text` {sequence, text, heard} when it is heard; heard is false for what an interruption has dropped
 * - `event` {event, sequence, at_ms}: speech started and stopped, interrupted ...
 * - `statistics` once a second, see `Statistics` in quality.js
 * - `resumable` {available}
 * - `echo` {} the microphone hears the loudspeaker
 * - `microphone` {lost, id, replaced}
 * - `audible` {audible} whether the browser lets sound flow; if not, call `unlock` in a tap
 * - `error` {code, reason, message, retry_after_ms}, before `ended`
 * - `ended` {summary, error}, last
 */
export class Call extends EventTarget {
  #options;
  #format;
  #sound = null;
  #outgoing = null; // from the first ready on
  #legs;
  #opening = null; // the one that is not ready yet
  #resuming = false;
  #ready = null;
  #heard = new Heard(text => this.#tell('text', text));
  #toldPlayed = {sequence: -1, atMs: 0};
  #heartbeat = new Heartbeat();
  #figures = new Figures();
  #echo;
  #echoTold = false;
  #recording = null;
  #skipped = 0; // by the mesh, on this leg
  #skippedBefore = 0;
  #summary = null;
  #wake = () => {};
  #listening = new AbortController();

  /** @param {object} options
   * @param {string} [options.url] of the mesh, http(s) or ws(s); this page's own by default
   * @param {string | (() => Promise<string>)} [options.ticket] where the mesh asks for keys: each connection needs one
   * @param {'s16le' | 'opus'} [options.format]
   * @param {{model?: string, voice?: string, text_prompt?: string, sampling?: Sampling}} [options.settings]
   * @param {boolean} [options.record] keep both voices, for `recording`
   * @param {MediaTrackConstraints} [options.processing] of the microphone by the browser
   * @param {{handle: string, answered: number}} [options.resume] from `Call.saved`
   * @param {Storage | null} [options.storage] where a call waits while the page is loaded again
   */
  constructor(options = {}) {
    super();
    const address = new URL('/api/pcm', options.url ?? location.href);
    address.protocol = address.protocol.replace('http', 'ws');
    this.#options = {
      settings: {}, record: false, resume: null, storage: globalThis.sessionStorage ?? null,
      processing: {echoCancellation: true, noiseSuppression: true, autoGainControl: true},
      ...options, url: address.href};
    this.#format = format(options.format ?? 's16le');
    this.#echo = new EchoDetector(this.#format.rate);
    this.#legs = new Legs({told: message => this.#told(message), changed: leg => this.#changed(leg)},
      options.resume?.answered ?? -1);
    /** @type {State} */
    this.state = 'idle';
    this.muted = false;
  }

  /** The call that this tab had before it was loaded again, if it can still be resumed. Asking takes it away.
   * @returns {{handle: string, answered: number} | null}
   */
  static saved(storage = sessionStorage) {
    const text = storage.getItem(STORED);
    storage.removeItem(STORED);
    const saved = text && JSON.parse(text);
    return saved && saved.until > Date.now() ? saved : null;
  }

  /** Begin. Call it in a tap or click, which lets sound flow. Never rejects: see `error`.
   * @param {{microphoneId?: string, speakerId?: string}} [devices]
   */
  async start({microphoneId = '', speakerId = ''} = {}) {
    this.#enter('starting');
    this.#sound = new Sound(this.#format.rate, this.#options.processing);
    if (this.#options.record) this.#recording = new Recording(this.#format.rate);
    this.#listen();
    try {
      await this.#sound.open(microphoneId);
      if (speakerId) await this.#sound.setSpeaker(speakerId);
    } catch (error) {
      this.#finish({code: 'MICROPHONE', reason: error.name, message: error.message});
    }
    if (this.state === 'ended') return;
    this.#sound.mute(this.muted);
    this.#enter('connecting');
    try {
      this.#adopt(await this.#connect());
    } catch (error) {
      this.#finish(error);
    }
  }

  /** Silence Moshi: what is buffered fades out at once, and the mesh stops speaking. */
  interrupt(holdMs = 480) {
    if (!this.#outgoing) return;
    // Frames before this one were answered, or will be, before the mesh hears of it.
    const firstHeard = this.#outgoing.next + this.#ready.delay_frames;
    this.#sound.play({type: 'interrupt', firstHeard});
    this.#legs.send({type: 'interrupt', hold_ms: holdMs});
    this.#tellPlayed(true);
    this.#heard.hush(firstHeard);
  }

  /** @param {string} text that Moshi shall speak */
  say(text) {
    this.#legs.send({type: 'say', text});
  }

  /** @param {boolean} muted */
  mute(muted) {
    this.muted = muted;
    this.#sound?.mute(muted);
  }

  /** @param {number} volume 0 to 1 */
  setVolume(volume) {
    this.#sound?.setVolume(volume);
  }

  /** Draw tokens like this from the next frame on. @param {Sampling} sampling */
  apply(sampling) {
    this.#legs.send({type: 'settings', sampling});
  }

  /** @param {string} id '' is the default. Rejects when it can't be opened; the old one stays. */
  setMicrophone(id) {
    return this.#sound.setMicrophone(id);
  }

  /** @param {string} id likewise */
  setSpeaker(id) {
    return this.#sound.setSpeaker(id);
  }

  /** For meters and pictures. @returns {{microphone: AnalyserNode, speaker: AnalyserNode} | null} */
  get analysers() {
    return this.#sound?.analysers ?? null;
  }

  get microphoneId() {
    return this.#sound?.microphoneId ?? '';
  }

  get audible() {
    return this.#sound?.running ?? false;
  }

  unlock() {
    return this.#sound?.resume();
  }

  /** Say goodbye: the mesh answers what it still owes, then `ended` comes. */
  end() {
    if (this.state === 'ending') return;
    if (this.state !== 'live' || !this.#legs.current) {
      this.#finish(null);
      return;
    }
    this.#legs.hurry();
    this.#enter('ending');
    this.#legs.send({type: 'end'});
    setTimeout(() => this.#finish(null), FAREWELL_MS);
  }

  /** Both voices until now, as a stereo WAV: the caller left, Moshi right. @returns {Blob | null} */
  recording() {
    return this.#recording?.wav() ?? null;
  }

  // Connections

  #connect() {
    const resume = this.#resumption(), {url, ticket = '', settings} = this.#options;
    const open = {frames: true, pacing: 'live', ...settings, ...(resume && {resume})};
    this.#opening = new Leg({url, ticket, format: this.#format, open}, {
      told: (leg, message) => this.#legs.told(leg, message),
      came: frame => this.#came(frame),
      wanted: (leg, sequence) => this.#legs.wants(leg, sequence, performance.now()),
      heard: (sequence, samples, atMs) =>
        this.#sound.play({type: 'frame', sequence, samples, atMs}, [samples.buffer]),
      lost: (leg, error) => this.#lost(leg, error),
    });
    return this.#opening.opened;
  }

  /** What the mesh must know of a call that was cut off. */
  #resumption() {
    const handle = this.#ready?.resume_handle ?? this.#options.resume?.handle;
    if (!handle) return null;
    const {answered} = this.#legs, next = answered + 1;
    const first = this.#outgoing ? Math.max(next - this.#ready.priming_frames, this.#outgoing.earliest, 0) : next;
    return {handle, first_sequence: first, ...(next > 0 && {answered_sequence: answered})};
  }

  /** Go on with this connection, which is ready, as soon as it has caught up with the one in use. */
  #adopt(leg) {
    this.#opening = null;
    for (const audio of this.#outgoing?.from(leg.first) ?? []) leg.say(audio);
    this.#legs.add(leg);
  }

  #changed({ready, first}) {
    this.#ready = ready;
    if (!this.#outgoing) {
      this.#outgoing = new Outgoing(this.#format, ready.frame_ms, first);
      this.#outgoing.align(performance.now() + ready.frame_due_us / 1000);
      this.#sound.startPlayback(ready.frame_ms);
    } else this.#sound.play({type: 'restart'});
    [this.#skippedBefore, this.#skipped] = [this.#skippedBefore + this.#skipped, 0];
    this.#enter('live');
    this.#tell('ready', ready);
  }

  #lost(leg, error) {
    const beside = leg !== this.#legs.current; // it was still catching up
    if (this.#legs.lost(leg)) return beside && !this.#resuming && this.#resume();
    if (this.#summary) return; // the rest is still played
    if (this.#resuming) this.#enter('resuming');
    else if (this.state === 'ending' && isCut(error)) this.#finish(null);
    else if (!isCut(error)) this.#finish(error);
    else this.#resume();
  }

  /** Connect again, until it works or the mesh has forgotten the call. */
  async #resume() {
    const deadline = performance.now() + this.#ready.resume_grace_ms;
    this.#resuming = true;
    if (!this.#legs.current) this.#enter('resuming');
    for (let waitMs = FIRST_RETRY_MS; this.state !== 'ended'; waitMs = Math.min(2 * waitMs, LONGEST_RETRY_MS)) {
      try {
        this.#adopt(await this.#connect());
        break;
      } catch (error) {
        if (this.state === 'ended') return;
        const again = isCut(error) || error.code === 'RESOURCE_EXHAUSTED';
        if (!again || performance.now() > deadline) return this.#finish(error);
        await new Promise(resolve => {
          this.#wake = resolve;
          setTimeout(resolve, Math.max(waitMs, error.retry_after_ms ?? 0));
        });
      }
    }
    this.#resuming = false;
  }

  // What comes from the mesh

  #told(message) {
    const {type} = message;
    if (type === 'queued' && this.state === 'connecting') this.#enter('queued');
    if (type === 'go_away' && !this.#resuming) this.#resume();
    if (type === 'pong') this.#heartbeat.pong(message);
    if (type === 'summary') {
      this.#summary = message;
      this.#sound.play({type: 'end'});
      setTimeout(() => this.#finish(null), FAREWELL_MS);
    }
    if (HANDED_ON[type]) this.#tell(HANDED_ON[type], message);
  }

  #came(frame) {
    this.#skipped = frame.skipped ?? 0;
    this.#heard.came(frame);
    this.#tell('frame', frame);
  }

  // What comes from the audio thread

  #listen() {
    const {signal} = this.#listening, sound = this.#sound;
    const on = (type, hear) => sound.addEventListener(type, ({detail}) => hear(detail), {signal});
    on('piece', ({piece, time}) => this.#said(piece, time));
    on('begun', ({sequence}) => this.#heard.begun(sequence));
    on('played', detail => this.#heard.played(detail));
    on('report', detail => this.#reported(detail));
    on('microphone', detail => this.#microphoneLost(detail));
    on('audible', detail => this.#tell('audible', detail));
    globalThis.addEventListener('pagehide', () => this.#save(), {signal});
    globalThis.addEventListener('online', () => this.#wake(), {signal});
    navigator.connection?.addEventListener?.('change', () => this.#heartbeat.suspect(), {signal});
  }

  #said(piece, time) {
    this.#echo.heard(piece);
    this.#recording?.add('left', piece, time);
    if (!this.#outgoing || this.state === 'ending') return;
    const frame = this.#outgoing.add(piece, performance.now());
    if (frame) this.#legs.say(frame);
  }

  async #microphoneLost({id}) {
    let replaced = true;
    try {
      await this.#sound.setMicrophone('');
    } catch {
      replaced = false; // the mesh hears silence
    }
    if (this.state !== 'ended') this.#tell('microphone', {lost: true, id, replaced});
  }

  /** Ten times a second, whatever the page's timers do in the background. */
  #reported({time, samples, statistics}) {
    this.#echo.played(samples);
    this.#recording?.add('right', samples, time);
    this.#tellPlayed(false);
    if (this.#summary && statistics.drained) this.#finish(null);
    if (this.state === 'ended') return;
    const leg = this.#legs.current, ping = this.#heartbeat.ping();
    if (leg && this.#heartbeat.isDead(leg.lastHeardMs)) {
      leg.close();
      this.#lost(leg, {code: 'UNAVAILABLE', reason: 'UNREACHABLE', message: 'nothing was heard from the mesh'});
    }
    if (!ping) return;
    this.#legs.current?.send(ping);
    this.#tell('statistics', this.#figures.of(statistics, {
      roundTripMs: this.#heartbeat.roundTripMs, latencyMs: this.#sound.clock.latency * 1000,
      skipped: this.#skippedBefore + this.#skipped, waitingBytes: leg?.waiting ?? 0}));
    if (!this.#echoTold && this.#echo.echoes) {
      this.#echoTold = true;
      this.#tell('echo', {});
    }
  }

  /** Tell the mesh what the loudspeaker has really played. */
  #tellPlayed(now) {
    this.#heard.tick(this.#sound.clock);
    const {sequence, atMs} = this.#toldPlayed, {until} = this.#heard;
    if (until === sequence || (!now && performance.now() - atMs < PLAYED_EVERY_MS)) return;
    this.#toldPlayed = {sequence: until, atMs: performance.now()};
    this.#legs.send({type: 'played', sequence: until});
  }

  /** For the page that comes after this one, in this tab. */
  #save() {
    if (!this.#ready?.resume_handle || !this.#options.storage || this.state === 'ending') return;
    const {resume_handle: handle, resume_grace_ms: graceMs} = this.#ready;
    this.#options.storage.setItem(STORED, JSON.stringify({
      handle, answered: this.#legs.answered, until: Date.now() + graceMs}));
  }

  #finish(error) {
    if (this.state === 'ended') return;
    this.#enter('ended');
    this.#listening.abort();
    this.#legs.close();
    this.#opening?.close();
    this.#opening = null;
    this.#wake();
    this.#sound?.close();
    if (error) this.#tell('error', error);
    this.#tell('ended', {summary: this.#summary, error});
  }

  #enter(state) {
    const previous = this.state;
    if (previous === state) return;
    this.state = state;
    this.#tell('state', {state, previous});
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, {detail}));
  }
}

/** Whether the call was cut off rather than refused. A call that another tab has resumed belongs to that one. */
function isCut({code, reason}) {
  return code === 'UNAVAILABLE' || (code === 'INTERNAL' && !reason);
}
