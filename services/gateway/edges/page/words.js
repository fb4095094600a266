/** What the page says, in one place. */

export const STATES = {
  idle: '', starting: 'Opening the microphone', connecting: 'Connecting', queued: 'Waiting in line',
  live: 'Moshi listens', resuming: 'The connection was cut; reconnecting', ending: 'Saying goodbye', ended: 'The call has ended',
};

export const queued = (position, waitMs) =>
  `You are number ${position} in line` + (waitMs ? `, about ${Math.ceil(waitMs / 1000)} s` : '');

export const START = {new: 'Talk to Moshi', again: 'Talk again', resume: 'Go on with your call', unlock: 'Tap to hear Moshi'};

/** By the error's reason. */
const PROBLEMS = {
  NotAllowedError: 'The microphone is blocked. Allow it in the browser\'s site settings, then try again.',
  NotFoundError: 'No microphone was found. Plug one in, then try again.',
  NotReadableError: 'The microphone is in use by another program.',
  OverconstrainedError: 'That microphone is gone. Choose another one.',
  UNREACHABLE: 'The mesh can\'t be reached. Is it running?',
  REFUSED: 'The mesh runs, but has not let this call in. It may want an API key: enter one in the settings.',
  NO_TICKET: 'The mesh has not accepted this API key.',
  LINE_FULL: 'Every place is taken, and so is the line. Try again in a minute.',
  NO_FREE_SLOT: 'Every place is taken. Try again in a minute.',
  TOO_MANY_CALLS: 'This API key has as many calls as it may have.',
  SESSION_MOVED: 'The call goes on in another window.',
  UNKNOWN_SESSION: 'The call was away for too long, and can\'t be resumed.',
  CALL_TOO_LONG: 'The call has lasted as long as one may.',
  DRAINING: 'The mesh is being restarted. Try again in a minute.',
};

export const problem = ({reason, message}) => PROBLEMS[reason] ?? `${message || 'The call failed.'} (${reason})`;

export const LACKING = {
  'secure-context': 'Browsers give the microphone only to pages on https or localhost. Start the mesh with a certificate, '
    + 'or open a tunnel: ssh -L 8080:localhost:8080 HOST',
  'audio-worklet': 'This browser is too old: it has no AudioWorklet.',
  microphone: 'This browser gives pages no microphone.',
  websocket: 'This browser has no WebSockets.',
};

export const HEADPHONES = 'Moshi hears itself in your microphone. Headphones help.';
export const MICROPHONE_LOST = {
  true: 'The microphone is gone; the default one is used now.',
  false: 'The microphone is gone. Moshi hears silence until you choose another one.',
};

export const HOPS = {
  'gateway.ingest': 'gateway: ingest', 'codec.encode': 'codec: encode', 'lm.step': 'language model',
  'codec.decode': 'codec: decode', 'gateway.emit': 'gateway: emit',
};

/** Label and value of each figure. */
export const statistics = s => [
  ['Round trip', s.roundTripMs === null ? '–' : `${s.roundTripMs.toFixed(0)} ms`],
  ['Jitter', `${s.jitterMs.toFixed(1)} ms`],
  ['Buffer', `${s.delayMs.toFixed(0)} of ${s.targetMs.toFixed(0)} ms`],
  ['Frames', `${s.frames}`],
  ['Late', `${s.late}`],
  ['Lost', `${s.lost}`],
  ['Skipped', `${s.skipped}`],
  ['Concealed', `${(100 * s.concealedShare).toFixed(1)} %`],
  ['Opinion score', s.mos.toFixed(1)],
];

export const frameTitle = (sequence, ms) => `Frame ${sequence}: ${ms.toFixed(1)} ms`;
export const milliseconds = ms => `${ms.toFixed(1)} ms`;
