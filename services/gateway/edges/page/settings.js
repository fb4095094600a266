/** What can be set about a call, and the key that lets it in. */

import {hasOpus} from './moshimesh/formats.js';
import {word} from './words.js';

const $ = id => document.getElementById(id);
const form = $('sampling'), key = $('key'), prompt = form.elements.text_prompt;
const STORED = 'moshimesh.settings';
const ANSWER_MS = 1500; // without an answer the button works all the same
let keys = false; // whether the mesh asks who calls
let models = [], promptCharacters = {}; // of each model that can be told something

/** Ask the mesh what a caller needs, and may choose. */
export async function ask() {
  let entry;
  try {
    const answer = await fetch('/api/entry', {
      headers: key.value ? {'X-Api-Key': key.value} : {}, signal: AbortSignal.timeout(ANSWER_MS)});
    if (!answer.ok) return;
    entry = await answer.json();
  } catch {
    return; // the call itself will say what is wrong
  }
  keys = entry.keys;
  $('key-form').hidden = !keys;
  models = entry.models;
  promptCharacters = entry.text_prompt_characters ?? {}; // a gateway of an older version says nothing of them
  offer(form.elements.model, models);
  offer(form.elements.voice, entry.voices);
  $('voice-label').hidden = entry.voices.length === 0;
  recall();
  fitPrompt();
}

/** Who leaves the choice of a model to the mesh can tell what all of them understand. */
function fitPrompt() {
  const {value} = form.elements.model;
  const most = models.length && Math.min(...(value ? [value] : models).map(name => promptCharacters[name] ?? 0));
  $('prompt-label').hidden = most === 0;
  if (!most) return;
  prompt.maxLength = most;
  prompt.value = prompt.value.slice(0, most); // a text that was remembered may be for another model
}

/** What was set when this page was last open. */
function recall() {
  try {
    for (const [name, value] of Object.entries(JSON.parse(localStorage.getItem(STORED)) ?? {})) {
      const field = form.elements[name];
      if (!field || (field.options && ![...field.options].some(option => option.value === value))) continue;
      field.value = value;
    }
  } catch { /* storage may be forbidden */ }
}

function remember() {
  try {
    const set = [...form.elements].filter(field => field.name && field.value !== '');
    localStorage.setItem(STORED, JSON.stringify(Object.fromEntries(set.map(field => [field.name, field.value]))));
  } catch { /* until the page is loaded again */ }
}

/** After the first option, which is no choice. */
function offer(select, names) {
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...names.map(name => new Option(name, name, false, name === chosen)));
}

/** Offer Opus where the browser has it. */
export async function offerOpus() {
  if (!await hasOpus()) return;
  const option = new Option(word('settings.opus'), 'opus');
  option.dataset.say = 'settings.opus';
  form.elements.format.add(option);
  recall();
}

/** Whether the mesh wants a key, and has none. */
export const lacksKey = () => keys && !key.value;
export const wantsKey = () => keys;

/** A ticket for one call, for the key. Where nobody is asked, none. */
export async function ticket() {
  if (!keys) return '';
  const answer = await fetch('/api/tickets', {method: 'POST', headers: {'X-Api-Key': key.value}});
  if (!answer.ok) throw new Error(`${answer.status}`);
  return (await answer.json()).ticket;
}

/** @returns {{format: string, model: string, voice: string, text_prompt: string, sampling: object}} without what was
 * left empty */
export function settings() {
  const {format, model, voice, text_prompt: text, ...rest} = Object.fromEntries(new FormData(form));
  const given = Object.entries(rest).filter(([name, value]) => value !== '' && form.elements[name].checkValidity());
  return {format, model, voice, text_prompt: $('prompt-label').hidden ? '' : text, sampling: Object.fromEntries(given.map(([name, value]) => [name, Number(value)]))};
}

/** What the call really has, for the fields that were left empty. */
export function placeholders(sampling) {
  for (const [name, value] of Object.entries(sampling)) {
    const field = form.elements[name];
    if (field?.type !== 'number') continue;
    field.placeholder = String(value);
    delete field.dataset.hint; // it says the same in every language
  }
}

/** Some can't change in mid-call. */
export function freeze(running) {
  $('before').disabled = $('record').disabled = $('clean').disabled = key.disabled = running;
}

/** @param {(sampling: object) => void} apply when a field was changed */
export function onChange(apply) {
  form.addEventListener('submit', event => event.preventDefault());
  form.addEventListener('change', ({target}) => {
    remember();
    if (target.name === 'model') fitPrompt();
    if (target.type === 'number' && target.name !== 'seed' && target.value !== '' && target.checkValidity()) {
      apply({[target.name]: Number(target.value)});
    }
  });
}

/** @param {() => void} use when a key was entered */
export function onKey(use) {
  $('key-form').addEventListener('submit', event => {
    event.preventDefault();
    ask();
    use();
  });
}
