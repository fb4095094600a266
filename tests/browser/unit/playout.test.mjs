import assert from 'node:assert/strict';
import {test} from 'node:test';

import {Playout} from '../../../services/gateway/edges/page/moshimesh/playout.js';

const RATE = 24000, FRAME_MS = 80, FRAME = 1920, STEP = 60;

/** A tone of 440 Hz that speaks for 2 s and is silent for 1 s, softly at both ends. */
function voice(at) {
  const seconds = at / RATE, phase = seconds % 3;
  const gain = phase < 2 ? Math.min(1, phase / 0.05, (2 - phase) / 0.05) : 0;
  return 0.3 * gain * Math.sin(2 * Math.PI * 440 * seconds);
}

function frame(sequence) {
  return Float32Array.from({length: FRAME}, (_, i) => voice(sequence * FRAME + i));
}

/** What is heard when frames come at these times, {sequence, atMs}; `during` is called each 2.5 ms. */
function play(arrivals, {untilMs, during = () => {}}) {
  const playout = new Playout({rate: RATE, frameMs: FRAME_MS}), out = [];
  let next = 0;
  for (let ms = 0; ms < untilMs; ms += STEP * 1000 / RATE) {
    while (next < arrivals.length && arrivals[next].atMs <= ms) {
      const {sequence, atMs} = arrivals[next++];
      playout.push(sequence, frame(sequence), atMs);
    }
    during(playout, ms);
    out.push(...playout.pull(STEP));
  }
  return {playout, out: Float32Array.from(out)};
}

function steepest(samples) {
  let most = 0;
  for (let i = 2; i < samples.length; i++) {
    most = Math.max(most, Math.abs(samples[i] - 2 * samples[i - 1] + samples[i - 2]));
  }
  return most;
}

// The tone's own second difference is 0.3 (2 pi 440 / 24000)^2 = 0.004; a jump of -26 dBFS would be 0.05.
const SMOOTH = 0.012;

const regular = count => Array.from({length: count}, (_, sequence) => ({sequence, atMs: 20 + sequence * FRAME_MS}));

function random(seed) {
  let state = seed;
  return () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
}

/** As TCP delivers them: in order, each as late as its own jitter or what is before it. */
function shaken(count, jitterMs, {stallMs = 0, everyMs = 5000, seed = 1} = {}) {
  const draw = random(seed), arrivals = [];
  let before = 0;
  for (let sequence = 0; sequence < count; sequence++) {
    let atMs = 20 + sequence * FRAME_MS + jitterMs * draw();
    if (stallMs && atMs % everyMs < stallMs) atMs += stallMs - atMs % everyMs;
    before = atMs = Math.max(atMs, before);
    arrivals.push({sequence, atMs});
  }
  return arrivals;
}

test('regular frames are played as they are, 80 ms after they came', () => {
  const {playout, out} = play(regular(100), {untilMs: 7900});
  const begin = out.findIndex(sample => sample !== 0);
  const shift = begin - Array.from({length: 100}, (_, i) => voice(i)).findIndex(sample => sample !== 0);
  const delayMs = shift * 1000 / RATE - 20;
  assert.ok(delayMs >= 75 && delayMs <= 90, `${delayMs} ms`);
  assert.equal(playout.underruns, 0);
  assert.equal(playout.concealedMs, 0);
  assert.ok(steepest(out) < SMOOTH, `${steepest(out)}`);
});

test('on a calm network the target shrinks, and silence is dropped until the delay is that', () => {
  const {playout, out} = play(regular(400), {untilMs: 31900});
  assert.ok(playout.targetMs < 20, `${playout.targetMs}`);
  assert.ok(Math.abs(playout.delayMs - playout.targetMs) < 15, `${playout.delayMs}`);
  assert.ok(playout.droppedMs > 30);
  assert.equal(playout.underruns, 0);
  assert.ok(steepest(out) < SMOOTH);
});

test('jitter of 30 ms costs 30 ms of delay and no hole', () => {
  const {playout, out} = play(shaken(750, 30), {untilMs: 59900});
  assert.ok(playout.jitterMs > 5 && playout.jitterMs < 20, `${playout.jitterMs}`);
  assert.ok(playout.targetMs > 35 && playout.targetMs < 50, `${playout.targetMs}`);
  assert.ok(playout.concealedMs < 100, `${playout.concealedMs}`);
  assert.ok(steepest(out) < SMOOTH);
});

test('stalls of 200 ms every 5 s are concealed without a click, and soon covered', () => {
  const {playout, out} = play(shaken(750, 30, {stallMs: 200}), {untilMs: 59900});
  assert.ok(playout.concealedMs / playout.playedMs < 0.02, `${playout.concealedMs}`);
  assert.ok(playout.delayMs < 250, `${playout.delayMs}`);
  assert.ok(steepest(out) < SMOOTH, `${steepest(out)}`);
});

test('frames that the mesh has skipped are joined without a click and counted', () => {
  const arrivals = regular(200).filter(({sequence}) => sequence % 25 !== 10);
  const {playout, out} = play(arrivals, {untilMs: 15900});
  assert.equal(playout.lost, 8);
  assert.ok(steepest(out) < SMOOTH, `${steepest(out)}`);
});

test('an interruption is silent after 13 ms, and only what comes after it is heard', () => {
  let at = null;
  const {out} = play(regular(60), {untilMs: 4700, during: (playout, ms) => {
    if (ms >= 1000 && at === null) {
      at = ms;
      playout.interrupt(20);
    }
  }});
  const silent = out.subarray(Math.round((at + 25) * RATE / 1000), Math.round(1600 * RATE / 1000));
  assert.ok(silent.every(sample => sample === 0));
  assert.ok(out.subarray(Math.round(1750 * RATE / 1000)).some(sample => Math.abs(sample) > 0.2));
  assert.ok(steepest(out) < SMOOTH, `${steepest(out)}`);
});

test('after a cut of 3 s what was owed comes at once, and the conversation is in the present again', () => {
  const arrivals = regular(200).map(({sequence, atMs}) =>
    ({sequence, atMs: atMs > 4000 && atMs < 7000 ? 7000 + (atMs - 4000) / 40 : atMs}));
  let resumed = false;
  const {playout, out} = play(arrivals, {untilMs: 15900, during: (playout, ms) => {
    if (ms >= 6990 && !resumed) {
      resumed = true;
      playout.restart();
    }
  }});
  assert.ok(playout.delayMs < 200, `${playout.delayMs}`);
  assert.equal(playout.lost, 0);
  assert.ok(playout.targetMs < 100, `${playout.targetMs}`);
  assert.ok(steepest(out) < SMOOTH, `${steepest(out)}`);
});

test('it tells which frames have begun and which were played out', () => {
  const begun = [], whole = [];
  play(regular(50), {untilMs: 3900, during: playout => {
    for (const left of playout.left()) (left.whole ? whole : begun).push(left.sequence);
  }});
  assert.deepEqual(begun, Array.from({length: begun.length}, (_, i) => i));
  assert.deepEqual(whole, Array.from({length: whole.length}, (_, i) => i));
  assert.ok(begun.length >= 46 && begun.length - whole.length <= 1);
});

test('the end of the conversation is played and no underrun', () => {
  const {playout, out} = play(regular(20), {untilMs: 4000, during: (playout, ms) => ms >= 1600 && playout.end()});
  assert.equal(playout.underruns, 0);
  assert.ok(playout.drained);
  assert.ok(steepest(out) < SMOOTH);
});
