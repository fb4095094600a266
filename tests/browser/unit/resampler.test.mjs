import assert from 'node:assert/strict';
import {test} from 'node:test';

import {Resampler} from '../../../services/gateway/edges/page/moshimesh/resampler.js';

function tone(hertz, rate, count) {
  return Float32Array.from({length: count}, (_, i) => 0.5 * Math.sin(2 * Math.PI * hertz * i / rate));
}

/** In pieces of changing size, as a worklet's. */
function resampled(samples, from, to) {
  const resampler = new Resampler(from, to), out = [];
  for (let begin = 0, size = 1; begin < samples.length; begin += size, size = size % 300 + 37) {
    out.push(...resampler.process(samples.subarray(begin, begin + size)));
  }
  return Float32Array.from(out);
}

function decibels(error, signal) {
  return 10 * Math.log10(error / signal);
}

for (const [from, to] of [[48000, 24000], [44100, 24000], [16000, 24000], [24000, 44100], [24000, 48000],
  [96000, 24000]]) {
  test(`a tone of 1 kHz at ${from} Hz is the same tone at ${to} Hz`, () => {
    const out = resampled(tone(1000, from, from), from, to), expected = tone(1000, to, out.length);
    let error = 0, signal = 0;
    for (let i = 200; i < out.length - 200; i++) {
      error += (out[i] - expected[i]) ** 2;
      signal += expected[i] ** 2;
    }
    assert.ok(decibels(error, signal) < -60, `${decibels(error, signal)} dB`);
    assert.ok(Math.abs(out.length - to) < to / 500, `${out.length}`);
  });
}

test('what the lower rate can not hold is taken away', () => {
  const out = resampled(tone(15000, 48000, 48000), 48000, 24000);
  const energy = out.subarray(500).reduce((sum, sample) => sum + sample * sample, 0) / out.length;
  assert.ok(decibels(energy, 0.125) < -60, `${decibels(energy, 0.125)} dB`);
});

test('an hour has as many samples as it should', () => {
  const resampler = new Resampler(44100, 48000), piece = new Float32Array(44100);
  let count = 0;
  for (let second = 0; second < 600; second++) count += resampler.process(piece).length;
  assert.ok(Math.abs(count - 600 * 48000) < 100, `${count - 600 * 48000}`);
});

test('equal rates change nothing', () => {
  const samples = tone(300, 24000, 1000);
  assert.deepEqual(new Resampler(24000, 24000).process(samples), samples);
});
