/** What a call is like: the ribbon, one frame's waterfall, and the figures. */

import {HOPS, Ribbon, timed} from './ribbon.js';
import {tell, word} from './words.js';

const $ = id => document.getElementById(id);

export class Latency {
  #ribbon = new Ribbon($('ribbon'));
  #frame = null;
  #statistics = null;

  constructor() {
    this.#explain();
    this.#ribbon.addEventListener('choose', ({detail: {frame}}) => {
      this.#frame = frame;
      this.#show();
    });
    this.#ribbon.addEventListener('leave', () => {
      this.#frame = null;
      $('frame').hidden = true;
    });
    $('close').addEventListener('click', () => {
      this.#ribbon.leave();
      $('ribbon').focus();
    });
    $('copy').addEventListener('click', async () => {
      await navigator.clipboard.writeText($('trace').textContent);
      tell($('hint'), 'hints.copied');
    });
    addEventListener('language', () => {
      this.#explain();
      if (this.#frame) this.#show();
      if (this.#statistics) this.figures(this.#statistics);
    });
  }

  /** A frame has come. */
  add(message) {
    const frame = timed(message);
    if (frame) this.#ribbon.add(frame);
  }

  clear(frameMs) {
    this.#ribbon.clear(frameMs);
  }

  /** Whether it is the mesh that is slow: one frame in a hundred takes longer than it lasts. */
  get meshIsSlow() {
    return this.#ribbon.figures.p99 > this.#ribbon.frameMs;
  }

  /** The call's statistics, once a second. */
  figures(statistics) {
    this.#statistics = statistics;
    $('statistics').replaceChildren(...word('statistics', statistics, this.#ribbon.figures).map(([label, value]) => {
      const pair = made('div');
      pair.append(made('dt', label), made('dd', value));
      return pair;
    }));
  }

  #explain() {
    const part = (name, text) => {
      const item = made('li', text);
      item.prepend(made('span', '', `swatch ${name}`));
      return item;
    };
    $('legend').replaceChildren(...HOPS.map((hop, index) => part(`hop-${index}`, word(`hops.${hop.replace('.', '_')}`))),
      part('waited', word('latency.waited')), part('way', word('latency.way')));
  }

  #show() {
    const {sequence, wholeMs, wayMs, traceparent, hops} = this.#frame;
    const gapMs = wayMs / Math.max(hops.length - 1, 1); // the ways between them, together
    const share = ms => `${100 * ms / Math.max(wholeMs, 0.001)}%`;
    let from = 0;
    $('frame').hidden = false;
    $('frame-title').textContent = word('frame', sequence, wholeMs);
    $('ribbon').ariaValueText = word('frame', sequence, wholeMs);
    $('hops').replaceChildren(...hops.map(({hop, waitedMs, computedMs, batch}) => {
      const row = made('tr'), name = made('th', word(`hops.${hop.replace('.', '_')}`) ?? hop), bar = made('span', '', 'bar');
      const waited = made('span', '', 'waited'), computed = made('span', '', `hop-${HOPS.indexOf(hop)}`);
      name.scope = 'row';
      waited.style.left = share(from);
      waited.style.width = share(waitedMs);
      computed.style.left = share(from + waitedMs);
      computed.style.width = share(computedMs);
      bar.append(waited, computed);
      name.append(bar);
      row.append(name, ...[word('ms', waitedMs, 1), word('ms', computedMs, 1), batch].map(text => made('td', text)));
      from += waitedMs + computedMs + gapMs;
      return row;
    }));
    $('trace').textContent = traceparent?.split('-')[1] ?? '';
    $('trace-row').hidden = !$('trace').textContent;
  }
}

function made(tag, text = '', className = '') {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}
