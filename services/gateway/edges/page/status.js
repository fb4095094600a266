/** The operator's view: /api/status, every 2 s. */

import {speakWith, tell, word} from './words.js';

const EVERY_MS = 2000, ANSWER_MS = 5000;
const $ = id => document.getElementById(id);
let key = ''; // in memory alone
let facts = null;

async function refresh() {
  try {
    const answer = await fetch('/api/status', {headers: key ? {'X-Api-Key': key} : {}, signal: AbortSignal.timeout(ANSWER_MS)});
    if (answer.status === 401 || answer.status === 403) {
      tell($('problem'), key ? 'problems.NO_TICKET.0' : '');
      key = '';
      $('key-form').hidden = false;
      $('shown').hidden = true;
      return; // until there is a key
    }
    facts = await answer.json();
    tell($('problem'), '');
    $('key-form').hidden = true;
    $('shown').hidden = false;
    show();
  } catch {
    tell($('problem'), 'state.gone');
  }
  setTimeout(refresh, EVERY_MS);
}

$('key-form').addEventListener('submit', event => {
  event.preventDefault();
  key = $('key').value;
  $('key').value = '';
  refresh();
});

function show() {
  const {gateway, models, calls, replicas, frames, late} = facts, state = (name, ...values) => word(`state.${name}`, ...values);
  const ms = value => value === null ? '–' : word('ms', value, 1), hop = name => word(`hops.${name.replace('.', '_')}`);
  list($('facts'), [
    [state('how'), state(gateway.draining ? 'draining' : 'takes')], [state('calls'), calls.held], [state('waiting'), calls.waiting],
    [state('answered'), frames.answered], [state('missed'), frames.late],
    [state('uptime'), state('since', gateway.uptime_s)], [state('version'), gateway.version]]);
  table($('models'), ['model', 'slots', 'line'], models.map(one =>
    [one.model, state('of', one.slots_free, one.slots_total), one.waiting]));
  table($('replicas'), ['role', 'address', 'how', 'slots', 'fresh', 'serves'], replicas.map(one => [
    one.role, one.address, one.answers ? state(one.draining ? 'draining' : 'up') : state('down', one.problem),
    one.answers ? state('of', one.slots_free, one.slots_total) : '–', state('ago', one.age_s), one.serves ?? '–']));
  table($('frames'), ['hop', 'p50', 'p99'], [
    ...Object.entries(frames.hops).map(([name, {p50_ms, p99_ms}]) => [hop(name), ms(p50_ms), ms(p99_ms)]),
    [state('whole'), ms(frames.whole.p50_ms), ms(frames.whole.p99_ms)]]);
  $('no-late').hidden = late.length > 0;
  $('late').hidden = late.length === 0;
  table($('late'), ['when', 'frame', 'took', 'slowest', 'trace'], late.map(one => [
    state('time', one.at_unix_ms), one.sequence, ms(one.whole_ms), `${hop(one.slowest_hop)}, ${ms(one.slowest_ms)}`,
    one.trace_id ? made('code', one.trace_id) : state('noTrace')]));
}

/** Rows, the first cell of each being its name. */
function table(box, columns, rows) {
  const head = made('tr', ...columns.map(name => made('th', word(name === 'trace' ? 'latency.trace' : `state.${name}`))));
  for (const cell of head.cells) cell.scope = 'col';
  const body = made('tbody', ...rows.map(([name, ...values]) => {
    const header = made('th', name);
    header.scope = 'row';
    return made('tr', header, ...values.map(value => made('td', value)));
  }));
  box.replaceChildren(made('table', made('thead', head), body));
}

function list(box, pairs) {
  box.replaceChildren(...pairs.map(([label, value]) => made('div', made('dt', label), made('dd', value))));
}

function made(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
}

addEventListener('language', () => facts && show());
await speakWith($('language'));
refresh();
