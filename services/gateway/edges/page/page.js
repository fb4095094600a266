/** The page: a conversation, its controls and its pictures, made of ./moshimesh. */

import {Call} from './moshimesh/call.js';
import {hasOpus} from './moshimesh/formats.js';
import {Sound, devices, missing} from './moshimesh/sound.js';
import {Captions} from './captions.js';
import {VoicePicture} from './pictures.js';
import {Ribbon, drawWaterfall, timed} from './ribbon.js';
import * as words from './words.js';

const $ = id => document.getElementById(id);
const ui = Object.fromEntries(['status', 'start', 'problem', 'hint', 'controls', 'mute', 'interrupt', 'volume', 'end',
  'captions', 'latency', 'ribbon', 'frame', 'trace', 'copy', 'waterfall', 'hops', 'statistics', 'microphone', 'speaker',
  'sampling', 'clean', 'record', 'wav', 'text', 'keep'].map(id => [id, $(id)]));

const pictures = {microphone: new VoicePicture($('you')), speaker: new VoicePicture($('moshi'))};
const ribbon = new Ribbon(ui.ribbon);
const captions = new Captions(ui.captions);
const RUNNING = new Set(['starting', 'connecting', 'queued', 'live', 'resuming', 'ending']);

/** For the console, and the tests. */
export const page = globalThis.moshimesh = {call: null};

let saved = Call.saved();
let wakeLock = null;

// The call

function begin() {
  const {temperature, top_k, text_temperature, text_top_k, seed, model, format, key} = settings();
  const call = page.call = new Call({
    format, record: ui.record.checked, processing: processing(ui.clean.checked), resume: saved, ...(key && {ticket: () => ticket(key)}),
    settings: {model, sampling: {temperature, top_k, text_temperature, text_top_k, seed}},
  });
  if (!saved) captions.clear();
  saved = null;
  tell(ui.problem, '');
  tell(ui.hint, '');
  listen(call);
  call.start({microphoneId: ui.microphone.value, speakerId: ui.speaker.value});
  call.setVolume(Number(ui.volume.value));
}

/** What the browser does to the microphone. Without headphones it must, or Moshi hears itself. */
function processing(clean) {
  return {echoCancellation: clean, noiseSuppression: clean, autoGainControl: clean};
}

function listen(call) {
  const on = (type, hear) => call.addEventListener(type, ({detail}) => hear(detail));
  on('state', ({state}) => show(call, state));
  on('queued', ({position, estimated_wait_ms: waitMs}) => { ui.status.textContent = words.queued(position, waitMs); });
  on('ready', ready => opened(call, ready));
  on('frame', frame => {
    const times = timed(frame);
    if (times) ribbon.add(times);
  });
  on('text', text => captions.add(text));
  on('statistics', figures => showStatistics(figures));
  on('echo', () => tell(ui.hint, words.HEADPHONES));
  on('microphone', ({replaced}) => {
    tell(ui.hint, words.MICROPHONE_LOST[replaced]);
    listDevices();
  });
  on('error', error => explain(error));
  on('ended', () => {
    for (const picture of Object.values(pictures)) picture.show(null);
    ui.wav.disabled = !call.recording();
    ui.text.disabled = captions.empty;
  });
}

function opened(call, ready) {
  pictures.microphone.show(call.analysers.microphone);
  pictures.speaker.show(call.analysers.speaker);
  for (const [name, value] of Object.entries(ready.sampling)) {
    const field = ui.sampling.elements[name];
    if (field && !field.value) field.placeholder = String(value);
  }
  if (document.body.dataset.session !== ready.session_id) ribbon.clear(ready.frame_ms);
  document.body.dataset.session = ready.session_id;
  listDevices();
  stayAwake();
  if (!call.audible) show(call, call.state);
}

function show(call, state) {
  const running = RUNNING.has(state), unlock = state === 'live' && !call.audible;
  document.body.dataset.state = state;
  ui.status.textContent = words.STATES[state];
  ui.start.hidden = running && !unlock;
  ui.start.textContent = unlock ? words.START.unlock : words.START.again;
  ui.controls.hidden = !running;
  ui.record.disabled = ui.clean.disabled = running;
  if (running) ui.latency.hidden = false;
  else wakeLock?.release().catch(() => {});
}

async function explain(error) {
  tell(ui.problem, words.problem(error));
  if (error.reason === 'UNREACHABLE') {
    // A socket does not say why it was refused; a request that comes through says that the mesh is there.
    const there = await fetch('/healthz').then(answer => answer.ok, () => false);
    if (there) tell(ui.problem, words.problem({reason: 'REFUSED'}));
  }
}

async function ticket(key) {
  const answer = await fetch('/api/tickets', {method: 'POST', headers: {'x-api-key': key}});
  if (!answer.ok) throw new Error(`${answer.status}`);
  return (await answer.json()).ticket;
}

ui.start.addEventListener('click', () => {
  const {call} = page;
  if (!call || call.state === 'ended') begin();
  else call.unlock().then(() => show(call, call.state));
});
ui.end.addEventListener('click', () => page.call.end());
ui.interrupt.addEventListener('click', () => page.call.interrupt());
ui.volume.addEventListener('input', () => page.call?.setVolume(Number(ui.volume.value)));
ui.mute.addEventListener('click', () => {
  page.call.mute(!page.call.muted);
  ui.mute.ariaPressed = String(page.call.muted);
});

// Settings

function settings() {
  const values = {};
  for (const {name, value, type} of ui.sampling.elements) {
    if (name && value !== '') values[name] = type === 'number' ? Number(value) : value;
  }
  return values;
}

ui.sampling.addEventListener('submit', event => event.preventDefault());
ui.sampling.addEventListener('change', ({target}) => {
  if (target.type === 'number' && target.value !== '' && target.checkValidity()) {
    page.call?.apply({[target.name]: Number(target.value)});
  }
});

// Devices

async function listDevices() {
  const {microphones, speakers} = await devices();
  fill(ui.microphone, microphones, page.call?.microphoneId);
  fill(ui.speaker, speakers);
  $('speaker-label').hidden = !Sound.choosesSpeaker || speakers.length === 0;
}

function fill(select, found, current = select.value) {
  select.replaceChildren(...found.map((device, index) =>
    new Option(device.label || `${index + 1}`, device.deviceId, false, device.deviceId === current)));
}

const running = () => page.call && RUNNING.has(page.call.state);
ui.microphone.addEventListener('change', () => running() && page.call.setMicrophone(ui.microphone.value)
  .catch(error => tell(ui.hint, words.problem({reason: error.name, message: error.message}))));
ui.speaker.addEventListener('change', () => running() && page.call.setSpeaker(ui.speaker.value)
  .catch(error => tell(ui.hint, words.problem({reason: error.name, message: error.message}))));
navigator.mediaDevices?.addEventListener('devicechange', listDevices);

// Latency

ribbon.addEventListener('choose', ({detail: {frame}}) => {
  ui.frame.hidden = false;
  $('frame-title').textContent = words.frameTitle(frame.sequence, frame.wholeMs);
  ui.trace.textContent = frame.traceparent.split('-')[1] ?? '';
  ui.copy.hidden = !ui.trace.textContent;
  ui.hops.replaceChildren(...frame.hops.map(({hop, waitedMs, computedMs, batch}) => {
    const row = document.createElement('tr');
    for (const text of [words.HOPS[hop] ?? hop, words.milliseconds(waitedMs), words.milliseconds(computedMs), batch]) {
      row.insertCell().textContent = text;
    }
    return row;
  }));
  drawWaterfall(ui.waterfall, frame);
});
ui.copy.addEventListener('click', () => navigator.clipboard.writeText(ui.trace.textContent));

function showStatistics(figures) {
  ui.statistics.replaceChildren(...words.statistics(figures).map(([label, value]) => {
    const pair = document.createElement('div'), term = document.createElement('dt'), data = document.createElement('dd');
    term.textContent = label;
    data.textContent = value;
    pair.append(term, data);
    return pair;
  }));
}

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

function tell(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

async function arrive() {
  const lacking = missing();
  if (lacking.length) {
    tell(ui.problem, lacking.map(one => words.LACKING[one]).join(' '));
    ui.start.disabled = true;
    return;
  }
  if (await hasOpus()) ui.sampling.elements.format.add(new Option('Opus', 'opus'));
  await listDevices();
  if (!saved) return;
  captions.recall();
  ui.start.textContent = words.START.resume;
  const allowed = await navigator.permissions?.query({name: 'microphone'}).catch(() => null);
  const [navigation] = performance.getEntriesByType('navigation');
  if (navigation?.type === 'reload' && allowed?.state === 'granted') begin();
}

arrive();
