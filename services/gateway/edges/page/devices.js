/** The choice of microphone and loudspeaker, also in mid-call. */

import {Sound, devices} from './moshimesh/sound.js';
import {word} from './words.js';

const $ = id => document.getElementById(id);

/** Show the devices that there are now. @param {string} [microphoneId] the one in use */
export async function listDevices(microphoneId) {
  const {microphones, speakers} = await devices();
  fill($('microphone'), microphones, microphoneId);
  fill($('speaker'), speakers);
  $('speaker-label').hidden = !Sound.choosesSpeaker || speakers.length === 0;
}

function fill(select, found, current = select.value) {
  select.replaceChildren(...found.map((device, index) => new Option(
    device.label || word('devices.unnamed', index + 1), device.deviceId, false, device.deviceId === current)));
}

export const chosen = () => ({microphoneId: $('microphone').value, speakerId: $('speaker').value});

/** What the browser does to the microphone. Without headphones it must, or Moshi hears itself. */
export function processing() {
  const clean = $('clean').checked;
  return {echoCancellation: clean, noiseSuppression: clean, autoGainControl: clean};
}

/** @param {() => import('./moshimesh/call.js').Call | null} running the call, if there is one
 * @param {() => void} refused a device that can't be used
 */
export function onChoice(running, refused) {
  $('microphone').addEventListener('change', ({target}) => running()?.setMicrophone(target.value).catch(refused));
  $('speaker').addEventListener('change', ({target}) => running()?.setSpeaker(target.value).catch(refused));
  navigator.mediaDevices?.addEventListener('devicechange', () => listDevices(running()?.microphoneId));
  addEventListener('language', () => navigator.mediaDevices && listDevices(running()?.microphoneId));
}
