import assert from 'node:assert/strict';
import {test} from 'node:test';

const {Legs} = await import('../../../services/gateway/edges/page/moshimesh/legs.js');

class Leg {
  open = true;
  got = [];
  close() { this.open = false; }
  send(message) { this.got.push(message); }
  say(audio) { this.got.push(audio); }
}

/** Legs in use, what they hear, and what was handed on. */
function talking() {
  const heard = [], changes = [];
  const legs = new Legs({told: message => heard.push(message.type), changed: leg => changes.push(leg)}, -1);
  const first = new Leg();
  legs.add(first);
  return {legs, first, heard, changes};
}

test('the first connection is in use at once', () => {
  const {legs, first, changes} = talking();
  assert.equal(legs.current, first);
  assert.deepEqual(changes, [first]);
  assert.deepEqual([0, 1, 1, 0, 2].map(sequence => legs.wants(first, sequence, 0)), [true, true, false, false, true]);
});

test('the old one answers until the next one has caught up, and each answer comes once', () => {
  const {legs, first} = talking(), next = new Leg(), wanted = [];
  const answer = (leg, sequence, ms) => legs.wants(leg, sequence, ms) && wanted.push([leg === next, sequence]);
  answer(first, 10, 800);
  legs.add(next);
  assert.equal(legs.current, first);
  answer(next, 10, 845);
  answer(first, 11, 880);
  answer(next, 11, 920);
  assert.ok(first.open);
  answer(next, 12, 940);
  assert.ok(!first.open && next.open && legs.current === next);
  assert.deepEqual(wanted, [[false, 10], [false, 11], [true, 12]]);
});

test('one that answers the newest frame as soon as the other one did has caught up', () => {
  const {legs, first} = talking(), next = new Leg();
  legs.wants(first, 10, 800);
  legs.add(next);
  assert.equal(legs.wants(next, 10, 815), false);
  assert.equal(legs.current, next);
  assert.ok(!first.open);
});

test('both hear what is said meanwhile', () => {
  const {legs, first} = talking(), next = new Leg();
  legs.add(next);
  legs.say('audio');
  legs.send('control');
  assert.deepEqual([first.got, next.got], [['audio', 'control'], ['audio', 'control']]);
});

test('what the next one tells of answers that came already came with them', () => {
  const {legs, first, heard} = talking(), next = new Leg();
  legs.wants(first, 10, 800);
  legs.add(next);
  legs.told(next, {type: 'event'});
  legs.told(next, {type: 'go_away'});
  legs.told(first, {type: 'resume_status'});
  legs.wants(next, 10, 860);
  legs.told(next, {type: 'heard'});
  assert.deepEqual(heard, ['resume_status']);
  legs.wants(next, 11, 870);
  assert.deepEqual(heard, ['resume_status', 'go_away', 'heard']);
});

test('the next one is used at once when the old one is lost, and may be lost itself', () => {
  const {legs, first} = talking(), lost = new Leg(), next = new Leg();
  legs.add(lost);
  assert.equal(legs.lost(lost), true);
  legs.add(next);
  assert.equal(legs.lost(first), true);
  assert.equal(legs.current, next);
  assert.equal(legs.lost(next), false);
  assert.equal(legs.current, null);
});
