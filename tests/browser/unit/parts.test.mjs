import assert from 'node:assert/strict';
import {test} from 'node:test';

const AT = '../../../services/gateway/edges/page/moshimesh/';
const {Arrivals} = await import(`${AT}arrivals.js`);
const {EchoDetector} = await import(`${AT}echo.js`);
const {Heard} = await import(`${AT}heard.js`);
const {Outgoing} = await import(`${AT}outgoing.js`);
const {Figures, meanOpinionScore} = await import(`${AT}quality.js`);
const {Recording} = await import(`${AT}recording.js`);

const RATE = 24000, FORMAT = {rate: RATE, keptS: 45}, FRAME = 1920, PIECE = 480;

const piece = value => new Float32Array(PIECE).fill(value);

test('pieces become frames, numbered from 0', () => {
  const outgoing = new Outgoing(FORMAT, 80), frames = [];
  for (let i = 0; i < 9; i++) {
    const frame = outgoing.add(piece(i), 20 * i);
    if (frame) frames.push([outgoing.next - 1, frame[0], frame[FRAME - 1]]);
  }
  assert.deepEqual(frames, [[0, 0, 3], [1, 4, 7]]);
});

test('frames are complete when the mesh would like them to be', () => {
  for (const dueAtMs of [0, 21, 45, 79, 1234]) {
    const outgoing = new Outgoing(FORMAT, 80);
    outgoing.align(dueAtMs);
    for (let ms = 7; ms < 400; ms += 20) {
      if (!outgoing.add(piece(1), ms)) continue;
      const off = (((ms - dueAtMs) % 80) + 80 + 40) % 80 - 40; // from the nearest moment
      assert.ok(Math.abs(off) <= 10, `${ms} ms, due at ${dueAtMs}`);
    }
  }
});

test('the frames of a cut are sent again, and silence for what is not kept any more', () => {
  const outgoing = new Outgoing(FORMAT, 80);
  for (let frame = 0; frame < 1000; frame++) for (let i = 0; i < 4; i++) outgoing.add(piece(frame / 1000), 0);
  assert.equal(outgoing.next, 1000);
  assert.ok(outgoing.earliest > 400 && outgoing.earliest < 450);
  assert.deepEqual(outgoing.from(998).map(audio => [audio.length / FRAME, Math.round(audio[0] * 1000)]), [[2, 998]]);
  const all = outgoing.from(400);
  assert.equal(all.reduce((sum, audio) => sum + audio.length, 0), 600 * FRAME);
  assert.ok(all.every(audio => audio.length <= RATE));
  assert.equal(all[0][0], 0);
});

test('a call that a reload has cut begins at the frame after its last answer', () => {
  const outgoing = new Outgoing(FORMAT, 80, 57);
  for (let i = 0; i < 4; i++) outgoing.add(piece(1), 20 * i);
  assert.equal(outgoing.next, 58);
  assert.equal(outgoing.from(57).length, 1);
});

test('what a mesh owes after a stall says nothing about jitter', () => {
  const arrivals = new Arrivals(80);
  let ms = 0;
  for (let sequence = 0; sequence < 200; sequence++, ms += 80) arrivals.arrived(sequence, ms);
  ms += 3000;
  for (let sequence = 200; sequence < 240; sequence++, ms += 10) assert.equal(arrivals.arrived(sequence, ms), null);
  assert.ok(arrivals.targetMs < 20);
});

test('text is told with its voice, and as unheard when it was dropped', () => {
  const told = [], heard = new Heard(({text, heard: yes}) => told.push([text, yes]));
  for (let sequence = 0; sequence < 10; sequence++) heard.came({sequence, text: `${sequence}`});
  heard.begun(1);
  heard.begun(3);
  heard.hush(12);
  heard.came({sequence: 11, text: '11'});
  heard.came({sequence: 12, text: '12'});
  heard.begun(12);
  assert.deepEqual(told, [['0', true], ['1', true], ['2', true], ['3', true], ['4', false], ['5', false], ['6', false],
    ['7', false], ['8', false], ['9', false], ['11', false], ['12', true]]);
});

test('a frame is played out when its last sample has passed the device', () => {
  const heard = new Heard(() => {});
  heard.played({sequence: 4, time: 1.0});
  heard.played({sequence: 5, time: 1.08});
  heard.tick({now: 1.05, latency: 0.1});
  assert.equal(heard.until, -1);
  heard.tick({now: 1.12, latency: 0.1});
  assert.equal(heard.until, 4);
});

/** Syllables: noise whose loudness changes at random. */
function babble(seed, count) {
  let state = seed, loud = 0;
  const draw = () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
  return Float32Array.from({length: count}, (_, i) => {
    if (i % 3600 === 0) loud = draw() < 0.4 ? 0 : draw();
    return 0.3 * loud * (2 * draw() - 1);
  });
}

test('an echo is found, and another voice is none', () => {
  const moshi = babble(1, 8 * RATE), caller = babble(7, 8 * RATE), delay = Math.round(0.18 * RATE);
  const echo = Float32Array.from(moshi, (_, i) => 0.3 * (moshi[i - delay] ?? 0));
  for (const [heard, expected] of [[echo, true], [caller, false], [new Float32Array(8 * RATE), false]]) {
    const detector = new EchoDetector(RATE);
    for (let begin = 0; begin < moshi.length; begin += 2400) {
      detector.played(moshi.subarray(begin, begin + 2400));
      detector.heard(heard.subarray(begin, begin + 2400));
    }
    assert.equal(detector.echoes, expected);
  }
});

test('a recording has both voices at their time', async () => {
  const recording = new Recording(RATE);
  recording.add('left', piece(0.5), 10);
  recording.add('right', piece(-0.5), 10.01);
  const bytes = await recording.wav().arrayBuffer(), samples = new Int16Array(bytes, 44);
  assert.equal(samples.length, 2 * (PIECE + 240));
  assert.deepEqual([samples[0], samples[1]], [16384, 0]);
  assert.deepEqual([samples[2 * 240], samples[2 * 240 + 1]], [16384, -16384]);
  assert.deepEqual([...samples.slice(-2)], [0, -16384]);
});

test('delay and holes cost opinion', () => {
  const good = meanOpinionScore({delayMs: 60, concealedShare: 0});
  assert.ok(good > 4.3 && good < 4.5);
  assert.ok(meanOpinionScore({delayMs: 400, concealedShare: 0}) < 3.9);
  assert.ok(meanOpinionScore({delayMs: 60, concealedShare: 0.05}) < 3.8);
  const figures = new Figures(), counters = {delayMs: 50, playedMs: 0, concealedMs: 0};
  figures.of(counters, {roundTripMs: null, latencyMs: 20});
  const later = figures.of({...counters, playedMs: 1000, concealedMs: 20}, {roundTripMs: 40, latencyMs: 20});
  assert.equal(later.concealedShare, 0.02);
});
