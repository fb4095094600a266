/** The page: a conversation, its controls and its pictures, made of ./moshimesh. */

import {Call} from './moshimesh/call.js';
import {missing} from './moshimesh/sound.js';
import {Captions} from './captions.js';
import {chosen, listDevices, onChoice, processing} from './devices.js';
import {Latency} from './latency.js';
import {VoicePicture} from './pictures.js';
import * as settings from './settings.js';
import {speakWith, tell} from './words.js';

const $ = id => document.getElementById(id);
const ui = Object.fromEntries(['status', 'advice', 'start', 'start-text', 'problem', 'hint', 'controls', 'mute', 'interrupt',
  'volume', 'end', 'latency', 'record', 'downloads', 'wav', 'text', 'key'].map(id => [id, $(id)]));

const RUNNING = new Set(['starting', 'connecting', 'queued', 'live', 'resuming', 'ending']);
const PROBLEM_KEYS = new Set(['NotAllowedError', 'NotFoundError', 'NotReadableError', 'OverconstrainedError', 'UNREACHABLE',
  'REFUSED', 'NO_KEY', 'NO_TICKET', 'LINE_FULL', 'NO_FREE_SLOT', 'OVERLOADED', 'TOO_MANY_CALLS', 'AUDIO_QUOTA_USED',
  'SESSION_MOVED', 'UNKNOWN_SESSION', 'CALL_TOO_LONG', 'IDLE_CALLER', 'PEER_LOST', 'DRAINING', 'UNKNOWN_MODEL']);

/** For the console, and the tests. */
export const page = globalThis.moshimesh = {call: null};

let saved = Call.saved();
let wakeLock = null;
let latency, pictures, captions;

const running = () => page.call && RUNNING.has(page.call.state) ? page.call : null;

// The call

function begin() {
  tellProblem(null);
  tell(ui.hint, '');
  if (settings.lacksKey()) {
    tellProblem({reason: 'NO_KEY'});
    ui.key.focus();
    return;
  }
  const {format: asked, ...rest} = settings.settings();
  format = asked;
  delete document.body.dataset.session; // none yet, or none of this page's
  const call = page.call = new Call({
    format, record: ui.record.checked, processing: processing(), resume: saved, ticket: settings.ticket,
    settings: rest,
  });
  if (!saved) captions.clear();
  saved = null;
  listen(call);
  call.start(chosen());
  call.setVolume(Number(ui.volume.value));
}

function listen(call) {
  const on = (type, hear) => call.addEventListener(type, ({detail}) => hear(detail));
  on('state', ({state}) => show(call, state));
  on('queued', ({position, estimated_wait_ms: waitMs}) => tell(ui.status, 'queued', position, waitMs));
  on('ready', ready => opened(call, ready));
  on('frame', frame => latency.add(frame));
  on('text', text => captions.add(text));
  on('statistics', figures => {
    latency.figures(figures);
    watchNetwork(figures);
  });
  on('audible', () => show(call, call.state));
  on('echo', () => tell(ui.hint, 'hints.echo'));
  on('microphone', ({replaced}) => {
    tell(ui.hint, replaced ? 'hints.microphoneReplaced' : 'hints.microphoneLost');
    listDevices(call.microphoneId);
  });
  on('error', error => {
    if (!document.body.dataset.session) {
      tell(ui.status, 'states.failed');
      tell(ui.advice, '');
    }
    explain(error);
  });
  on('ended', () => {
    for (const picture of Object.values(pictures)) picture.show(null);
    ui.wav.hidden = !call.recording();
    ui.text.hidden = captions.empty;
    ui.downloads.hidden = ui.wav.hidden && ui.text.hidden;
  });
}

function opened(call, ready) {
  pictures.microphone.show(call.analysers.microphone);
  pictures.speaker.show(call.analysers.speaker);
  settings.placeholders(ready.sampling);
  if (document.body.dataset.session !== ready.session_id) latency.clear(ready.frame_ms);
  document.body.dataset.session = ready.session_id;
  listDevices(call.microphoneId);
  stayAwake();
}

function show(call, state) {
  const runs = RUNNING.has(state), unlock = state === 'live' && !call.audible, focused = document.activeElement;
  document.body.dataset.state = state;
  tell(ui.status, `states.${state}`);
  tell(ui.advice, unlock ? 'advice.unlock' : `advice.${state}`);
  tell(ui['start-text'], unlock ? 'start.unlock' : 'start.again');
  ui.start.hidden = runs && !unlock;
  ui.controls.hidden = !runs;
  ui.interrupt.disabled = state !== 'live';
  settings.freeze(runs);
  if (runs) ui.downloads.hidden = true;
  if (state === 'live') ui.latency.hidden = false;
  if (state !== 'live' && slowFor) {
    tell(ui.hint, '');
    slowFor = 0;
  }
  if (!runs) {
    wakeLock?.release().catch(() => {});
    setMuted(false);
  }
  // Who uses the keyboard goes on where the button was.
  if (focused === ui.start && ui.start.hidden) ui.end.focus();
  if (ui.controls.hidden && ui.controls.contains(focused)) ui.start.focus();
}

const SLOW = {concealedShare: 0.03, roundTripMs: 500, delayMs: 350, waitingBytes: 24_000}; // half a second of PCM
const SLOW_SHOWN_S = 10;
let slowFor = 0, format = '';

/** Say so when the network, or the mesh, is what one hears. */
function watchNetwork(figures) {
  const slow = Object.entries(SLOW).some(([name, most]) => figures[name] > most);
  if (slow && !slowFor) {
    const network = format === 's16le' ? 'hints.slowPcm' : 'hints.slow';
    tell(ui.hint, latency.meshIsSlow ? 'hints.busy' : network);
  }
  if (!slow && slowFor === 1) tell(ui.hint, '');
  slowFor = slow ? SLOW_SHOWN_S : Math.max(slowFor - 1, 0);
}

async function explain(error) {
  tellProblem(error);
  if (error.reason === 'NO_TICKET') ui.key.focus();
  if (PROBLEM_KEYS.has(error.reason) && error.reason !== 'UNREACHABLE') return;
  // A socket does not say why it was refused, nor a module why it was not loaded; a request that comes through says
  // that the mesh is there.
  const there = await fetch('/healthz').then(answer => answer.ok, () => false);
  if (!there) tellProblem({reason: 'UNREACHABLE'});
  else if (error.reason === 'UNREACHABLE') tellProblem({reason: 'REFUSED'});
}

/** Names a problem and what to do; none hides it. */
function tellProblem(error) {
  ui.problem.hidden = !error;
  const {reason, message} = error ?? {};
  for (const [index, part] of ['title', 'advice'].entries()) {
    const element = $(`problem-${part}`);
    if (!error) tell(element, '');
    else if (PROBLEM_KEYS.has(reason)) tell(element, `problems.${reason}.${index}`);
    else tell(element, `other.${index}`, message, reason);
  }
}

function setMuted(muted) {
  page.call?.mute(muted);
  ui.mute.ariaPressed = String(muted);
  document.body.classList.toggle('muted', muted);
}

ui.start.addEventListener('click', () => {
  const {call} = page;
  if (!call || call.state === 'ended') begin();
  else call.unlock().then(() => show(call, call.state));
});
ui.end.addEventListener('click', () => page.call.end());
ui.interrupt.addEventListener('click', () => page.call.interrupt());
ui.volume.addEventListener('input', () => page.call?.setVolume(Number(ui.volume.value)));
ui.mute.addEventListener('click', () => setMuted(!page.call.muted));
settings.onChange(sampling => running()?.apply(sampling));
settings.onKey(() => running() ?? begin());
onChoice(running, () => tell(ui.hint, 'hints.device'));

// Keeping

ui.wav.addEventListener('click', () => download(page.call.recording(), 'moshi.wav'));
ui.text.addEventListener('click', () => download(new Blob([captions.transcript()], {type: 'text/plain'}), 'moshi.txt'));

function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The tab

async function stayAwake() {
  if (document.visibilityState !== 'visible' || !running()) return;
  wakeLock = await navigator.wakeLock?.request('screen').catch(() => null); // a low battery refuses
}

document.addEventListener('visibilitychange', stayAwake);
addEventListener('pagehide', () => running() && captions.keep());

async function arrive() {
  await speakWith($('language'));
  pictures = {microphone: new VoicePicture($('you')), speaker: new VoicePicture($('moshi'))};
  latency = new Latency();
  captions = new Captions($('captions'), $('said-empty'));
  tell(ui.status, 'states.idle');
  tell(ui.advice, 'advice.idle');
  tell(ui['start-text'], 'start.new');
  const [lacking] = missing();
  if (lacking) {
    document.body.dataset.state = 'lacking';
    tell(ui.status, 'states.lacking');
    tell(ui.advice, '');
    ui.problem.hidden = false;
    tell($('problem-title'), `lacking.${lacking}.0`);
    tell($('problem-advice'), `lacking.${lacking}.1`);
    ui.start.hidden = true;
    return;
  }
  settings.offerOpus();
  listDevices();
  await settings.ask();
  ui.start.disabled = false;
  if (!saved) return;
  captions.recall();
  tell(ui.advice, 'advice.saved');
  tell(ui['start-text'], 'start.resume');
  const allowed = await navigator.permissions?.query({name: 'microphone'}).catch(() => null);
  const [navigation] = performance.getEntriesByType('navigation');
  if (navigation?.type === 'reload' && allowed?.state === 'granted' && !settings.wantsKey()) begin();
}

arrive();
