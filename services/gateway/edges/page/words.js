/** What the page says, in the language that its reader chose. */

const LOADERS = {en: () => import('./words-en.js'), fr: () => import('./words-fr.js')};
const STORED = 'moshimesh.language';

let words = {};
const told = new Map(); // element: [key, values], to be said again in another language

/** The reader's own choice, or the first of the browser's languages that we speak. */
function preferred() {
  const wanted = [stored(), ...navigator.languages.map(name => name.split('-')[0])];
  return wanted.find(name => Object.hasOwn(LOADERS, name)) ?? 'en';
}

function stored() {
  try {
    return localStorage.getItem(STORED) ?? '';
  } catch {
    return ''; // storage may be forbidden
  }
}

/** The text of a key such as `states.live`; a function of `values` where it has some. */
export function word(key, ...values) {
  const found = key.split('.').reduce((at, part) => at?.[part], words);
  return typeof found === 'function' ? found(...values) : found;
}

/** Let an element say the text of a key from now on, in any language; it is hidden without one. */
export function tell(element, key, ...values) {
  if (key) told.set(element, [key, values]);
  else told.delete(element);
  element.hidden = !key;
  write(element, key ? word(key, ...values) : '');
}

/** What is in backquotes is something to type. */
function write(element, text) {
  if (!text.includes('`')) {
    element.textContent = text;
    return;
  }
  element.replaceChildren(...text.split('`').map((part, index) => {
    const node = document.createElement(index % 2 ? 'code' : 'span');
    node.textContent = part;
    return node;
  }));
}

async function speak(language) {
  words = (await LOADERS[language]()).default;
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll('[data-say]')) write(element, word(element.dataset.say));
  for (const element of document.querySelectorAll('[data-hint]')) element.placeholder = word(element.dataset.hint);
  for (const element of document.querySelectorAll('[data-label]')) element.ariaLabel = word(element.dataset.label);
  for (const [element, [key, values]] of told) write(element, word(key, ...values));
  document.title = word(document.documentElement.dataset.title);
  dispatchEvent(new Event('language'));
}

/** Speak the reader's language, and the one that is chosen in this list. */
export async function speakWith(select) {
  select.value = preferred();
  await speak(select.value);
  select.addEventListener('change', () => {
    try {
      localStorage.setItem(STORED, select.value);
    } catch { /* until the page is loaded again */ }
    speak(select.value).catch(() => { // the network is gone
      select.value = document.documentElement.lang;
    });
  });
}
