/** Light or dark, before anything is drawn: no module, since those run too late. The system's choice unless ours. */
'use strict';
{
  const STORED = 'moshimesh.theme', dark = matchMedia('(prefers-color-scheme: dark)');
  const apply = theme => {
    document.documentElement.dataset.theme = theme === 'auto' ? (dark.matches ? 'dark' : 'light') : theme;
    dispatchEvent(new Event('theme'));
  };
  let chosen = 'auto';
  try {
    chosen = localStorage.getItem(STORED) ?? chosen;
  } catch { /* storage may be forbidden */ }
  apply(chosen);
  dark.addEventListener('change', () => apply(chosen));
  addEventListener('DOMContentLoaded', () => {
    const select = document.getElementById('theme');
    select.value = chosen;
    select.addEventListener('change', () => {
      chosen = select.value;
      apply(chosen);
      try {
        localStorage.setItem(STORED, chosen);
      } catch { /* then until the page is loaded again */ }
    });
  });
}
